"""The divergence of a field: exact, or estimated by random probes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]

CACHE, MEMORY = 16 << 20, 1 << 30
"""Bytes of backward passes at a time: on a CPU more than its caches hold only slows it down."""


class Divergence(Protocol):
    """The divergence of a field at x (B, ...): ``estimates`` independent values, (estimates, B).

    A call returns field(x) with them; ``random`` says whether they scatter about the truth.
    """

    @property
    def estimates(self) -> int: ...
    @property
    def random(self) -> bool: ...

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Exact:
    """The trace of the Jacobian, by backward passes over as many directions as ``budget`` holds.

        tr J = sum_i e_i^T J e_i,   budget // (bytes that one pass over the batch keeps) at a time

    The budget is in bytes, by default 16 MiB on a CPU and 1 GiB elsewhere; it does not change the
    value. It also serves where probes are drawn for a solve (``held``) or for each node of a path
    (``at``): the exact trace needs none. Raises ValueError unless the budget is positive.
    """

    budget: int | None = None
    estimates: ClassVar[int] = 1
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.budget is not None and self.budget < 1:
            raise ValueError(f"need a budget of at least 1 byte, got {self.budget}")

    def held(self, x: Tensor, noise: object) -> Exact:
        """Itself: nothing is drawn for a solve."""
        return self

    def at(self, k: int, x: Tensor) -> Exact:
        """Itself, at every node of a path."""
        return self

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        kept = _Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda saved: saved):
            value, pull = _pullback(field, x)
        budget = self.budget or (CACHE if x.device.type == "cpu" else MEMORY)
        chunk = max(1, budget // max(kept.bytes, x.nbytes))
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        trace = x.new_zeros(len(x))
        for rows in basis.split(chunk):
            probes = rows.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            trace = trace + sum_from(2, pull(probes) * probes).sum(0)
        return value, trace[None]


class _Kept:
    """Counts the bytes of activations kept for a backward pass: a hook on what is saved."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()

    def __call__(self, saved: Tensor) -> Tensor:
        # Weights are there whatever the batch; what was computed from x has a graph.
        if saved.grad_fn is not None and saved.data_ptr() not in self._seen:
            self._seen.add(saved.data_ptr())
            self.bytes += saved.nbytes
        # An output kept with its graph would hold the node that keeps it, and never be freed.
        return saved.detach()


@dataclass(frozen=True)
class Hutchinson:
    """v^T J v for each of the fixed ``probes`` (K, B, ...) of unit covariance, each unbiased.

    The probes are held for a whole solve, so that the right-hand side stays smooth. FFJORD, arXiv
    1810.01367, eq. 8.
    """

    probes: Tensor
    random: ClassVar[bool] = True

    @property
    def estimates(self) -> int:
        return len(self.probes)

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = _pullback(field, x)
        return value, sum_from(2, pull(self.probes) * self.probes)


EXACT = Exact()


def rademacher(x: Tensor, probes: int = 1, generator: torch.Generator | None = None) -> Tensor:
    """Random signs (probes, *x.shape), the independent probes of least variance.

    Raises ValueError unless probes >= 1.
    """
    if probes < 1:
        raise ValueError(f"need at least 1 probe, got {probes}")
    bits = torch.randint(0, 2, (probes, *x.shape), generator=generator, device=x.device)
    return (2 * bits - 1).to(x.dtype)


@dataclass(frozen=True)
class HutchPlusPlus:
    """The trace on a sketched subspace exactly, Hutchinson's estimate on its complement.

        tr J ~ tr Q^T J Q + mean_k g_k^T J g_k,   Q = orth(J^T S),   g_k = (1 - Q Q^T) v_k

    ``sketch`` S and ``probes`` v are (m, B, ...), held for a whole solve; 3 m products in all.
    Unbiased for probes independent of the sketch. A column of J^T S that depends on those before
    it is left out of Q: its direction would be that of the rounding errors, which no adaptive
    solver can follow. Hutch++: Optimal Stochastic Trace Estimation, arXiv 2010.09649, algorithm 1.
    Raises ValueError for more directions than dimensions.
    """

    sketch: Tensor
    probes: Tensor
    random: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if len(self.sketch) > self.sketch[0, 0].numel():
            raise ValueError(
                f"a sketch of {len(self.sketch)} directions in {self.sketch[0, 0].numel()} "
                "dimensions; use the exact divergence"
            )

    @property
    def estimates(self) -> int:
        return len(self.probes)

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = _pullback(field, x)
        flat = (len(x), x[0].numel())
        q = _orthonormal(pull(self.sketch).reshape(-1, *flat))  # (m, B, D)
        inside = (pull(q.reshape(self.sketch.shape)).reshape(q.shape) * q).sum((0, 2))
        v = self.probes.reshape(-1, *flat).to(q)
        g = v - torch.einsum("mbd,mbe,kbe->kbd", q, q, v)
        outside = (pull(g.reshape(self.probes.shape)).reshape(g.shape) * g).sum(2)
        return value, inside + outside


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal vectors (m, B, D) of each sample's ``rows``, zero for a dependent one."""
    found: list[Tensor] = []
    least = math.sqrt(torch.finfo(rows.dtype).eps)
    for row in rows:
        rest = row
        for _ in range(2):  # the second pass takes out what rounding left of the first
            for q in found:
                rest = rest - (rest * q).sum(1, keepdim=True) * q
        length = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
        fresh = length > least * torch.linalg.vector_norm(row, dim=1, keepdim=True)
        found.append(torch.where(fresh, rest / length, 0))
    return torch.stack(found)


def sum_from(axis: int, x: Tensor) -> Tensor:
    """The sum over ``axis`` and all after it; of none, as for scalar samples, ``x`` itself."""
    return x.flatten(axis).sum(axis) if x.ndim > axis else x


def _pullback(field: Field, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """field(x), and the map from K cotangents (K, B, ...) to K products v^T J."""
    with torch.inference_mode(False), torch.enable_grad():
        u = x.detach().clone().requires_grad_()
        value = field(u)

    def product(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(value, u, cotangent, retain_graph=True)[0]

    def pull(cotangents: Tensor) -> Tensor:
        with torch.inference_mode(False), warnings.catch_warnings():
            v = cotangents.to(value).clone()
            if len(v) == 1:
                return product(v[0])[None]
            # An operation without a batching rule is looped over, which is all that can be done.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            # The flag is_grads_batched would loop over every convolution and normalisation.
            products: Tensor = torch.func.vmap(product)(v)
            return products

    return value.detach(), pull
