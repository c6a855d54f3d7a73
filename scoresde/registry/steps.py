"""The table of steps, and their construction from a section of a configuration."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from scoresde import samplers
from scoresde.arguments import (
    Count,
    NonNegative,
    Open,
    Positive,
    Range,
    arguments,
    check,
    check_fields,
)
from scoresde.denoiser import Denoiser
from scoresde.registry.tables import Table, constructor, summary
from scoresde.samplers import EPS, X0, Noise, Prediction, Residual, State, Step, V, solve_adaptive
from scoresde.samplers.adaptive import DORMAND_PRINCE, EXPONENTIAL, Pair
from scoresde.samplers.integrals import Variable, clock, log_snr, ratio, share
from scoresde.samplers.kernels import held_flow
from scoresde.sde import match


def churnable(make: Callable[[], Step]) -> Callable[..., Step]:
    """A constructor that adds the churn of EDM's stochastic sampler to a step.

    With ``s_churn`` 0 it returns the step alone. EDM, arXiv 2206.00364, algorithm 2.
    """

    def build(
        s_churn: NonNegative = 0.0,
        s_tmin: NonNegative = 0.0,
        s_tmax: Positive = math.inf,
        s_noise: NonNegative = 1.0,
        steps: Count = 18,
    ) -> Step:
        churned = samplers.Churned(make(), s_churn, s_tmin, s_tmax, s_noise, steps)
        return churned if s_churn else churned.step

    settings = inspect.cleandoc(samplers.Churned.__doc__ or "").partition("Args:")[2]
    build.__doc__ = f"{summary(make)}.\n\nArgs:{settings}"
    build.__name__ = build.__qualname__ = make.__name__
    return build


def euler() -> Step:
    """Euler's method in sigma / alpha on the probability flow, which is DDIM without noise."""
    return samplers.DDIM()


def predictor_corrector(snr: Open = 0.16, corrector_steps: Count = 1) -> Step:
    """Predictor-corrector: Langevin steps at fixed time, then a reverse-diffusion step.

    Args:
        snr: size of a corrector step, as a signal-to-noise ratio.
        corrector_steps: number of corrector steps at each time.
    """
    kernel = samplers.Langevin(snr, corrector_steps)
    return samplers.Corrected(samplers.ReverseDiffusion(), kernel)


def annealed_langevin(snr: Open = 0.176, corrector_steps: Count = 5) -> Step:
    """Predictor-corrector with the Langevin settings of NCSNv2, several small steps per time.

    Args:
        snr: size of a corrector step, as a signal-to-noise ratio.
        corrector_steps: number of corrector steps at each time.
    """
    kernel = samplers.annealed_langevin(snr, corrector_steps)
    return samplers.Corrected(samplers.ReverseDiffusion(), kernel)


def restart(
    low: Positive = 0.05, high: Positive = 0.3, times: Count = 1, inner_steps: Count = 3
) -> Step:
    """Restart sampling: Heun's method, with noise added from low up to high (sigma / alpha).

    Args:
        low: sigma / alpha at or below which the restart begins.
        high: sigma / alpha up to which noise is added.
        times: number of repetitions.
        inner_steps: least number of steps down in each repetition; a finer grid takes more.
    """
    return samplers.Restart(samplers.Heun(), low, high, times, inner_steps)


def recommended(eta: NonNegative = 0.0, std: Positive | None = None, steps: Count = 18) -> Step:
    """UniPC on the residual of Gaussian data, without a start; with noise, eab_sde; the default.

    Args:
        eta: size of the noise: 0 for none, 1 for the reverse SDE; 0.25 suffices to damp errors.
        std: standard deviation of the data in model units, which the default grid follows; by
            default that of the model's data.
        steps: number of grid steps, one network call each.
    """
    return samplers.recommended(steps + 1, eta, Residual.std if std is None else std)[0]


def dpm_fast(steps: Count = 10) -> Step:
    """DPM-Solver-fast: steps of order 3, then orders 2 and 1, in 3 (steps - 1) network calls.

    Args:
        steps: number of grid steps.
    """
    check(dpm_fast, locals())
    return samplers.dpm_fast(max(3 * (steps - 1), 1))


@dataclass(frozen=True)
class DPMAdaptive:
    """The probability flow at a tolerance, with an adaptive step size per sample.

    ``solve_adaptive`` runs inside each interval of the grid, which should have only one. It uses
    the 5(4) pair, or with ``exponential`` the 3(2) pair of the DPM-Solver paper. ``nfe_per_step``
    is its smallest cost. Samples that do not reach the end within ``max_nfe`` calls take a DDIM
    step from where they are, with a RuntimeWarning.

    Args:
        rtol: relative tolerance per sample.
        atol: absolute tolerance per sample.
        max_nfe: maximum number of network calls.
        exponential: use the 3(2) pair of DPM-Solver instead of the Dormand-Prince 5(4) pair.
    """

    rtol: Positive = 1e-3
    atol: Positive = 1e-3
    max_nfe: Count = 1000
    exponential: bool = False
    self_paced: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def _pair(self) -> Pair:
        return EXPONENTIAL if self.exponential else DORMAND_PRINCE

    @property
    def order(self) -> int:
        return self._pair.order

    @property
    def nfe_per_step(self) -> int:
        return self._pair.calls + 1

    def __call__(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, State]:
        if float(denoiser.sde.sigma(s)) == 0:  # lam is infinite there
            return _last_step(denoiser, x, t, s), None
        limits = (self.rtol, self.atol, self.max_nfe)
        grad = torch.is_grad_enabled()
        end = solve_adaptive(denoiser, x, float(t), float(s), *limits, pair=self._pair, grad=grad)
        late = int((~end.finished).sum())
        if not late:
            return end.x, None
        warnings.warn(
            f"dpm_adaptive: {late} of {len(x)} samples did not reach t={float(s):g} within "
            f"max_nfe={self.max_nfe} calls and took one DDIM step; raise it, or rtol and atol",
            RuntimeWarning,
            stacklevel=2,
        )
        return _last_step(denoiser, end.x, end.t, s), None


