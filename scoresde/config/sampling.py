"""The sections of sampling: a sampler, a grid, and how many steps."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, create_model, model_validator

from scoresde.config.base import Choice, Count, Positive, Real, Section, Whole, increasing

ODEMethod = Literal[
    "dopri5",
    "dopri8",
    "bosh3",
    "fehlberg2",
    "adaptive_heun",
    "scipy_solver",
    "euler",
    "midpoint",
    "heun2",
    "heun3",
    "rk4",
    "explicit_adams",
    "implicit_adams",
    "fixed_adams",
]

# Options of samplers ------------------------------------------------------------------------


def _option(kind: Any, about: str, **bounds: Any) -> Any:
    """A type with the line that help shows, and its bounds."""
    return Annotated[kind, Field(description=about, **bounds)]


Share = _option(Real, "noise put back: 0 none, 1 that of the reverse SDE", ge=0, le=1)
Noise = _option(Real, "noise: 0 none, 1 that of the reverse SDE", ge=0)
Readings = _option(Whole, "readings of the network in a step, 1 to 4", ge=1, le=4)
UpTo3 = _option(Whole, "order of the method, 1 to 3", ge=1, le=3)
Predicted = _option(
    Literal["eps", "x0", "v", "residual"],
    "what is extrapolated: residual is what EDM's network returns, for data of deviation 0.5",
)
Variable = _option(
    Literal["log_snr", "ratio", "share", "clock"],
    "what it is a polynomial in: log-SNR, sigma / alpha, sigma / (alpha + sigma), t",
)
Ramp = _option(bool, "start at order 1 instead of with more calls; second order at most")
Published = _option(bool, "the formulas of the released code")
NoiseRatio = _option(Positive, "in units of sigma / alpha")
Deviation = _option(Real, "deviation of Gaussian data that would cost no error", ge=0)
Langevin = _option(Real, "size of a corrector step", gt=0, lt=1)
Corrections = _option(Count, "corrector steps at each time")


class SamplerSection(Section):
    """What every sampler has."""

    kind: str


class _Listed(SamplerSection):
    """One of ``_section``: no source is searched for docstrings of its options, which is slow."""

    model_config = ConfigDict(use_attribute_docstrings=False)


def _section(kinds: str, about: str, **options: Any) -> type[SamplerSection]:
    """The section of samplers, named apart by spaces, that take the same options.

    An option is (type, default); ``scoresde.registry.STEPS`` holds the constructors.
    """
    names = tuple(kinds.split())
    kind: Any = Literal[names]
    found: type[SamplerSection] = create_model(
        f"{names[0]}_sampler",
        __base__=_Listed,
        __doc__=about,
        kind=(kind, names[0]),
        **options,
    )
    return found


class ChurnSampler(SamplerSection):
    """A step of the probability flow, with EDM's churn where s_churn is not 0."""

    kind: Literal["heun", "euler", "dpm_2"] = "heun"
    s_churn: Annotated[Real, Field(ge=0)] = 0.0
    """noise added along the way; EDM took 30 to 80"""
    s_tmin: Annotated[Real, Field(ge=0)] = 0.0
    """sigma / alpha from which on"""
    s_tmax: Positive | None = None
    """sigma / alpha up to which; null: all"""
    s_noise: Positive = 1.0
    """size of that noise"""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.s_tmax is not None:
            increasing(self, "s_tmin", "s_tmax")
        return self


class RestartSampler(SamplerSection):
    """Heun's steps, and back up to more noise."""

    kind: Literal["restart"] = "restart"
    low: Positive = 0.05
    """sigma / alpha below which it goes back"""
    high: Positive = 0.3
    """sigma / alpha up to which"""
    times: Count = 1
    """times over"""
    inner_steps: Count = 3
    """steps of each descent"""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        increasing(self, "low", "high")
        return self


class ODESampler(SamplerSection):
    """The probability flow through torchdiffeq; ``steps`` counts for fixed-step methods only."""

    kind: Literal["ode"] = "ode"
    method: ODEMethod = "dopri5"
    rtol: Positive = 1e-5
    atol: Positive = 1e-5


class SDESampler(SamplerSection):
    """The reverse SDE through torchsde, in equal steps of log-SNR."""

    kind: Literal["sde"] = "sde"
    method: Literal["euler", "milstein", "srk"] = "euler"
    eta: Annotated[Real, Field(ge=0)] = 1.0
    """noise: 1 the reverse SDE, 0 the probability flow"""


class RecommendedSampler(SamplerSection):
    """What ``samplers.recommended`` advises for steps + 1 calls, the denoising included."""

    kind: Literal["recommended"] = "recommended"
    eta: Annotated[Real, Field(ge=0)] = 0.0
    """noise: 1 that of the reverse SDE; 0.25 is enough to forget errors"""


