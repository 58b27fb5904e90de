"""Data of tests of starts, and starts of data in memory."""

from __future__ import annotations

import torch

from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.init.start import start
from fastnmf.init.svd import products, right_vectors

DTYPES = [torch.float32, torch.float64]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def activations(n, d, dtype=torch.float32, seed=0):
    """Non-negative, half zero, correlated."""
    generator = seeded(seed)
    codes = torch.randn(n, d, generator=generator, dtype=dtype).relu()
    mixing = torch.eye(d, dtype=dtype) + 0.1 * torch.randn(d, d, generator=generator, dtype=dtype)
    return (codes @ mixing).relu()


def low_rank(n, d, rank, dtype=torch.float32, seed=0):
    generator = seeded(seed)
    return torch.rand(n, rank, generator=generator, dtype=dtype) @ torch.rand(
        rank, d, generator=generator, dtype=dtype
    )


def loss(A, Z, D):
    return (A.double() - Z.double() @ D.double()).square().sum().item()


def started(A, K, init="auto", generator=None):
    """(Z, D) that a fit of A begins with. Z is written over NaN."""
    data = Data(A)
    codes = InMemory(data.like.new_full((len(A), K), torch.nan))
    D = start(data, codes, K, init, generator)
    return codes.Z, D


def leading_svd(A, K, generator=None):
    """U (n, K), S (K,), Vt (K, d) by the vectors from which NNDSVDa starts."""
    X = products(Data(A))
    V, inverse = right_vectors(X, K, generator)
    tall = A.shape[0] >= A.shape[1]
    U = (A if tall else A.T) @ (V * inverse)
    norms = torch.linalg.vector_norm(U, dim=0)
    U /= norms.clamp(min=torch.finfo(U.dtype).tiny)
    return (U, norms / inverse, V.T) if tall else (V, norms / inverse, U.T)