def _last_step(denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The DDIM step to ``s`` from a time per sample (B,); it leaves samples at ``s`` unchanged."""
    sde, lam = denoiser.sde, denoiser.sde.lam(t)
    w = held_flow(x / match(sde.norm(t), x), denoiser(x, t), lam, sde.lam(s) - lam)
    return match(sde.norm(s), x) * w


def eab_sde(
    points: Annotated[int, Range(ge=1, le=4)] = 2, eta: NonNegative = 1.0, std: NonNegative = 0.0
) -> Step:
    """Stochastic exponential Adams-Bashforth on the residual of Gaussian data.

    Args:
        points: number of network evaluations that a step combines.
        eta: size of the noise: 0 for none, 1 for the reverse SDE.
        std: standard deviation of the Gaussian data for which the solver is exact.
    """
    return samplers.StochasticMultistep(points, eta, std)


STEPS: Table[Callable[..., Step]] = Table(
    {
        "recommended": recommended,
        "euler": churnable(euler),
        "heun": churnable(samplers.Heun),
        "dpm_2": churnable(samplers.dpm_2),
        "dpmpp_2s": samplers.dpmpp_2s,
        "dpm_solver_singlestep": samplers.dpm_solver_singlestep,
        "dpm_fast": dpm_fast,
        "dpm_adaptive": DPMAdaptive,
        "dpm_solver": samplers.dpm_solver,
        "dpmpp_2m": samplers.dpmpp_2m,
        "dpmpp_3m": samplers.dpmpp_3m,
        "unipc": samplers.unipc,
        "eab": samplers.eab,
        "deis": samplers.deis,
        "lms": samplers.lms,
        "plms": samplers.plms,
        "ipndm": samplers.ipndm,
        "ipndm_v": samplers.ipndm_v,
        "ddim": samplers.DDIM,
        "ddpm": samplers.ddpm,
        "ancestral": samplers.ancestral,
        "euler_a": samplers.euler_a,
        "dpm_2_a": samplers.DPM2A,
        "dpmpp_2s_a": samplers.DPMpp2SA,
        "dpmpp_sde": samplers.DPMppSDE,
        "dpmpp_2m_sde": samplers.dpmpp_2m_sde,
        "dpmpp_3m_sde": samplers.dpmpp_3m_sde,
        "sa_solver": samplers.SASolver,
        "eab_sde": eab_sde,
        "restart": restart,
        "euler_maruyama": samplers.EulerMaruyama,
        "reverse_diffusion": samplers.ReverseDiffusion,
        "pc": predictor_corrector,
        "annealed_langevin": annealed_langevin,
    },
    supplied=("steps",),
)
# Steps that choose their own step sizes inside an interval of the grid.
SELF_PACED = frozenset(name for name, make in STEPS.items() if hasattr(make, "self_paced"))
PREDICTIONS: Table[Prediction] = Table(
    {"eps": EPS, "x0": X0, "v": V, "residual": Residual()}, constructs=False
)
VARIABLES: Table[Variable] = Table(
    {"log_snr": log_snr, "ratio": ratio, "share": share, "clock": clock}, constructs=False
)
OBJECTS: Mapping[str, Table[Any]] = {"prediction": PREDICTIONS, "variable": VARIABLES}


def build_step(
    kind: str, options: Mapping[str, Any], steps: int, std: float | None = None
) -> Step:
    """Build the step of a configuration, for a grid of ``steps`` steps.

    An option that is None has the default of the constructor, and the option ``std`` the value
    ``std``, that of the model's data. Raises UnknownName for an unknown kind, ValueError for
    invalid options.
    """
    make = constructor(STEPS, kind)
    known = arguments(make)
    if "std" in known and known["std"].default is None:
        options = {"std": std, **{name: o for name, o in options.items() if o is not None}}
    given = {name: _resolved(name, value) for name, value in options.items() if value is not None}
    return make(**given, **({"steps": steps} if "steps" in known else {}))


def grid_steps(step: Step, steps: int) -> int:
    """Number of grid steps for a step: 1 if it chooses its own step sizes, else ``steps``."""
    return 1 if hasattr(step, "self_paced") else steps


def _resolved(option: str, value: Any) -> Any:
    """The object that an option names, or its value if it takes no name."""
    return constructor(OBJECTS[option], value) if option in OBJECTS else value
