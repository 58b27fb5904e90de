"""What fast code is compared with: per-concept loops in float64, problems that break things, and
the tolerances.

NumPy only and nothing of fastnmf, so that a mistake there cannot hide here.
"""

from __future__ import annotations

import itertools

import numpy as np

# largest relative difference of a factor after an update, by (solver, dtype), and its source
TOLERANCES = {
    # required: the iterates of the per-concept loop, to rounding
    ("hals", "float32"): 1e-5,
    ("hals", "float64"): 1e-10,
    ("mu", "float32"): 1e-5,
    ("mu", "float64"): 1e-10,
    # a projected gradient step is continuous, with the rounding of a few products
    ("pgd", "float32"): 1e-5,
    ("pgd", "float64"): 1e-10,
    # normalised KKT residual of an exact solve: rounding of the Gram matrix in float32
    ("anls", "float32"): 1e-5,
    ("anls", "float64"): 1e-9,
}


def hals_half_step(F, X, B):
    """F_k ← max(0, F_k + (B_k Xᵀ − B_k (Fᵀ B)ᵀ) / ‖B_k‖²), k in order; F (K, m), X (m, p), B (K,
    p)."""
    F = F.astype(np.float64).copy()
    X, B = X.astype(np.float64), B.astype(np.float64)
    for k in range(F.shape[0]):
        square = B[k] @ B[k]
        if square > 0:
            F[k] = np.maximum(0, F[k] + B[k] @ (X - F.T @ B).T / square)
    return F


def weighted_hals_half_step(F, X, B, W, l1=0.0, l2=0.0, bounded=True):
    """The same with a weight W (m, p) for each entry of X, and a penalty, l2 (K,) or a number:
    F_ki ← max(0, F_ki + (Σ_j w_ij B_kj e_ij − l1 − l2 F_ki) / (Σ_j w_ij B_kj² + l2)), e = X − Fᵀ B;
    a concept of which no entry has a weight becomes zero by any penalty, and else keeps its value.
    Without `bounded` there is no maximum."""
    F = F.astype(np.float64).copy()
    X, B, W = X.astype(np.float64), B.astype(np.float64), W.astype(np.float64)
    l2 = np.broadcast_to(l2, len(F))
    for k in range(F.shape[0]):
        for i in range(F.shape[1]):
            square = W[i] @ B[k] ** 2 + l2[k]
            if square > 0:
                error = X[i] - F[:, i] @ B
                slope = (W[i] * error) @ B[k] - l1 - l2[k] * F[k, i]
                best = F[k, i] + slope / square
                F[k, i] = max(0.0, best) if bounded else best
            elif l1 > 0:
                F[k, i] = 0.0
    return F


def weighted_als(A, W, Z, D, iterations):
    """Alternating exact non-negative least squares of ½ Σ w (A − Z D)², row by row and feature by
    feature, by scipy's nnls: the pair, and √(Σ w (A − Z D)² / Σ w A²)."""
    import scipy.optimize

    A, W, Z, D = (M.astype(np.float64).copy() for M in (A, W, Z, D))
    root = np.sqrt(W)
    for _ in range(iterations):
        for i in range(len(A)):
            Z[i] = scipy.optimize.nnls((D * root[i]).T, A[i] * root[i])[0]
        for j in range(A.shape[1]):
            D[:, j] = scipy.optimize.nnls(Z * root[:, j, None], A[:, j] * root[:, j])[0]
    return Z, D, np.sqrt((W * (A - Z @ D) ** 2).sum() / (W * A**2).sum())


def mu_half_step(F, X, B):
    """F ← F ∘ (B Xᵀ) / (B Bᵀ F), all concepts from the old F; a concept with B_k = 0 keeps its
    row."""
    F = F.astype(np.float64).copy()
    X, B = X.astype(np.float64), B.astype(np.float64)
    numerator, denominator = B @ X.T, B @ (F.T @ B).T
    updated = F.copy()
    for k in range(F.shape[0]):
        if B[k].any():
            positive = denominator[k] > 0
            updated[k] = np.where(
                positive, F[k] * numerator[k] / np.where(positive, denominator[k], 1), 0
            )
    return updated


