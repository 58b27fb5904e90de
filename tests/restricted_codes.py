"""Sparse codes, their residual and a dictionary, for tests of restricted half-steps."""

from __future__ import annotations

import warnings

import torch


def compressed(Z, index):
    with warnings.catch_warnings():
        # that CSR is in beta
        warnings.simplefilter("ignore", UserWarning)
        parts = Z.to_sparse_csr()
    return parts.crow_indices().to(index), parts.col_indices().to(index), parts.values()


def drawn(m, K, p, dtype, index):
    """Codes Z (m, K) of which the first row and the last concept are zero, also as parts, their
    residual, and a dictionary with a zero concept."""
    generator = torch.Generator().manual_seed(m + K)

    def numbers(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    Z = numbers(m, K) * (numbers(m, K) < 0.2)
    if m > 1:
        Z[0], Z[:, -1] = 0, 0
    D = numbers(K, p)
    if K > 1:
        D[K // 2] = 0
    E = numbers(m, p) - 0.4
    return Z, compressed(Z, index), E, D
