"""The steps by name, and how a configuration's section becomes one."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

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
    """The constructor of a step that may climb to more noise on the way: EDM's stochastic sampler.

    Without ``s_churn`` it is the step itself. EDM, arXiv 2206.00364, algorithm 2.
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
    """Euler's step in sigma / alpha on the probability flow: DDIM without noise."""
    return samplers.DDIM()


def predictor_corrector(snr: Open = 0.16, corrector_steps: Count = 1) -> Step:
    """Predictor-corrector: a reverse-diffusion step after Langevin steps at the same time.

    Args:
        snr: size of a corrector step, as a ratio of signal to noise.
        corrector_steps: corrector steps at each time.
    """
    kernel = samplers.Langevin(snr, corrector_steps)
    return samplers.Corrected(samplers.ReverseDiffusion(), kernel)


def annealed_langevin(snr: Open = 0.176, corrector_steps: Count = 5) -> Step:
    """Predictor-corrector with the Langevin settings of NCSNv2: several smaller steps a level.

    Args:
        snr: size of a corrector step, as a ratio of signal to noise.
        corrector_steps: corrector steps at each time.
    """
    kernel = samplers.annealed_langevin(snr, corrector_steps)
    return samplers.Corrected(samplers.ReverseDiffusion(), kernel)


def restart(
    low: Positive = 0.05, high: Positive = 0.3, times: Count = 1, inner_steps: Count = 3
) -> Step:
    """Heun's step, and once below ``low`` back up to ``high``: Restart, in sigma / alpha.

    Args:
        low: noise sigma / alpha below which a sample goes back up.
        high: noise sigma / alpha that it goes back up to.
        times: number of times it goes back.
        inner_steps: steps of each way down.
    """
    return samplers.Restart(samplers.Heun(), low, high, times, inner_steps)


def recommended(eta: NonNegative = 0.0, steps: Count = 18) -> Step:
    """The default: exponential Adams-Bashforth on what Gaussian data would leave over.

    Args:
        eta: noise: 0 none, 1 that of the reverse SDE; 0.25 is enough to forget errors.
        steps: steps of the grid, one network call each.
    """
    return samplers.recommended(steps + 1, eta)[0]


def dpm_fast(steps: Count = 10) -> Step:
    """DPM-Solver-fast: steps of order 3, the last two of orders 2 and 1; 3 (steps - 1) calls.

    Args:
        steps: steps of the grid.
    """
    check(dpm_fast, locals())
    return samplers.dpm_fast(max(3 * (steps - 1), 1))


@dataclass(frozen=True)
class DPMAdaptive:
    """The probability flow at a tolerance, every sample by steps of its own: ``solve_adaptive``.

    By the 5(4) pair, or ``exponential`` the 3(2) pair of the DPM-Solver paper. It takes its own
    steps inside those of a grid, which had better be one: ``nfe_per_step`` is the least it costs.
    Samples that ``max_nfe`` calls do not bring to the end of a step take a DDIM step from where
    they are, with a RuntimeWarning.

    Args:
        rtol: relative tolerance of each sample.
        atol: absolute tolerance of each sample.
        max_nfe: most network calls.
        exponential: take the 3(2) pair of DPM-Solver instead of the 5(4) pair.
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
        end = solve_adaptive(denoiser, x, float(t), float(s), *limits, pair=self._pair)
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
    """The DDIM step from a time of each sample's own (B,) to ``s``; none from there."""
    sde, lam = denoiser.sde, denoiser.sde.lam(t)
    w = held_flow(x / match(sde.norm(t), x), denoiser(x, t), lam, sde.lam(s) - lam)
    return match(sde.norm(s), x) * w


def eab_sde(
    points: Annotated[int, Range(ge=1, le=4)] = 2, eta: NonNegative = 1.0, std: NonNegative = 0.0
) -> Step:
    """Exponential Adams-Bashforth with noise, on what Gaussian data of a deviation leave over.

    Args:
        points: network readings that a step combines.
        eta: noise: 0 none, 1 that of the reverse SDE.
        std: deviation of the Gaussian data that would cost no error.
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
# Those whose steps are their own, of a number that no grid fixes.
SELF_PACED = frozenset(name for name, make in STEPS.items() if hasattr(make, "self_paced"))
PREDICTIONS: Table[Prediction] = Table(
    {"eps": EPS, "x0": X0, "v": V, "residual": Residual()}, constructs=False
)
VARIABLES: Table[Variable] = Table(
    {"log_snr": log_snr, "ratio": ratio, "share": share, "clock": clock}, constructs=False
)
OBJECTS: Mapping[str, Table[Any]] = {"prediction": PREDICTIONS, "variable": VARIABLES}


def build_step(kind: str, options: Mapping[str, Any], steps: int) -> Step:
    """The step of a configuration, for a grid of ``steps`` steps, which few need to know.

    An option that is None is left to the constructor. Raises UnknownName for an unknown kind,
    ValueError for options that do not fit.
    """
    make = constructor(STEPS, kind)
    given = {name: _meant(name, value) for name, value in options.items() if value is not None}
    return make(**given, **({"steps": steps} if "steps" in arguments(make) else {}))


def grid_steps(step: Step, steps: int) -> int:
    """The steps of the grid of a step that is asked for ``steps``: one if it paces itself."""
    return 1 if hasattr(step, "self_paced") else steps


def _meant(option: str, value: Any) -> Any:
    """The object that the value of an option names, if it is a name."""
    return constructor(OBJECTS[option], value) if option in OBJECTS else value
