"""The scheduler_config.json of diffusers as a process, a parameterisation and a grid.

The class that a file names is a sampler. Of a model it says the table of variances, which here is
computed in float64, and what the output of the network means; the rest is that sampler's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final, get_type_hints

import torch
from torch import Tensor

from scoresde import betas as tables
from scoresde.arguments import Natural, NonNegative, Open, Positive, Range, check_fields
from scoresde.coordinates import Index, Time, ratio
from scoresde.denoiser import Guide
from scoresde.guidance import clip
from scoresde.parameterization import (
    Coeffs,
    Informed,
    Parameterization,
    Preconditioned,
    eps,
    flow,
    v,
    x0,
)
from scoresde.samplers.grids import Grid
from scoresde.sde import EDM, SDE, VE, Cosine, DiscreteVP, LinearFlow
from scoresde.training.safe_files import printable

FILE = "scheduler_config.json"
NEARLY_ONE = 1 - 2**-53
EDM_ENDS = 0.002, 80.0
F64 = torch.float64


@dataclass(frozen=True)
class Schedule:
    """What a scheduler says of a model.

    Args:
        sde: the process; the table of variances, in float64, is the truth.
        parameterization: what the output of the network means, and what it is told of the noise.
        variance: whether the network has a learned variance behind its output.
        distilled: whether the network was trained to jump to the end of the flow (LCM, TCD); what
            it returns is then no posterior mean, and no likelihood follows from it.
    """

    sde: SDE
    parameterization: Parameterization
    variance: bool = False
    distilled: bool = False


def raw_score(sde: SDE, t: Tensor) -> Coeffs:
    """F is the score itself, x0_hat = (x + sigma^2 F) / alpha. NCSN++, arXiv 2011.13456."""
    alpha, sigma = sde.alpha(t.double()), sde.sigma(t.double())
    return Coeffs(1 / alpha, sigma**2 / alpha, torch.ones_like(alpha), ratio(sde, t))


@final
@dataclass(frozen=True)
class Negated:
    """The preconditioning of EDM with the sign of F reversed.

    Args:
        base: the preconditioning.
    """

    base: Preconditioned

    def __call__(self, sde: SDE, t: Tensor) -> Coeffs:
        c = self.base(sde, t)
        return c._replace(out=-c.out)

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the scaled data."""
        return self.base.sigma_data


PREDICTIONS: Mapping[str, Parameterization] = {
    "epsilon": eps,
    "v_prediction": v,
    "sample": x0,
    "original_sample": x0,
    "flow_prediction": flow,
    "score": raw_score,
}
"""Parameterisations by ``prediction_type``; the last one is of the networks of score_sde."""

# --- fields ------------------------------------------------------------------------------------

Family = Literal["chain", "sigma", "lambda", "flow", "edm", "ve", "angle"]