def pgd_half_step(F, X, B, L, steps):
    """FISTA (Beck & Teboulle, 2009) on ½‖X − Fᵀ B‖², F ≥ 0, with step 1 / L."""
    F = F.astype(np.float64).copy()
    X, B = X.astype(np.float64), B.astype(np.float64)
    Y, t = F.copy(), 1.0
    for _ in range(steps):
        updated = np.maximum(0, Y + B @ (X - Y.T @ B).T / L)
        following = (1 + np.sqrt(1 + 4 * t * t)) / 2
        Y = updated + (t - 1) / following * (updated - F)
        F, t = updated, following
    return F


def free_hals_half_step(F, X, B):
    """hals_half_step without the maximum."""
    F, X, B = (M.astype(np.float64) for M in (F.copy(), X, B))
    for k in range(F.shape[0]):
        square = B[k] @ B[k]
        if square > 0:
            F[k] += B[k] @ (X - F.T @ B).T / square
    return F


def signed_mu_half_step(F, X, B):
    """F ← F ∘ √((C⁺ + G⁻ F) / (C⁻ + G⁺ F)) for C = B Xᵀ and G = B Bᵀ of any signs (Ding, Li &
    Jordan, 2010); where the denominator is zero F stays."""
    F, X, B = (M.astype(np.float64) for M in (F, X, B))
    C, G = B @ X.T, B @ B.T
    above = np.maximum(C, 0) + np.maximum(-G, 0) @ F
    below = np.maximum(-C, 0) + np.maximum(G, 0) @ F
    return np.where(below > 0, F * np.sqrt(above / np.where(below > 0, below, 1)), F)


def free_pgd_half_step(F, X, B, L, steps):
    """pgd_half_step without the maximum."""
    F, X, B = (M.astype(np.float64) for M in (F.copy(), X, B))
    Y, t = F.copy(), 1.0
    for _ in range(steps):
        updated = Y + B @ (X - Y.T @ B).T / L
        following = (1 + np.sqrt(1 + 4 * t * t)) / 2
        Y = updated + (t - 1) / following * (updated - F)
        F, t = updated, following
    return F


def least_squares_half_step(F, X, B):
    """The F of least ‖X − Fᵀ B‖² that is nearest to F, a change of F_k counting ‖B_k‖ times."""
    F, X, B = (M.astype(np.float64) for M in (F, X, B))
    norms = np.linalg.norm(B, axis=1, keepdims=True)
    norms = np.where(norms > 0, norms, 1)
    return F + np.linalg.pinv((B / norms).T, rcond=1e-7) @ (X - F.T @ B).T / norms


def nnls(B, x):
    """argmin ‖x − wᵀ B‖² over w ≥ 0, by Lawson & Hanson (1974)."""
    w, free = np.zeros(len(B)), np.zeros(len(B), bool)
    norms = np.linalg.norm(B, axis=1)
    for _ in range(50 * len(B)):
        slope = np.where(free, -np.inf, B @ (x - w @ B))
        if not (slope > 1e-12 * norms * np.linalg.norm(x)).any():
            break
        free[slope.argmax()] = True
        while True:
            s = np.zeros(len(B))
            s[free] = np.linalg.lstsq(B[free].T, x, rcond=None)[0]
            if (s[free] > 0).all():
                break
            down = free & (s <= 0)
            w += (w[down] / (w[down] - s[down])).min() * (s - w)
            free &= w > 1e-15 * w.max()
            w[~free] = 0
        w = s
    return w


