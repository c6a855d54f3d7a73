"""The divergence of a field: exact, or estimated by random probes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]


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
    """The trace of the Jacobian, by ``chunk`` batched backward passes at a time."""

    chunk: int = 64
    estimates: ClassVar[int] = 1
    random: ClassVar[bool] = False

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = _pullback(field, x)
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        trace = x.new_zeros(len(x))
        for rows in basis.split(self.chunk):
            probes = rows.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            trace = trace + (pull(probes) * probes).flatten(2).sum((0, 2))
        return value, trace[None]


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
        return value, (pull(self.probes) * self.probes).flatten(2).sum(2)


exact = Exact()
"""The exact divergence with its default chunk."""


def hutchinson(probe: Tensor) -> Hutchinson:
    """The estimator with one probe, shaped like the batch (B, ...)."""
    return Hutchinson(probe[None])


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
    Unbiased for probes independent of the sketch. Hutch++: Optimal Stochastic Trace Estimation,
    arXiv 2010.09649, algorithm 1. Raises ValueError for more directions than dimensions.
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
        rows = pull(self.sketch).flatten(2)
        q = torch.linalg.qr(rows.permute(1, 2, 0)).Q.permute(2, 0, 1)  # (m, B, D)
        inside = (pull(q.reshape(self.sketch.shape)).flatten(2) * q).sum((0, 2))
        v = self.probes.flatten(2).to(q)
        g = v - torch.einsum("mbd,mbe,kbe->kbd", q, q, v)
        outside = (pull(g.reshape(self.probes.shape)).flatten(2) * g).sum(2)
        return value, inside + outside


def _pullback(field: Field, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """field(x), and the map from K cotangents (K, B, ...) to K products v^T J."""
    with torch.inference_mode(False), torch.enable_grad():
        u = x.detach().clone().requires_grad_()
        value = field(u)

    def pull(cotangents: Tensor) -> Tensor:
        batched = len(cotangents) > 1
        v = cotangents if batched else cotangents[0]
        with torch.inference_mode(False):
            (rows,) = torch.autograd.grad(
                value, u, v.to(value).clone(), retain_graph=True, is_grads_batched=batched
            )
        return rows if batched else rows[None]

    return value.detach(), pull