@final
@dataclass(frozen=True)
class Fields:
    """The fields of schedulers that are read, with the defaults that most classes have."""

    num_train_timesteps: Annotated[int, Range(ge=2)] = 1000
    beta_start: Open = 1e-4
    beta_end: Open = 0.02
    beta_schedule: Literal[
        "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"
    ] = "linear"
    trained_betas: tuple[tables.Warm, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal[
        "epsilon", "v_prediction", "sample", "original_sample", "flow_prediction"
    ] = "epsilon"
    variance_type: (
        Literal[
            "fixed_small",
            "fixed_small_log",
            "fixed_large",
            "fixed_large_log",
            "learned",
            "learned_range",
        ]
        | None
    ) = None
    timestep_spacing: Literal["linspace", "leading", "trailing"] = "linspace"
    steps_offset: Natural = 0
    set_alpha_to_one: bool = True
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    timestep_type: Literal["discrete", "continuous"] = "discrete"
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    use_beta_sigmas: bool = False
    use_lu_lambdas: bool = False
    use_flow_sigmas: bool = False
    lambda_min_clipped: float = -math.inf
    original_inference_steps: Annotated[int, Range(ge=1)] = 50
    sigma_min: Positive | None = None
    sigma_max: Positive | None = None
    sigma_data: Positive = 0.5
    sigma_schedule: Literal["karras", "exponential"] = "karras"
    rho: Positive = 7.0
    sampling_eps: NonNegative = 1e-5
    flow_shift: Positive = 1.0
    shift: Positive = 1.0
    shift_terminal: Open | None = None
    use_dynamic_shifting: bool = False
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    invert_sigmas: bool = False
    clip_sample: bool = False
    clip_sample_range: Positive = 1.0
    thresholding: bool = False
    sample_max_value: Positive = 1.0

    def ends(self, low: float, high: float) -> tuple[float, float]:
        """The range of sigma / alpha, where the file says one."""
        return self.sigma_min or low, self.sigma_max or high

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(Fields).items():
            value = getattr(self, name)
            if kind is bool and not isinstance(value, bool):
                raise ValueError(f"need {name} true or false, got {value!r}")
        check_fields(self)
        kinds = [self.use_karras_sigmas, self.use_exponential_sigmas, self.use_beta_sigmas]
        if sum(kinds) > 1:
            raise ValueError(
                "use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: one only"
            )


_SD = {"beta_start": 0.00085, "beta_end": 0.012}
_LEADING = {"timestep_spacing": "leading"}
_CLIPPED = {**_LEADING, "clip_sample": True}
_LCM = {**_SD, **_LEADING, "beta_schedule": "scaled_linear"}
_UNCLIP = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True}
_VE = {"num_train_timesteps": 2000}
_LAST = {"final_sigmas_type": "sigma_min"}

CLASSES: Mapping[str, tuple[Family, Mapping[str, Any]]] = {
    "DDPMScheduler": ("chain", _CLIPPED),
    "DDPMParallelScheduler": ("chain", _CLIPPED),
    "DDIMScheduler": ("chain", _CLIPPED),
    "DDIMParallelScheduler": ("chain", _CLIPPED),
    "DDIMInverseScheduler": ("chain", _CLIPPED),
    "PNDMScheduler": ("chain", {**_LEADING, "set_alpha_to_one": False}),
    "RePaintScheduler": ("chain", _CLIPPED),
    "UnCLIPScheduler": ("chain", _UNCLIP),
    "LCMScheduler": ("chain", _LCM),
    "TCDScheduler": ("chain", _LCM),
    "EulerDiscreteScheduler": ("sigma", {}),
    "EulerAncestralDiscreteScheduler": ("sigma", {}),
    "LMSDiscreteScheduler": ("sigma", {}),
    "HeunDiscreteScheduler": ("sigma", _SD),
    "KDPM2DiscreteScheduler": ("sigma", _SD),
    "KDPM2AncestralDiscreteScheduler": ("sigma", _SD),
    "DPMSolverSDEScheduler": ("sigma", _SD),
    "DPMSolverMultistepScheduler": ("lambda", {}),
    "DPMSolverMultistepInverseScheduler": ("lambda", {}),
    "DPMSolverSinglestepScheduler": ("lambda", {}),
    "UniPCMultistepScheduler": ("lambda", {}),
    "DEISMultistepScheduler": ("lambda", _LAST),
    "SASolverScheduler": ("lambda", _LAST),
    "FlowMatchEulerDiscreteScheduler": ("flow", {}),
    "FlowMatchHeunDiscreteScheduler": ("flow", {}),
    "FlowMatchLCMScheduler": ("flow", {}),
    "EDMEulerScheduler": ("edm", {}),
    "EDMDPMSolverMultistepScheduler": ("edm", {}),
    "ScoreSdeVeScheduler": ("ve", _VE),
    "IPNDMScheduler": ("angle", {}),
}
"""Schedulers that are read: how they build their levels, and defaults that most do not have."""

DISTILLED = frozenset(("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler"))
WITHOUT_GRID = frozenset(
    ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler", "RePaintScheduler")
)
OLD_CLASSES = {"GaussianDDPMScheduler": "DDPMScheduler"}
OLD_FIELDS = {"timesteps": "num_train_timesteps", "clip_predicted_image": "clip_sample"}