def rows_half_step(W, A, Z, entering, *, convex=False):
    """W (K, n) of D = W A: concept by concept, ½ ‖A − Z W A‖² is least over the weights of its rows
    and of `entering` others, those along which the loss falls most before the half-step. convex:
    the weights sum to 1, by a column that is so heavy that it holds to rounding."""
    W, A, Z = (M.astype(np.float64) for M in (W.copy(), A, Z))
    D = W @ A
    slopes = Z.T @ (A - Z @ D) @ A.T
    if convex:
        slopes -= (W * slopes).sum(1, keepdims=True)
    else:
        norms = np.linalg.norm(A, axis=1)
        slopes /= np.where(norms > 0, norms, np.inf)
    for k in range(len(W)):
        square = Z[:, k] @ Z[:, k]
        if square == 0:
            continue
        outside = np.where(W[k] > 0, -np.inf, slopes[k])
        steepest = (-outside).argsort(kind="stable")[:entering]
        rows = np.flatnonzero(W[k] > 0).tolist() + [i for i in steepest if outside[i] > 0]
        target = D[k] + Z[:, k] @ (A - Z @ D) / square
        B = A[rows]
        if convex:
            heavy = 1e4 * np.abs(A).max()
            B = np.column_stack((B, np.full(len(B), heavy)))
            target = np.append(target, heavy)
        W[k] = 0
        W[k, rows] = nnls(B, target)
        D[k] = W[k] @ A
    return W


def offset_half_steps(A, Z, D, b, of_codes, of_dictionary):
    """An iteration of A ≈ Z D + b: the codes for D and b, then D by a half-step of A and Z minus
    their mean rows, in which b is the best for any D, and b itself. Concepts whose codes are all
    alike stay."""
    A, Z, D, b = (M.astype(np.float64) for M in (A, Z, D, b))
    Z = of_codes(Z.T, A - b, D).T
    centred = Z - Z.mean(0)
    centred[:, centred.std(0) < 1e-6 * Z.mean(0)] = 0
    D = of_dictionary(D, (A - A.mean(0)).T, centred.T)
    return Z, D, (A - Z @ D).mean(0)


def signed_problem(n, d, K, seed=0, kind="plain"):
    """problem, with A and D of any signs."""
    A, Z, D = problem(n, d, K, seed, kind)
    rng = np.random.default_rng(seed + 1)
    D *= rng.choice((-1, 1), D.shape)
    if kind == "duplicates":
        D[-1] = D[0]
    return A - 0.5 * np.sign(A), Z, D


HALF_STEPS = {"hals": hals_half_step, "mu": mu_half_step}


def curvature_of_penalty(B, l1, l2):
    """l2 for every concept; where l2 = 0, 1 for a concept B_k = 0 under l1: its minimum is zero."""
    return np.where(B.any(1) | (l1 == 0), l2, l2 if l2 > 0 else 1.0)[:, None]


def penalised_hals_half_step(F, X, B, l1, l2):
    """F_k ← max(0, F_k + (B_k Xᵀ − B_k (Fᵀ B)ᵀ − l1 − l2 F_k) / (‖B_k‖² + l2)), k in order."""
    F, X, B = (M.astype(np.float64) for M in (F.copy(), X, B))
    curvature = curvature_of_penalty(B, l1, l2)
    for k in range(F.shape[0]):
        slope = B[k] @ (X - F.T @ B).T - l1 - curvature[k] * F[k]
        if B[k] @ B[k] + curvature[k] > 0:
            F[k] = np.maximum(0, F[k] + slope / (B[k] @ B[k] + curvature[k]))
    return F


def penalised_mu_half_step(F, X, B, l1, l2):
    """F ← F ∘ (B Xᵀ) / (B Bᵀ F + l1 + l2 F), for l1 > 0."""
    F, X, B = (M.astype(np.float64) for M in (F, X, B))
    return F * (B @ X.T) / (B @ (F.T @ B).T + l1 + l2 * F)


def penalised_pgd_half_step(F, X, B, L, steps, l1, l2):
    """pgd_half_step on ½‖X − Fᵀ B‖² + l1 ΣF + ½ l2 ‖F‖²; L bounds B Bᵀ with what l2 adds."""
    F, X, B = (M.astype(np.float64) for M in (F, X, B))
    curvature = curvature_of_penalty(B, l1, l2)
    Y, t = F.copy(), 1.0
    for _ in range(steps):
        slope = B @ (X - Y.T @ B).T - l1 - curvature * Y
        updated = np.maximum(0, Y + slope / L)
        following = (1 + np.sqrt(1 + 4 * t * t)) / 2
        Y = updated + (t - 1) / following * (updated - F)
        F, t = updated, following
    return F


