"""The order of training examples as a function of (seed, step).

Up to ``LARGEST_TABLE`` examples an epoch is a permutation in memory. Above, it is a bijection of
0 .. n-1 computed index by index, so the cost of a batch does not depend on n.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

LARGEST_TABLE = 2**24
"""Most examples for which a permutation is stored: 128 MiB of int64."""

ROUNDS = 8


def batch_indices(n: int, batch: int, seed: int, step: int) -> Tensor:
    """The ``batch`` indices into ``n`` examples of training step ``step`` = 0, 1, ..., int64.

    Batches are consecutive parts of a sequence of random permutations of 0 .. n-1, one per epoch;
    a batch may extend over several epochs. Raises ValueError for sizes below 1.
    """
    if n < 1 or batch < 1 or step < 0:
        raise ValueError(f"n {n}, batch {batch}, step {step}: sizes start at 1, steps at 0")
    first, last = step * batch, (step + 1) * batch
    epochs = range(first // n, (last - 1) // n + 1)
    return torch.cat(
        [_visited(n, seed, e, max(first - e * n, 0), min(last - e * n, n)) for e in epochs]
    )


def scattered(index: Tensor, n: int, *key: int) -> Tensor:
    """A pseudorandom bijection of 0 .. n-1, selected by ``key``, at ``index``, int64.

    An unbalanced Feistel network permutes 0 .. 2^bits - 1, the smallest such range that contains
    0 .. n-1, and is repeated until the value is below n, less than twice on average. Black and
    Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.
    """
    bits = max(n - 1, 1).bit_length()
    keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
    x = index.numpy().astype(np.uint64)
    outside = np.ones(x.shape, bool)
    while outside.any():
        x[outside] = _feistel(x[outside], bits, keys)
        outside = x >= n
    return torch.from_numpy(x.astype(np.int64))


def _visited(n: int, seed: int, epoch: int, first: int, last: int) -> Tensor:
    """The examples at positions first .. last-1 of an epoch."""
    if n > LARGEST_TABLE:
        return scattered(torch.arange(first, last), n, seed, epoch)
    return _permutation(n, seed, epoch)[first:last]


@lru_cache(maxsize=2)  # a batch may extend over two epochs
def _permutation(n: int, seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))


def _feistel(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """Alternately XOR each half with a hash of the other, which is invertible for any hash."""
    low = np.uint64(bits // 2)
    left, right = x >> low, x & _ones(low)
    for round_, key in enumerate(keys):
        if round_ % 2:
            right = right ^ (_mixed(left ^ key) & _ones(low))
        else:
            left = left ^ (_mixed(right ^ key) & _ones(np.uint64(bits) - low))
    joined: np.ndarray = (left << low) | right
    return joined


def _ones(bits: np.uint64) -> np.uint64:
    return np.uint64((1 << int(bits)) - 1)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: Steele, Lea and Flood, OOPSLA 2014, figure 16."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
