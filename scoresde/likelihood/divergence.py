"""The divergence of a vector field: exact, or estimated with random probes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from scoresde.arguments import Count, check, check_fields

Field = Callable[[Tensor], Tensor]

CACHE, MEMORY = 16 << 20, 1 << 30
"""Default budgets in bytes on a CPU, where exceeding its caches is slow, and elsewhere."""


class Divergence(Protocol):
    """Maps a field and x (B, ...) to field(x) and its divergence.

    The divergence has ``estimates`` independent values, (estimates, B); ``random`` is False if
    they are exact.
    """

    @property
    def estimates(self) -> int: ...
    @property
    def random(self) -> bool: ...

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Exact:
    """The trace of the Jacobian, tr J = sum_i e_i^T J e_i, by batched backward passes.

    ``budget`` limits the bytes that a batch of passes stores, by default to 16 MiB on a CPU and
    1 GiB elsewhere; it does not change the value. If x requires gradients all passes are one
    batch, since the graph keeps them anyway. ``held``, ``at`` and ``among`` let this class stand
    in for the estimators that draw probes. Raises ValueError unless the budget is positive.
    """

    budget: Count | None = None
    estimates: ClassVar[int] = 1
    random: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    def held(self, x: Tensor, noise: object) -> Exact:
        """Return self: nothing is drawn for a solve."""
        return self

    def at(self, k: int, x: Tensor) -> Exact:
        """Return self at every node of a path."""
        return self

    def among(self, rows: Tensor) -> Exact:
        """Return self for some samples of a batch."""
        return self

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        if _recorded(x):  # the graph keeps every product, in whatever batches
            value, pull = pullback(field, x)
            chunk = len(basis)
        else:
            activations = _SavedBytes()
            with torch.autograd.graph.saved_tensors_hooks(activations, lambda saved: saved):
                value, pull = pullback(field, x)
            budget = self.budget or (CACHE if x.device.type == "cpu" else MEMORY)
            chunk = max(1, budget // max(activations.bytes, x.nbytes))
        trace = x.new_zeros(len(x))
        for rows in basis.split(chunk):
            probes = rows.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)
            trace = trace + sum_from(2, pull(probes) * probes).sum(0)
        return value, trace[None]


class _SavedBytes:
    """A saved-tensor hook that counts the bytes of activations stored for a backward pass."""

    def __init__(self) -> None:
        self.bytes = 0
        self._seen: set[int] = set()

    def __call__(self, saved: Tensor) -> Tensor:
        # Weights do not grow with the batch; only tensors computed from x have a graph.
        if saved.grad_fn is not None and saved.data_ptr() not in self._seen:
            self._seen.add(saved.data_ptr())
            self.bytes += saved.nbytes
        # Saving an output with its graph makes a reference cycle, which is never freed.
        return saved.detach()


@dataclass(frozen=True)
class Hutchinson:
    """Unbiased estimates v^T J v, one per probe v in ``probes`` (K, B, ...) of unit covariance.

    The probes are fixed for a whole solve, so that the right-hand side is smooth. FFJORD, arXiv
    1810.01367, eq. 8.
    """

    probes: Tensor
    random: ClassVar[bool] = True

    @property
    def estimates(self) -> int:
        return len(self.probes)

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        value, pull = pullback(field, x)
        return value, sum_from(2, pull(self.probes) * self.probes)


EXACT = Exact()


def rademacher(x: Tensor, probes: Count = 1, generator: torch.Generator | None = None) -> Tensor:
    """Random signs (probes, *x.shape), the independent probes of least variance."""
    check(rademacher, locals())
    bits = torch.randint(0, 2, (probes, *x.shape), generator=generator, device=x.device)
    return (2 * bits - 1).to(x.dtype)


@dataclass(frozen=True)
class HutchPlusPlus:
    """The exact trace on a sketched subspace, Hutchinson's estimate on its complement.

        tr J ~ tr Q^T J Q + mean_k g_k^T J g_k,   Q = orth(J^T S),   g_k = (1 - Q Q^T) v_k

    ``sketch`` S and ``probes`` v are (m, B, ...) and fixed for a whole solve; a call takes 3 m
    products. The estimate is unbiased if the probes are independent of the sketch. Raises
    ValueError for more directions than dimensions. Hutch++: Optimal Stochastic Trace Estimation,
    arXiv 2010.09649, algorithm 1.
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
        value, pull = pullback(field, x)
        flat = (len(x), x[0].numel())
        q = _orthonormal(pull(self.sketch).reshape(-1, *flat))  # (m, B, D)
        inside = (pull(q.reshape(self.sketch.shape)).reshape(q.shape) * q).sum((0, 2))
        v = self.probes.reshape(-1, *flat).to(q)
        g = v - torch.einsum("mbd,mbe,kbe->kbd", q, q, v)
        outside = (pull(g.reshape(self.probes.shape)).reshape(g.shape) * g).sum(2)
        return value, inside + outside


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal vectors (m, B, D) from the ``rows`` of each sample, zero for a dependent one.

    A row is dependent if less than a thousandth of it is outside the span of those before. Its
    direction would consist of the rounding errors of a float32 network, which no adaptive solver
    can follow.
    """
    found: list[Tensor] = []
    for row in rows:
        rest = row
        for _ in range(2):  # the second pass removes rounding errors of the first
            for q in found:
                rest = rest - (rest * q).sum(1, keepdim=True) * q
        length = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
        fresh = length > 1e-3 * torch.linalg.vector_norm(row, dim=1, keepdim=True)
        found.append(torch.where(fresh, rest / length, 0))
    return torch.stack(found)


def sum_from(axis: int, x: Tensor) -> Tensor:
    """The sum over ``axis`` and all later axes; ``x`` itself if it has none of them."""
    return x.flatten(axis).sum(axis) if x.ndim > axis else x


def pullback(field: Field, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """field(x), and the map from cotangents (K, B, ...) to products v^T J.

    Both have an autograd graph if x requires gradients. Raises ValueError for a value that
    autograd cannot differentiate with respect to x.
    """
    record = _recorded(x)
    with torch.inference_mode(False), torch.enable_grad():
        u = x if record else x.detach().clone().requires_grad_()
        value = field(u)
    options = {"retain_graph": True, "create_graph": record, "allow_unused": True}

    def product(cotangent: Tensor) -> Tensor:
        graph = value.requires_grad
        found = torch.autograd.grad(value, u, cotangent, **options)[0] if graph else None
        if found is None:
            raise ValueError(
                "denoiser: its value has no autograd graph to x, so its divergence is unknown; "
                "remove torch.no_grad, inference_mode and detach from it (a constant c is c + 0 x)"
            )
        return found

    def pull(cotangents: Tensor) -> Tensor:
        with torch.inference_mode(False), warnings.catch_warnings():
            v = cotangents.to(value).clone()
            if len(v) == 1:
                return product(v[0])[None]
            # vmap loops over an operation without a batching rule and warns; nothing is faster.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            # is_grads_batched would loop over every convolution and normalisation.
            try:
                products: Tensor = torch.func.vmap(product)(v)
            except RuntimeError:  # it cannot batch maps of channels-last layout, as in diffusers
                products = torch.stack([product(w) for w in v])
            return products

    return value if record else value.detach(), pull


def _recorded(x: Tensor) -> bool:
    """True if autograd records what is computed from x."""
    return x.requires_grad and torch.is_grad_enabled()