def objective(A, Z, D, alpha_Z, alpha_D, l1_ratio):
    """½‖A − Z D‖² + Σ alpha (l1_ratio ΣF + ½ (1 − l1_ratio) ‖F‖²), times d for Z and n for D."""
    n, d = A.shape
    whole = 0.5 * ((A - Z @ D) ** 2).sum()
    for F, weight in ((Z, d * alpha_Z), (D, n * alpha_D)):
        whole += weight * (l1_ratio * F.sum() + 0.5 * (1 - l1_ratio) * (F**2).sum())
    return float(whole)


def hals_half_step_in_float32(F, X, B):
    """hals_half_step by C = B Xᵀ and G = B Bᵀ, in float32 throughout: what its rounding does."""
    F, C, G = F.copy(), B @ X.T, B @ B.T
    for k in np.flatnonzero(G.diagonal()):
        F[k] = np.maximum(0, F[k] + (C[k] - G[k] @ F) / G[k, k])
    return F


def iterate(solver, A, Z, D, iterations):
    """Codes then dictionary, in each of the iterations; Z (n, K), D (K, d)."""
    half_step = HALF_STEPS[solver]
    for _ in range(iterations):
        Z = half_step(Z.T, A, D).T
        D = half_step(D, A.T, Z.T)
    return Z, D


def restricted_hals(A, Z, D, l1, iterations, *, sweeps, signed=False):
    """Codes, dictionary and objectives of hals with concepts of norm 1 and ½‖A − Z D‖² + l1 ΣZ,
    whose codes are swept over the concepts that a row has, and those whose slope is above l1."""
    A, Z, D = (M.astype(np.float64).copy() for M in (A, Z, D))
    norms = np.linalg.norm(D, axis=1)
    Z, D, objectives = Z * norms, D / norms[:, None], []
    for _ in range(iterations):
        for i, row in enumerate(A):
            slopes = D @ (row - Z[i] @ D)
            candidates = np.flatnonzero((Z[i] > 0) | (slopes > l1))
            for _ in range(sweeps):
                for k in candidates:
                    slope = D[k] @ (row - Z[i] @ D) - l1
                    Z[i, k] = max(0.0, Z[i, k] + slope / (D[k] @ D[k]))
        curvature = l1 * Z.sum(0)
        for k in np.flatnonzero(Z.any(0)):
            slope = Z[:, k] @ (A - Z @ D) - curvature[k] * D[k]
            best = D[k] + slope / (Z[:, k] @ Z[:, k] + curvature[k])
            D[k] = best if signed else np.maximum(0, best)
        norms = np.linalg.norm(D, axis=1)
        Z, D = Z * norms, D / norms[:, None]
        objectives.append(0.5 * np.square(A - Z @ D).sum() + l1 * Z.sum())
    return Z, D, objectives


def kkt_residual(F, X, B, l1=0.0, l2=0.0):
    """How far F is from argmin ½‖X − Fᵀ B‖² + l1 ΣF + ½ l2 ‖F‖², F ≥ 0: the largest violation over
    the largest slope at zero without the penalty, a column.

    Concepts count with unit norm. Zero when all slopes at zero are ≤ 0 and F = 0.
    """
    F, X, B = (M.astype(np.float64) for M in (F, X, B))
    norms = np.sqrt((B * B).sum(1))
    alive = norms > 0
    if not alive.any():
        return 0.0
    F, B = F[alive], B[alive] / norms[alive, None]
    slope = B @ (X - (F * norms[alive, None]).T @ B).T - (l1 + l2 * F) / norms[alive, None]
    reference = np.abs(B @ X.T).max(0)
    violation = np.where(F > 0, np.abs(slope), np.maximum(slope, 0)).max(0)
    return float(np.max(violation / np.where(reference > 0, reference, 1)))