OF_SAMPLING = frozenset(
    (
        *("algorithm_type", "base_image_seq_len", "base_shift"),
        *("correct_steps", "corrector_order", "disable_corrector"),
        *("dynamic_thresholding_ratio", "eta", "euler_at_final"),
        *("lower_order_final", "max_image_seq_len", "max_shift"),
        *("noise_sampler_seed", "predict_x0", "predictor_order"),
        *("scale_factors", "skip_prk_steps", "snr"),
        *("solver_order", "solver_p", "solver_type"),
        *("stochastic_sampling", "tau_func", "tensor_format"),
        *("timestep_scaling", "timestep_values", "upscale_mode"),
    )
)
"""Fields that say how their sampler steps, and nothing of the model or its levels."""


@final
@dataclass(frozen=True)
class Read:
    """A scheduler_config.json, checked.

    Args:
        name: name of the class.
        family: how it builds its levels.
        fields: its fields, with the defaults of the class.
        where: what messages call the file.
    """

    name: str
    family: Family
    fields: Fields
    where: str

    @property
    def flows(self) -> bool:
        """Whether the process is the straight path."""
        return self.family == "flow" or self.fields.use_flow_sigmas

    @property
    def continuous(self) -> bool:
        """Whether the network is told log(sigma) / 4, as that of Stable Video Diffusion."""
        f = self.fields
        return f.timestep_type == "continuous" and f.prediction_type == "v_prediction"


def read(config: Mapping[str, Any], where: str = FILE) -> Read:
    """The fields of a scheduler_config.json.

    Raises ValueError, naming the file and the fields, for a class or fields that are not known,
    and for values of another type or out of range.
    """
    if "_class_name" not in config:
        raise ValueError(f"{where}: _class_name is missing; it names the class of the scheduler")
    name = OLD_CLASSES.get(str(config["_class_name"]), str(config["_class_name"]))
    if name not in CLASSES:
        raise ValueError(
            f"{where}: scheduler {printable(name)} is not read; these are: {', '.join(CLASSES)}"
        )
    family, defaults = CLASSES[name]
    said = {
        OLD_FIELDS.get(key, key): value
        for key, value in config.items()
        if value is not None and not key.startswith("_") and key not in OF_SAMPLING
    }
    if "predict_epsilon" in said:  # before prediction_type
        old = "epsilon" if said.pop("predict_epsilon") else "sample"
        said.setdefault("prediction_type", old)
    if family == "flow":
        said.setdefault("prediction_type", "flow_prediction")
    known = {field.name for field in dataclasses.fields(Fields)}
    if stray := sorted(said.keys() - known):
        raise ValueError(
            f"{where}: unknown field{'s' * (len(stray) > 1)} of {name}: "
            f"{printable(', '.join(stray))}; "
            "remove what does not change the model"
        )
    try:
        if "trained_betas" in said:
            said["trained_betas"] = tuple(map(float, said["trained_betas"]))
        found = Read(name, family, Fields(**{**defaults, **said}), where)
        _consistent(found)
    except TypeError:
        raise ValueError(f"{where}: trained_betas: need a list of numbers") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return found


def _consistent(found: Read) -> None:
    """Raise ValueError for fields that together say nothing that is known."""
    f = found.fields
    if f.invert_sigmas:
        raise ValueError("invert_sigmas: a flow from data to noise is not read")
    flows = f.prediction_type == "flow_prediction"
    if flows and not found.flows:
        raise ValueError(f"prediction_type: flow_prediction of {found.name} needs use_flow_sigmas")
    if found.family == "flow" and not flows:
        raise ValueError(f"prediction_type: {found.name} has flow_prediction only")
    if found.family == "edm" and f.prediction_type not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"prediction_type: need epsilon or v_prediction of {found.name}, got "
            f"{f.prediction_type}"
        )
    if found.family == "angle" and f.trained_betas is not None:
        raise ValueError("trained_betas: those of IPNDMScheduler are no table of a model")
    if f.trained_betas is not None and len(f.trained_betas) < 2:
        raise ValueError("need at least two trained_betas")


# --- process and parameterisation ---------------------------------------------------------------