SECTIONS: tuple[type[SamplerSection], ...] = (
    RecommendedSampler,
    ChurnSampler,
    RestartSampler,
    _section(
        "ancestral euler_maruyama reverse_diffusion dpmpp_2s dpm_fast",
        "A step without settings; for dpm_fast ``steps`` counts network calls.",
    ),
    _section("ddim", "The DDIM step.", eta=(Share, 0.0)),
    _section("euler_a dpm_2_a dpmpp_2s_a", "An ancestral step.", eta=(Share, 1.0)),
    _section("ddpm", "The DDPM chain.", large=(_option(bool, "the larger variance"), False)),
    _section(
        "dpm_adaptive",
        "The probability flow with error control per sample; ``steps`` does not count.",
        rtol=(Positive, 1e-3),
        atol=(Positive, 1e-3),
        max_nfe=(_option(Count, "most network calls"), 1000),
        exponential=(_option(bool, "the 3(2) pair of DPM-Solver instead of the 5(4) pair"), False),
    ),
    _section(
        "dpm_solver",
        "Multistep DPM-Solver.",
        order=(UpTo3, 3),
        prediction=(Predicted, "eps"),
        published=(Published, False),
    ),
    _section(
        "dpm_solver_singlestep",
        "Singlestep DPM-Solver.",
        order=(UpTo3, 3),
        prediction=(Predicted, "eps"),
    ),
    _section("dpmpp_2m", "DPM-Solver++(2M).", published=(Published, True)),
    _section("dpmpp_3m", "DPM-Solver++(3M).", published=(Published, False)),
    _section(
        "unipc",
        "UniPC, of global order one more than its own.",
        order=(Readings, 3),
        prediction=(Predicted, "x0"),
        exponential=(_option(bool, "bh2, else bh1"), True),
        published=(Published, False),
    ),
    _section(
        "eab",
        "Exponential Adams-Bashforth.",
        prediction=(Predicted, "x0"),
        order=(Readings, 3),
        variable=(Variable, "log_snr"),
        ramp=(Ramp, False),
    ),
    _section(
        "deis",
        "DEIS.",
        order=(Readings, 3),
        variable=(Variable, "log_snr"),
        ramp=(Ramp, False),
    ),
    _section("lms ipndm_v", "Adams-Bashforth.", order=(Readings, 4), ramp=(Ramp, False)),
    _section("ipndm plms", "Adams-Bashforth of equal steps.", order=(Readings, 4)),
    _section(
        "dpmpp_sde",
        "DPM-Solver++ SDE.",
        eta=(Share, 1.0),
        r=(_option(Real, "place of the inner call", gt=0, lt=1), 0.5),
    ),
    _section(
        "dpmpp_2m_sde",
        "DPM-Solver++(2M) SDE.",
        eta=(Noise, 1.0),
        heun=(_option(bool, "the exact moment instead of the midpoint"), False),
    ),
    _section(
        "dpmpp_3m_sde", "DPM-Solver++(3M) SDE.", eta=(Noise, 1.0), published=(Published, False)
    ),
    _section(
        "sa_solver",
        "SA-Solver.",
        predictor=(Readings, 2),
        corrector=(Readings, 2),
        tau=(Noise, 1.0),
        std=(Deviation, 0.0),
    ),
    _section(
        "eab_sde",
        "Exponential Adams-Bashforth with noise.",
        points=(Readings, 2),
        eta=(Noise, 1.0),
        std=(Deviation, 0.0),
    ),
    _section(
        "pc",
        "Predictor-corrector: reverse diffusion and Langevin steps.",
        snr=(Langevin, 0.16),
        corrector_steps=(Corrections, 1),
    ),
    _section(
        "annealed_langevin",
        "The same with the corrector of NCSNv2.",
        snr=(Langevin, 0.176),
        corrector_steps=(Corrections, 5),
    ),
    ODESampler,
    SDESampler,
)

if TYPE_CHECKING:
    Sampler = SamplerSection
else:
    Sampler = Annotated[reduce(or_, SECTIONS), Choice]

# Grids and the whole ------------------------------------------------------------------------


class PlainGrid(Section):
    """Equal steps of t, of sqrt(t), or of log-SNR."""

    kind: Literal["uniform", "quadratic", "log_snr"] = "uniform"


class KarrasGrid(Section):
    """Equal steps of (sigma / alpha)^(1 / rho)."""

    kind: Literal["karras"] = "karras"
    rho: Annotated[Real, Field(ge=0.1)] = 7.0


class PolyexponentialGrid(Section):
    """Steps of log-SNR that shrink towards low noise."""

    kind: Literal["polyexponential"] = "polyexponential"
    rho: Positive = 1.0
    """1 is log_snr"""


class ArctanGrid(Section):
    """Steps of log-SNR that are densest around one level."""

    kind: Literal["arctan"] = "arctan"
    centre: Real = 1.6
    """log(alpha / sigma) where they are densest"""
    width: Positive = 3.2
    """of that region"""
    end: Real = 4.1
    """log(alpha / sigma) at the end of 9 steps"""
    growth: Annotated[Real, Field(ge=0)] = 1.5
    """how much further more steps reach"""


class LevelGrid(Section):
    """Levels of a discrete table, equal steps of t apart, in the ways of the field."""

    kind: Literal["trailing", "leading", "linspace"] = "trailing"
    levels: Annotated[Whole, Field(ge=2)] = 1000


class OptimisedGrid(Section):
    """Found for the model, the sampler and the steps, at first use; kept beside the checkpoint."""

    kind: Literal["optimised"] = "optimised"
    budget: Annotated[Whole, Field(ge=500)] = 2000
    """network calls to find it"""
    starts: Count = 32
    """trajectories it is found on, never those of the samples"""


class FileGrid(Section):
    """Times from a JSON file."""

    kind: Literal["file"] = "file"
    path: str | None = None
    """a list of decreasing times, or an object with the list "times\""""


Grid = Annotated[
    PlainGrid
    | KarrasGrid
    | PolyexponentialGrid
    | ArctanGrid
    | LevelGrid
    | OptimisedGrid
    | FileGrid,
    Choice,
]


class Sample(Section):
    """How it is sampled."""

    sampler: Sampler = RecommendedSampler()
    grid: Grid = ArctanGrid()
    steps: Count = 18
    """of the grid; ode counts them for its fixed-step methods, sde takes them in log-SNR"""
    denoise: bool = True
    """end with the denoised state"""