def exactness(A, D, Z, l1=0.0, l2=0.0):
    """The KKT residual (n,) of codes Z of min ½‖a − z D‖² + l1 Σ z + ½ l2 ‖z‖² over z ≥ 0: the
    largest slope, or |slope| of a concept in use, over max_k (|D_k aᵀ| + Σ_j |D_k D_jᵀ| z_j +
    l1)."""
    A, D, Z = (np.asarray(M, np.float64) for M in (A, D, Z))
    slope = (A - Z @ D) @ D.T - l1 - l2 * Z
    scale = np.abs(A @ D.T) + Z @ np.abs(D @ D.T) + l1
    worst = np.where(Z > 0, np.abs(slope), np.maximum(slope, 0)).max(1)
    return worst / np.maximum(scale.max(1), 1e-300)


def penalised_squares(A, D, Z, l1=0.0, l2=0.0):
    """½‖a − z D‖² + l1 Σ z + ½ l2 ‖z‖² of each row."""
    A, D, Z = (np.asarray(M, np.float64) for M in (A, D, Z))
    squares = ((A - Z @ D) ** 2).sum(1) + l2 * (Z**2).sum(1)
    return 0.5 * squares + l1 * Z.sum(1)


def least_penalised_squares(A, D, l1=0.0, l2=0.0):
    """The least of penalised_squares for each row, over all supports of up to d concepts: the
    minimiser is the solution of a linear system on one of them, and needs no more without l2."""
    A, D = (np.asarray(M, np.float64) for M in (A, D))
    K, best = len(D), penalised_squares(A, D, np.zeros((len(A), len(D))))
    for size in range(1, K + 1 if l2 else min(K, D.shape[1]) + 1):
        for support in map(list, itertools.combinations(range(K), size)):
            B = D[support]
            gram = B @ B.T + l2 * np.eye(size)
            if np.linalg.cond(gram) > 1e12:
                continue
            Z = np.zeros((len(A), K))
            Z[:, support] = np.linalg.solve(gram, B @ A.T - l1).T
            value = penalised_squares(A, D, Z, l1, l2)
            best = np.where((Z >= 0).all(1) & (value < best), value, best)
    return best


def relative_difference(given, expected):
    """‖given − expected‖ / ‖expected‖ in float64."""
    given, expected = np.asarray(given, np.float64), np.asarray(expected, np.float64)
    norm = np.linalg.norm(expected)
    return float(np.linalg.norm(given - expected) / (norm if norm > 0 else 1))


def factors_difference(given, expected, A):
    """The larger relative difference of two pairs (Z, D), over the concepts that take part in the
    fit.

    Where the others fit A exactly, a concept is made of rounding alone: ‖Z_k‖ ‖D_k‖ is some 1e-16
    ‖A‖ and the scale of D_k arbitrary, in the loop as well. Such concepts must be as faint in
    `given`; they are compared no further.
    """
    strength, limit = (
        np.linalg.norm(Z, axis=0) * np.linalg.norm(D, axis=1) for Z, D in (expected, given)
    )
    floor = 30 * np.finfo(given[0].dtype).eps * np.linalg.norm(A)
    counted = strength > floor
    assert (limit[~counted] <= 2 * floor).all()
    Z, D = given
    return max(
        relative_difference(Z[:, counted], expected[0][:, counted]),
        relative_difference(D[counted], expected[1][counted]),
    )


def problem(n, d, K, seed=0, kind="plain"):
    """A (n, d) and a start Z (n, K), D (K, d) in float64, rectified Gaussian.

    kind: 'plain'; 'zero_rows' of A; 'zero_concepts' of D; 'zero_codes' of Z; 'duplicates' of
    concepts and of rows.
    """
    rng = np.random.default_rng(seed)
    A = np.maximum(rng.standard_normal((n, d)) + 0.3, 0)
    Z = np.abs(rng.standard_normal((n, K)))
    D = np.abs(rng.standard_normal((K, d)))
    if kind == "zero_rows":
        A[:: max(2, n // 3)] = 0
        A[:, -1] = 0
    elif kind == "zero_concepts":
        D[K // 2] = 0
    elif kind == "zero_codes":
        Z[:, K // 2] = 0
    elif kind == "duplicates":
        D[-1], Z[:, -1] = D[0], Z[:, 0]
        A[-1] = A[0]
    scale = (A * (Z @ D)).sum() / max(((Z @ D) ** 2).sum(), 1e-300)
    return A, Z * np.sqrt(scale), D * np.sqrt(scale)
