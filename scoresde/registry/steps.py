"""The steps by name, and how a configuration's section becomes one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from scoresde import samplers
from scoresde.arguments import Count, NonNegative, Open, Positive, Range
from scoresde.denoiser import Denoiser
from scoresde.registry.tables import Table, constructor
from scoresde.samplers import EPS, X0, Noise, Prediction, Residual, State, Step, V, solve_adaptive
from scoresde.samplers.adaptive import DORMAND_PRINCE, EXPONENTIAL, Pair
from scoresde.samplers.integrals import Variable, clock, log_snr, ratio, share
from scoresde.sde import match


@dataclass(frozen=True)
class Churnable:
    """A constructor of a step that may climb to more noise on the way: EDM's stochastic sampler.

    Without ``s_churn`` it is the step itself, else spread over the ``steps`` of its grid. EDM,
    arXiv 2206.00364, algorithm 2.

    Args:
        s_churn: noise added along the way; EDM took 30 to 80.
        s_tmin: least sigma / alpha where noise is added.
        s_tmax: largest sigma / alpha where noise is added; null: everywhere.
        s_noise: size of that noise.
        steps: steps of the grid that the noise is spread over.
    """

    make: Callable[[], Step]

    def __call__(
        self,
        s_churn: NonNegative = 0.0,
        s_tmin: NonNegative = 0.0,
        s_tmax: Positive = math.inf,
        s_noise: Positive = 1.0,
        steps: Count = 18,
    ) -> Step:
        if not s_tmin < s_tmax:
            raise ValueError(f"need s_tmin < s_tmax, got s_tmin={s_tmin:g}, s_tmax={s_tmax:g}")
        if s_churn == 0:
            return self.make()
        return samplers.churn(self.make(), s_churn, s_tmin, s_tmax, s_noise, steps)

    @property
    def documented(self) -> Callable[[], Step]:
        return self.make


def euler() -> Step:
    """Euler's step in sigma / alpha on the probability flow: DDIM without noise."""
    return samplers.DDIM()


def predictor_corrector(snr: Open = 0.16, corrector_steps: Count = 1) -> Step:
    """Predictor-corrector: a reverse-diffusion step after Langevin steps at the same time.

    Args:
        snr: size of a corrector step, as a ratio of signal to noise.
        corrector_steps: corrector steps at each time.
    """
    kernel = samplers.langevin(snr, corrector_steps)
    return samplers.corrected(samplers.ReverseDiffusion(), kernel)


def annealed_langevin(snr: Open = 0.176, corrector_steps: Count = 5) -> Step:
    """Predictor-corrector with the Langevin settings of NCSNv2: several smaller steps a level.

    Args:
        snr: size of a corrector step, as a ratio of signal to noise.
        corrector_steps: corrector steps at each time.
    """
    kernel = samplers.annealed_langevin(snr, corrector_steps)
    return samplers.corrected(samplers.ReverseDiffusion(), kernel)


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
    return samplers.restart(samplers.Heun(), low, high, times, inner_steps)


def recommended(eta: NonNegative = 0.0, steps: int = 18) -> Step:
    """The default: exponential Adams-Bashforth on what Gaussian data would leave over.

    Args:
        eta: noise: 0 none, 1 that of the reverse SDE; 0.25 is enough to forget errors.
    """
    return samplers.recommended(steps + 1, eta)[0]


@dataclass(frozen=True)
class DPMAdaptive:
    """The probability flow at a tolerance, every sample by steps of its own: ``solve_adaptive``.

    By the 5(4) pair, or ``exponential`` the 3(2) pair of the DPM-Solver paper. For a grid of one
    step; ``nfe_per_step`` is the least that one costs. Samples that ``max_nfe`` calls do not bring
    to the end take one DDIM step from where they are, with a RuntimeWarning.

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
    sde = denoiser.sde
    kept = sde.sigma(s) / sde.sigma(t)
    return match(kept, x) * x + match(sde.alpha(s) - kept * sde.alpha(t), x) * denoiser(x, t)


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
        "euler": Churnable(euler),
        "heun": Churnable(samplers.Heun),
        "dpm_2": Churnable(samplers.dpm_2),
        "dpmpp_2s": samplers.dpmpp_2s,
        "dpm_solver_singlestep": samplers.dpm_solver_singlestep,
        "dpm_fast": samplers.dpm_fast,
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
        "ddpm": samplers.DDPM,
        "ancestral": samplers.Ancestral,
        "euler_a": samplers.EulerA,
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
    supplied=("steps", "nfe"),
)
# Those whose steps are their own, of a number that no grid fixes.
SELF_PACED = frozenset({"dpm_adaptive"})
PREDICTIONS: Table[Prediction] = Table(
    {"eps": EPS, "x0": X0, "v": V, "residual": Residual()}, constructs=False
)
VARIABLES: Table[Variable] = Table(
    {"log_snr": log_snr, "ratio": ratio, "share": share, "clock": clock}, constructs=False
)
OBJECTS: Mapping[str, Table[Any]] = {"prediction": PREDICTIONS, "variable": VARIABLES}


def build_step(kind: str, options: Mapping[str, Any], steps: int) -> tuple[Step, int]:
    """The step of a configuration asked for ``steps``, and the steps its grid is to have.

    An option that is None is left to the constructor. Raises ConfigError for an unknown kind,
    ValueError for options that do not fit.
    """
    make = constructor(STEPS, kind)
    given = {name: _meant(name, value) for name, value in options.items() if value is not None}
    if make is samplers.dpm_fast:  # counts calls, and plans its steps
        planned = samplers.dpm_fast(steps)
        return planned, len(planned.steps)
    if kind in SELF_PACED:
        return make(**given), 1
    if isinstance(make, Churnable) or make is recommended:
        return make(**given, steps=steps), steps
    return make(**given), steps


def _meant(option: str, value: Any) -> Any:
    """The object that the value of an option names, if it is a name."""
    return constructor(OBJECTS[option], value) if option in OBJECTS else value