def schedule_of(config: Mapping[str, Any], nearest: bool = False, where: str = FILE) -> Schedule:
    """The process and the parameterisation of a scheduler_config.json.

    A discrete table becomes ``DiscreteVP`` and the network is told the index; with
    ``rescale_betas_zero_snr`` the last level has no signal at all, where diffusers puts 2^-24.
    Raises ValueError as ``read`` does.

    Args:
        config: contents of the file, or the ``config`` of a scheduler.
        nearest: tell the network whole numbers only.
        where: what messages call the file.
    """
    found = read(config, where)
    f, distilled = found.fields, found.name in DISTILLED
    levels = f.num_train_timesteps
    base = PREDICTIONS[f.prediction_type]
    if nearest and (found.flows or found.continuous or found.family in ("edm", "ve", "angle")):
        raise ValueError(f"{where}: nearest: {found.name} has no table of levels; leave it out")
    try:
        if found.flows:
            least = 1 / levels
            sde: SDE = LinearFlow(t_min=least, t_eps=least, t_max=NEARLY_ONE)
            return Schedule(sde, Informed(base, Time(levels), scaled=False), distilled=distilled)
        if found.family == "edm":
            low, high = f.ends(*EDM_ENDS)
            known = Preconditioned(f.sigma_data)
            signed = known if f.prediction_type == "epsilon" else Negated(known)
            return Schedule(EDM(low, low, high), signed)
        if found.family == "ve":
            least = max(f.sampling_eps, 1e-12)
            return Schedule(VE(*f.ends(0.01, 1348.0), least, least), raw_score)
        if found.family == "angle":  # alpha = cos(t pi / 2), of v-diffusion
            return Schedule(Cosine(1e-20, t_max=NEARLY_ONE), Informed(v, Time(), scaled=False))
        table = betas_of(f)
        if found.continuous:
            rhos = _ratios(table)
            low, high = f.ends(float(rhos[0]), float(rhos[-1]))
            return Schedule(EDM(low, low, high), v)
        sde = DiscreteVP(table)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    learned = f.variance_type in ("learned", "learned_range")
    told = Informed(base, Index(len(table), nearest, "lam"))
    return Schedule(sde, told, learned, distilled)


def betas_of(f: Fields) -> tuple[float, ...]:
    """The table of variances, in float64."""
    ends = f.beta_start, f.beta_end
    table = f.trained_betas
    if table is None:
        named = {
            "linear": lambda: tables.linear(*ends),
            "scaled_linear": lambda: tables.scaled_linear(*ends),
            "squaredcos_cap_v2": tables.cosine,
            "sigmoid": lambda: tables.sigmoid(*ends),
            "laplace": lambda: tables.laplace(published=True),
            "exp": tables.exponential,
        }
        table = named[f.beta_schedule]()(f.num_train_timesteps)
    return tables.zero_terminal(table) if f.rescale_betas_zero_snr else table


def _ratios(table: tuple[float, ...]) -> Tensor:
    """sigma / alpha of every level; 4096 where there is no signal, as in diffusers."""
    square = torch.cumprod(1 - torch.tensor(table, dtype=F64), 0)
    square = torch.where(square == 0, 2**-24, square)
    return ((1 - square) / square).sqrt()


