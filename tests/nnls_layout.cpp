// The arithmetic of csrc/nnls/layout.h, over sizes: what lies in a block's memory is aligned, separate
// and inside of what is requested. Exits with the number of layouts that are not right.

#include "../csrc/nnls/layout.h"

#include <cstdio>
#include <vector>

namespace {

struct Piece {
    uintptr_t first, last;
};

template <class X> Piece piece(X *first, ptrdiff_t count) {
    return {reinterpret_cast<uintptr_t>(first), reinterpret_cast<uintptr_t>(first + count)};
}

template <class T> bool right(int capacity, int K, ptrdiff_t entry, ptrdiff_t near_bytes) {
    const Layout<T> layout = laid_out<T>(capacity, K, entry, near_bytes);
    // never read or written: only addresses count
    char *shared = reinterpret_cast<char *>(uintptr_t(1) << 40);
    char *global = reinterpret_cast<char *>(uintptr_t(1) << 44);
    NnlsScratch<T> at;
    const Triangle<T, 1> M = layout.place(at, shared, global);
    std::vector<Piece> pieces;
    if (entry) pieces.push_back(piece(global, ptrdiff_t(K) * K * entry));
    for (int i = 0; i < capacity; ++i) pieces.push_back(piece(M.row(i), i + 1));
    for (T *vector : {at.y, at.x, at.s, at.l, at.h, at.r}) pieces.push_back(piece(vector, capacity));
    for (T *vector : {at.w, at.c}) pieces.push_back(piece(vector, K));
    for (int *vector : {at.passive, at.moved}) pieces.push_back(piece(vector, capacity));
    for (int *vector : {at.entering, at.blocked}) pieces.push_back(piece(vector, K));
    std::sort(pieces.begin(), pieces.end(),
              [](const Piece &a, const Piece &b) { return a.first < b.first; });
    const Piece near = piece(shared, layout.near()), far = piece(global, layout.far());
    bool good = layout.near() <= near_bytes && layout.far() % 256 == 0;
    // no vectors and no further row would fit into shared memory
    Layout<T> more = layout;
    ++more.near_rows;
    good &= layout.near_rows == capacity || more.near() > near_bytes;
    for (size_t i = 0; i < pieces.size(); ++i) {
        const auto inside = [&](const Piece &all) {
            return all.first <= pieces[i].first && pieces[i].last <= all.last;
        };
        good &= inside(near) || inside(far);
        good &= i == 0 || pieces[i - 1].last <= pieces[i].first;
    }
    for (T *vector : {at.y, at.w, at.c, M.row(0)})
        good &= reinterpret_cast<uintptr_t>(vector) % sizeof(T) == 0;
    for (int *vector : {at.passive, at.moved, at.entering, at.blocked})
        good &= reinterpret_cast<uintptr_t>(vector) % sizeof(int) == 0;
    if (!good)
        std::printf("capacity = %d, K = %d, entry = %td, near_bytes = %td, %zu-byte numbers\n", capacity,
                    K, entry, near_bytes, sizeof(T));
    return good;
}

} // namespace

int main() {
    int bad = 0, all = 0;
    // none, little, and the shared memory of a block on cards of capability 8.0, 8.9 and 9.0
    for (const ptrdiff_t near_bytes : {0, 1000, 8128, 166848, 101312, 232384})
        for (const int K : {1, 2, 31, 96, 97, 300, 1025, 4000})
            for (const int capacity : {1, K / 2, K})
                for (const ptrdiff_t entry : {0, 4, 8}) {
                    if (capacity < 1) continue;
                    bad += !right<float>(capacity, K, entry, near_bytes);
                    bad += !right<double>(capacity, K, entry, near_bytes);
                    all += 2;
                }
    for (const ptrdiff_t far : {256, 1 << 20})
        for (const ptrdiff_t useful : {1, 2, 264}) {
            for (const ptrdiff_t blocks : {1, 2, 264})
                bad += blocks_in(workspace_bytes(blocks, far), far, useful) !=
                       std::min(blocks, useful);
            bad += blocks_in(workspace_bytes(1, far) - 1, far, useful) != 0;
        }
    std::printf("%d of %d layouts are not right\n", bad, all);
    return bad != 0;
}
