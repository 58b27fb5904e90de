// How long a thread of OpenMP that waits for others spins before it sleeps.
//
// libgomp spins for milliseconds, which is quick while every thread has a core of its own, and
// takes the core from whoever the others wait for where it has not. It spins 300 times shorter
// while all teams of the process have more threads than there are cores. So a second team that
// does nothing makes all waits short, at any time, and its end makes them long again; the
// environment variables that say so are read before a program could set them.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__GNUC__) && !defined(__clang__) && defined(_OPENMP)
#include <omp.h>
#define FASTNMF_LIBGOMP 1
#endif

namespace fastnmf {

#ifdef FASTNMF_LIBGOMP

// A thread whose team does nothing until `end`
class IdleTeam {
    struct Shared {
        std::mutex mutex;
        std::condition_variable changed;
        bool begun = false, ends = false;
    };
    // the thread may outlive this: after a fork it does not exist, and nobody waits for it
    std::shared_ptr<Shared> shared = std::make_shared<Shared>();

  public:
    explicit IdleTeam(int size) {
        std::thread([shared = shared, size] {
            // not empty, so that the team is made
            int present = 0;
#pragma omp parallel num_threads(size) reduction(+ : present)
            present += 1;
            std::unique_lock<std::mutex> lock(shared->mutex);
            shared->begun = present > 0;
            shared->changed.notify_all();
            shared->changed.wait(lock, [&] { return shared->ends; });
        }).detach();
        std::unique_lock<std::mutex> lock(shared->mutex);
        shared->changed.wait(lock, [&] { return shared->begun; });
    }
    ~IdleTeam() {
        const std::lock_guard<std::mutex> lock(shared->mutex);
        shared->ends = true;
        shared->changed.notify_all();
    }
    IdleTeam(const IdleTeam &) = delete;
    IdleTeam &operator=(const IdleTeam &) = delete;
};

#endif

// Waits of teams of `threads` are short from now on, or as they were. Returns whether they are
// short, which only libgomp's become, and only where a team has a thread for every core.
inline bool shorten_waits(bool shorten, int threads) {
#ifdef FASTNMF_LIBGOMP
    static std::mutex mutex;
    // never destroyed: at the end of the process its thread is gone
    static auto &idle = *new std::unique_ptr<IdleTeam>;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!shorten || threads < omp_get_num_procs()) {
        idle.reset();
    } else if (!idle) {
        try {
            idle = std::make_unique<IdleTeam>(2);
        } catch (const std::system_error &) {
            // no thread to be had: waits stay as they are
        }
    }
    return idle != nullptr;
#else
    (void)shorten, (void)threads;
    return false;
#endif
}

} // namespace fastnmf