# --- their levels -------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class TheirGrid:
    """The levels that a scheduler of diffusers visits in n steps, as n + 1 times of its process.

    The last one is 0 where its last step goes to no noise, the step to x0_hat: ``sample`` then
    makes n network calls, as it does. Where its last step goes to the level it is at, there are n
    times. For ScoreSdeVe the times end at ``sampling_eps`` and denoising follows. The levels are
    computed in float64.

    Args:
        found: the file.
        mu: logarithm of the shift, for a file with ``use_dynamic_shifting``.
    """

    found: Read
    mu: float | None = None

    def __call__(self, sde: SDE, n: int) -> Tensor:
        if n < 1:
            raise ValueError(f"a grid needs at least 1 step, got {n}")
        f, family = self.found.fields, self.found.family
        if family == "ve":
            return torch.linspace(1, sde.t_eps, n + 1, dtype=F64)
        if family == "angle":
            quarter = torch.linspace(1, 0, n + 1, dtype=F64) * math.pi / 2
            share = quarter.sin().square()
            times = torch.atan2(share, (1 - share.square()).sqrt()) / math.pi * 2
            return times.clamp(max=sde.t_max)
        if self.found.flows:
            return self._ended(self._flow(n).clamp(max=sde.t_max))
        if family == "edm":
            low, high = f.ends(*EDM_ENDS)
            return self._ended(_spread(f.sigma_schedule, high, low, n, f.rho))
        return self._discrete(sde, n)

    def _flow(self, n: int) -> Tensor:
        """Times of the straight path."""
        f, least = self.found.fields, 1 / self.found.fields.num_train_timesteps
        unipc, kind = self.found.name == "UniPCMultistepScheduler", _kind(f)
        if self.found.family == "lambda":
            if kind and not unipc:
                raise ValueError(
                    f"{self.found.where}: use_flow_sigmas beside use_{kind}_sigmas, which "
                    f"{self.found.name} takes for sigma / alpha; leave one out"
                )
            s = torch.linspace(1, least, n + 1, dtype=F64)
            s = s[:-1] if unipc else (1 - s).flip(0)[:-1]
            shift = f.flow_shift
            if kind:
                rhos = _ratios(betas_of(f))
                s = _spread(kind, float(rhos[-1]), float(rhos[0]), n)
                return s / (1 + s)
        else:
            # Their ends have been shifted once already.
            shift = f.shift
            low = least if f.use_dynamic_shifting else shift * least / (1 + (shift - 1) * least)
            s = torch.linspace(1, low, n, dtype=F64)
        if f.use_dynamic_shifting:
            if self.mu is None:
                raise ValueError(
                    f"{self.found.where}: use_dynamic_shifting needs mu, the logarithm of the "
                    "shift, which pipelines compute of the size of the picture"
                )
            shift = math.exp(self.mu) if f.time_shift_type == "exponential" else self.mu
        s = shift * s / (1 + (shift - 1) * s)
        if f.shift_terminal is not None:
            s = 1 - (1 - s) * ((1 - f.shift_terminal) / (1 - s[-1]))
        if kind:
            s = _spread(kind, float(s[0]), float(s[-1]), n)
        if unipc and float(s[0]) == 1:
            s[0] -= 1e-6
        return s

    def _discrete(self, sde: SDE, n: int) -> Tensor:
        """Times of a table."""
        f, table = self.found.fields, betas_of(self.found.fields)
        rhos, count = _ratios(table), len(table)
        places = _places(self.found, n, rhos)
        below = places.floor().long()
        levels = torch.lerp(rhos[below], rhos[(below + 1).clamp(max=count - 1)], places - below)
        times = torch.where(places == below, (places + 1) / count, sde.time(-levels.log()))
        if kind := _kind(f):
            sigma = self.found.family == "sigma"
            low, high = map(float, levels[[-1, 0]] if sigma else rhos[[0, -1]])
            if sigma or self.found.name == "UniPCMultistepScheduler":
                low, high = f.ends(low, high)
            levels = _spread(kind, high, low, n)
        if kind or self.found.continuous:
            times = sde.time(-levels.log())
        if f.final_sigmas_type == "sigma_min" or not f.set_alpha_to_one:
            first = (
                sde.time(-rhos[:1].log()) if self.found.continuous else times.new_ones(1) / count
            )
            return self._ended(times, first)
        return self._ended(times)

    def _ended(self, times: Tensor, last: Tensor | None = None) -> Tensor:
        """The times and the end of the last step; no step to where it is."""
        if last is None:
            clean = self.found.fields.final_sigmas_type == "zero"
            last = times.new_zeros(1) if clean else times[-1:]
        if float(last) < float(times[-1]) * (1 - 1e-9):
            times = torch.cat([times, last])
        if not (times.diff() < 0).all():
            raise ValueError(f"{self.found.where}: these levels do not decrease; take fewer steps")
        return times


