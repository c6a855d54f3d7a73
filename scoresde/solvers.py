"""Black-box back-ends: the probability flow through torchdiffeq, the reverse SDE through torchsde.

All processes have the same equation in w = x / sqrt(alpha^2 + sigma^2) and lam (docs/theory.md,
section 3):

    dw/dlam = a (x0_hat - a w),                                 a^2 = 1 / (1 + exp(-2 lam))   (8)
    dw = [a (x0_hat - a w) + eta^2 (a x0_hat - w)] dlam + eta sqrt(2) b dW,     b^2 = 1 - a^2 (9)

The solvers integrate these: w has unit size for data of unit size, and sampling runs forwards in
lam.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde.arguments import Count, Positive, check, check_fields
from scoresde.denoiser import Denoiser
from scoresde.sde import FAINTEST, SDE, floating, sent, unit_alpha

ADAPTIVE_METHODS = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun", "scipy_solver")
FIXED_STEP_METHODS = (
    "euler",
    "midpoint",
    "heun2",
    "heun3",
    "rk4",
    "explicit_adams",
    "implicit_adams",
    "fixed_adams",
)
ODE_METHODS = (*ADAPTIVE_METHODS, *FIXED_STEP_METHODS)
SDE_METHODS = ("euler", "milstein", "srk")


class SolverError(RuntimeError):
    """A solve failed; the message names the solver, the position and a remedy."""


class Solution(NamedTuple):
    """The end state of a solve, shaped like its start, and the number of denoiser calls."""

    x: Tensor
    nfe: int


def solve_ode(
    denoiser: Denoiser,
    x: Tensor,
    t0: Tensor | float,
    t1: Tensor | float,
    *,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int = 50,
    max_nfe: int = 10_000,
    grad: bool = False,
) -> Solution:
    """Solve the probability flow (8) from time ``t0`` to ``t1``, in either direction.

    torchdiffeq uses one step size for the whole batch.

    Args:
        denoiser: the model.
        x: states (B, ...) at ``t0``.
        t0: initial time.
        t1: final time.
        method: one of ``ODE_METHODS``.
        rtol: relative tolerance of an adaptive method.
        atol: absolute tolerance of an adaptive method, in units of w.
        steps: equal steps of lam of a fixed-step method.
        max_nfe: limit on the denoiser calls.
        grad: keep the autograd graph of the result to ``x`` and to the parameters of the model;
            without it the result has none, even if ``x`` requires gradients.

    Raises ValueError for an unknown method, or ``grad`` with scipy_solver, SolverError if a
    tolerance or ``max_nfe`` cannot be met.
    """
    sde, flow, x = denoiser.sde, Flow(denoiser), floating(x if grad else x.detach())
    start, end = time_of(sde, t0), time_of(sde, t1)
    require_samples(x)
    tolerance = Tolerance(method, rtol, atol, steps, max_nfe, grad)
    w = integrate(
        flow, x / float(sde.norm(start)), float(sde.lam(start)), float(sde.lam(end)), tolerance
    )
    return Solution(w * float(sde.norm(end)), flow.nfe)


def solve_sde(
    denoiser: Denoiser,
    x: Tensor,
    t0: Tensor | float,
    t1: Tensor | float,
    steps: Count,
    *,
    method: str = "euler",
    eta: float = 1.0,
    seed: int | None = None,
) -> Tensor:
    """Solve the reverse SDE (9) from time ``t0`` to ``t1`` in equal steps of lam.

    The result has no autograd graph.

    Args:
        denoiser: the model.
        x: states (B, ...) at ``t0``.
        t0: initial time.
        t1: final time, below ``t0``.
        steps: number of steps.
        method: one of ``SDE_METHODS`` (Ito).
        eta: scale of the noise; 1 is the reverse SDE, 0 the probability flow.
        seed: random seed of the Brownian path.

    Raises ValueError for arguments out of range, SolverError for a state that is not finite.
    """
    import torchsde

    check(solve_sde, locals())
    if method not in SDE_METHODS:
        raise ValueError(f"unknown SDE method {method!r}; choose one of {', '.join(SDE_METHODS)}")
    if not 0 <= eta < math.inf:
        raise ValueError(f"need 0 <= eta < inf, got eta={eta:g}")
    require_samples(x)
    sde, flow, x = denoiser.sde, Flow(denoiser), floating(x.detach())
    first, last = time_of(sde, t0), time_of(sde, t1)
    # Without signal x is the same noise at all lam.
    lam0, lam1 = max(float(sde.lam(first)), FAINTEST), float(sde.lam(last))
    if not lam0 < lam1:
        raise ValueError(
            "the reverse SDE runs from a noisy t0 to a cleaner t1 < t0; SDE.perturb adds noise"
        )
    start = (x / float(sde.norm(first))).flatten(1)
    path = torchsde.BrownianInterval(
        t0=lam0,
        t1=lam1,
        size=start.shape,
        dtype=x.dtype,
        device=x.device,
        entropy=seed,
        dt=(lam1 - lam0) / steps,
        levy_area_approximation="space-time",
    )
    reverse = _ReverseSDE(flow, eta, x.shape)
    span = torch.tensor([lam0, lam1], dtype=torch.float64)
    with torch.no_grad():
        # Slightly longer, so that rounding never adds a step.
        dt = (lam1 - lam0) / steps * (1 + 1e-9)
        w: Tensor = torchsde.sdeint(reverse, start, span, bm=path, method=method, dt=dt)[-1]
    require_finite(w, f"torchsde {method}", "use more steps")
    return w.reshape(x.shape) * float(sde.norm(last))


@dataclass(frozen=True)
class Tolerance:
    """The method of a solve, its tolerances or number of steps, and the limit on calls.

    ``grad`` keeps the autograd graph.
    """

    method: str = "dopri5"
    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    steps: Count = 50
    max_nfe: Count = 10_000
    grad: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.method not in ODE_METHODS:
            raise ValueError(
                f"unknown ODE method {self.method!r}; choose one of {', '.join(ODE_METHODS)}"
            )
        if self.grad and self.method == "scipy_solver":
            raise ValueError(
                "grad: scipy_solver leaves autograd; choose another method, such as dopri5"
            )

    def options(self, lam0: float, lam1: float) -> dict[str, Any]:
        if self.method in FIXED_STEP_METHODS:
            return {"step_size": abs(lam1 - lam0) / self.steps}
        if self.method == "scipy_solver":
            return {"solver": "RK45"}
        # Without step_t the adaptive solvers step past the end and interpolate back.
        return {
            "step_t": torch.tensor([lam1], dtype=torch.float64),
            "dtype": torch.float64,
            "norm": _norm,
        }


def _norm(state: Any) -> Any:
    """The norm that chooses the steps of torchdiffeq: the largest root mean square of all parts.

    It is detached: the gradient of a solution is that through the steps taken, and the rate knows
    lam as a number only.
    """
    if isinstance(state, Tensor):
        return state.detach().square().mean().sqrt()
    return max(_norm(part) for part in state)


def integrate(
    rate: Callable[[float, Any], Any], start: Any, lam0: float, lam1: float, tolerance: Tolerance
) -> Any:
    """Solve d(state)/dlam = rate(lam, state) with torchdiffeq, for a tensor or a tuple.

    Raises SolverError, stating the lam reached, if the solver fails or the result is not finite.
    """
    if lam0 == lam1:
        return start
    from torchdiffeq import odeint

    guard = _Guard(rate, tolerance, min(lam0, lam1), max(lam0, lam1))
    span = torch.tensor([lam0, lam1], dtype=torch.float64)
    # torchdiffeq keeps its times beside the state, so that it waits for the device at every call.
    span = sent(span, (start[0] if isinstance(start, tuple) else start).device)
    try:
        with torch.set_grad_enabled(tolerance.grad), warnings.catch_warnings():
            # torchdiffeq passes scipy an unknown option.
            warnings.filterwarnings("ignore", message=".*no effect for a chosen solver.*")
            path = odeint(
                guard,
                start,
                span,
                rtol=tolerance.rtol,
                atol=tolerance.atol,
                method=tolerance.method,
                options=tolerance.options(lam0, lam1),
            )
    except AssertionError as error:  # torchdiffeq reports a vanishing step this way
        raise SolverError(f"torchdiffeq {guard.where()}: {error}; loosen rtol and atol") from error
    end = tuple(p[-1] for p in path) if isinstance(path, tuple) else path[-1]
    for part in end if isinstance(end, tuple) else (end,):
        require_finite(
            part, f"torchdiffeq {guard.where()}", "check the model, or tighten the tolerances"
        )
    return end


@dataclass
class _Guard:
    """A right-hand side that records its position and limits the number of calls."""

    rate: Callable[[float, Any], Any]
    tolerance: Tolerance
    low: float
    high: float
    lam: float = math.nan
    calls: int = 0
    last: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __call__(self, lam: Tensor, state: Any) -> Any:
        at = float(lam)
        if math.isnan(at):  # the step follows a rate that is not finite
            require_finite(self.last, f"torchdiffeq {self.where()}", "check the model")
        # The search for a first step may look far beyond the end.
        self.lam, self.calls = min(max(at, self.low), self.high), self.calls + 1
        if self.calls > self.tolerance.max_nfe:
            raise SolverError(
                f"torchdiffeq {self.where()}: {self.tolerance.max_nfe} network calls without "
                "reaching the end; loosen rtol and atol or raise max_nfe"
            )
        found = self.rate(self.lam, state)
        self.last = found[0] if isinstance(found, tuple) else found
        return found

    def where(self) -> str:
        return f"{self.tolerance.method} at log-SNR {2 * self.lam:.3g}"


@dataclass
class Flow:
    """The right-hand side of (8), counting its denoiser calls."""

    denoiser: Denoiser
    nfe: int = field(default=0, init=False)

    def __call__(self, lam: float, w: Tensor) -> Tensor:
        a = unit_alpha(lam)
        return a * (self.x0(w, lam) - a * w)

    def x0(self, w: Tensor, lam: float) -> Tensor:
        """x0_hat at w."""
        self.nfe += 1
        t = self.denoiser.sde.time(torch.tensor(lam, dtype=torch.float64))
        return self.denoiser(w * float(self.denoiser.sde.norm(t)), t)


class _ReverseSDE(nn.Module):
    """(9) in the form of torchsde: flattened state, drift f and diagonal diffusion g."""

    noise_type = "diagonal"
    sde_type = "ito"

    def __init__(self, flow: Flow, eta: float, shape: torch.Size) -> None:
        super().__init__()
        self.flow, self.eta, self.shape = flow, eta, shape

    def f(self, lam: Tensor, w: Tensor) -> Tensor:
        a = unit_alpha(float(lam))
        x0 = self.flow.x0(w.reshape(self.shape), float(lam)).flatten(1)
        return a * (x0 - a * w) + self.eta**2 * (a * x0 - w)

    def g(self, lam: Tensor, w: Tensor) -> Tensor:
        # The zero keeps a graph to w, which Milstein's vanishing correction term differentiates.
        return self.eta * math.sqrt(2) * unit_alpha(-float(lam)) + 0 * w


def time_of(sde: SDE, t: Tensor | float) -> Tensor:
    """A time as a 0-dim float64 tensor on the host; raises ValueError outside (0, t_max]."""
    time = torch.as_tensor(t, dtype=torch.float64).cpu()
    if not 0 < float(time) <= sde.t_max:
        raise ValueError(f"time {float(time):g} is outside (0, {sde.t_max:g}]")
    return time


def require_samples(x: Tensor) -> None:
    """Raise ValueError for an empty batch."""
    if len(x) == 0:
        raise ValueError("the batch is empty; give at least one sample")


def require_continuous(x: Tensor) -> None:
    """Raise ValueError for an empty batch, or integer levels, which have no density."""
    require_samples(x)
    if not x.is_floating_point():
        raise ValueError(
            f"integer levels ({x.dtype}) have no density; dequantise them first, for instance "
            "with likelihood.Uniform"
        )


def require_finite(x: Tensor, solver: str, remedy: str) -> None:
    """Raise SolverError, stating their number, for samples that are not finite."""
    if bad := int((~x.isfinite()).unsqueeze(-1).flatten(1).any(1).sum()):
        raise SolverError(f"{solver}: {bad} of {len(x)} samples are not finite; {remedy}")