def grid_of(config: Mapping[str, Any], mu: float | None = None, where: str = FILE) -> Grid:
    """The grid of a scheduler's own levels, ``TheirGrid``. Raises ValueError as ``read`` does."""
    found = read(config, where)
    if found.name in WITHOUT_GRID:
        raise ValueError(f"{where}: {found.name} also goes to more noise; it has no grid here")
    if found.fields.interpolation_type == "log_linear":
        raise ValueError(
            f"{where}: interpolation_type log_linear tells the network other levels than it visits"
        )
    return TheirGrid(found, mu)


def guide_of(config: Mapping[str, Any], where: str = FILE) -> Guide:
    """What a scheduler does to x0_hat: ``clip`` where it clips, else nothing.

    DDIMScheduler steps with the noise of before the clipping, unless it is told otherwise; ours
    with that of after it. Raises ValueError as ``read`` does, and for dynamic thresholding with a
    ``sample_max_value`` above 1, which ``guidance.dynamic_threshold`` does without one.
    """
    f = read(config, where).fields
    if f.thresholding and f.sample_max_value > 1:
        raise ValueError(
            f"{where}: thresholding up to sample_max_value={f.sample_max_value:g} is not read; "
            "guide by guidance.dynamic_threshold"
        )
    if f.thresholding:
        return clip()
    if f.clip_sample:
        return clip(-f.clip_sample_range, f.clip_sample_range)
    return lambda denoiser: denoiser


def _kind(f: Fields) -> str | None:
    """The rule that replaces the levels of the time steps."""
    for kind in ("karras", "exponential", "beta"):
        if getattr(f, f"use_{kind}_sigmas"):
            return kind
    return "lu" if f.use_lu_lambdas else None


def _spread(kind: str, high: float, low: float, n: int, rho: float = 7.0) -> Tensor:
    """n levels of sigma / alpha from high to low."""
    ramp = torch.linspace(0, 1, n, dtype=F64)
    if kind == "karras":
        first, last = high ** (1 / rho), low ** (1 / rho)
        return torch.pow(first + ramp * (last - first), rho)
    if kind == "beta":
        try:
            from scipy.stats import beta
        except ImportError:
            raise RuntimeError("use_beta_sigmas needs scipy; pip install scipy") from None
        share: Tensor = torch.from_numpy(beta.ppf((1 - ramp).numpy(), 0.6, 0.6))
        return low + share * (high - low)
    return (math.log(high) + ramp * (math.log(low) - math.log(high))).exp()


def _places(found: Read, n: int, rhos: Tensor) -> Tensor:
    """The n time steps of a scheduler, places in the table, perhaps between two levels."""
    f, count = found.fields, len(rhos)
    if n > count:
        raise ValueError(f"{found.where}: {count} levels do not hold {n} steps; take fewer steps")
    multistep = found.family == "lambda"
    if found.name in ("LCMScheduler", "TCDScheduler"):
        own = torch.arange(f.original_inference_steps, 0, -1) * (
            count // f.original_inference_steps
        )
        if n > len(own):
            raise ValueError(f"{found.where}: need at most {len(own)} steps, got {n}")
        return (own - 1)[(torch.arange(n) * (len(own) / n)).floor().long()].double()
    last = count - multistep * int((-rhos.log() < f.lambda_min_clipped).sum())
    singlestep = found.name == "DPMSolverSinglestepScheduler"
    if f.timestep_spacing == "linspace" or singlestep:
        places = torch.linspace(0, last - 1, n + multistep, dtype=F64).flip(0)[:n]
        return places if found.family == "sigma" else places.round()
    if f.timestep_spacing == "leading":
        span = last // (n + multistep)
        places = (torch.arange(multistep, n + multistep) * span).flip(0) + f.steps_offset
    else:
        places = (last - torch.arange(n, dtype=F64) * (count / n)).round() - 1
        places = places[places >= 0]
    if float(places[0]) >= count:
        raise ValueError(
            f"{found.where}: {n} steps with steps_offset={f.steps_offset} begin beyond the last "
            f"of {count} levels; take fewer steps"
        )
    return places.double()
