"""Drawing from the posterior of a measurement, each sample a function of its own seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.data.scaling import Scaling
from scoresde.denoiser import Denoiser
from scoresde.parameterization import ScoreModel
from scoresde.posterior import (
    LinearOperator,
    Measurement,
    Method,
    Nonlinear,
    Operator,
    Population,
    PopulationMethod,
    Scale,
)
from scoresde.progress import Progress, silent
from scoresde.registry import POSTERIORS, Sampler, constructor
from scoresde.runs.draw import (
    DEFAULT_NUM,
    LARGEST_SEED,
    Job,
    checked_seeds,
    drawn,
    require_whole,
    said_by,
)
from scoresde.runs.instrument import NetworkCall
from scoresde.runs.space import of_states, state_shape
from scoresde.samplers import Noise

NFE = 100
DECODED = "dps"
"""The default method for latents: others solve for them by many passes through the decoder."""


@dataclass(frozen=True, eq=False)
class Inferred:
    """Samples ``x`` (N, ...) of a posterior, and the seed of each.

    They are in units of the data for a ScoreModel, in model units for a Denoiser. ``nfe`` is the
    mean number of network calls a sample, counted where the denoiser is called; passes backwards
    are not counted. The last ``unfinished`` samples are denoised states of a method that was
    stopped on the way. ``log_evidence`` is an estimate of log p(y) in nats, of y in model units,
    and ``log_evidence_error`` its standard error, for methods that give one. ``size`` is the
    number of independent samples that a population was worth.
    """

    x: Tensor
    nfe: float
    seeds: tuple[int, ...]
    unfinished: int = 0
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    size: float | None = None

    def __len__(self) -> int:
        return len(self.x)


def infer(
    denoiser: Denoiser | ScoreModel,
    operator: Operator,
    y: Tensor,
    noise: float,
    *,
    method: str | Method | None = None,
    num: int | None = None,
    nfe: int = NFE,
    seeds: Iterable[int] | None = None,
    particles: int | None = None,
    shape: Sequence[int] | None = None,
    label: Any = None,
    prompt: str | Sequence[str] | None = None,
    cond: Mapping[str, Any] | None = None,
    guidance: float = 1.0,
    batch: int = 64,
    progress: Progress = silent,
    look: Callable[[int, NetworkCall], None] = lambda first, call: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Inferred:
    """Draw from p(x0 | y) of a measurement y = A(x0) + noise eps.

    With a ScoreModel A, y, noise and the samples are in units of the data; levels of pixels are
    measured as real numbers, and latents after their decoder. With a Denoiser all are in model
    units, in the dtype and on the device of y. A sample does not depend on the others in its
    batch.

    Args:
        denoiser: denoiser, with its conditions and guidance, or trained model.
        operator: what is measured, A; see ``scoresde.posterior``.
        y: one measurement (*m) for all samples, or one for each, (N, *m).
        noise: standard deviation of the error of every number of y.
        method: method or a name in ``registry.POSTERIORS``; by default moment_matching, for
            latents dps.
        num: number of samples; as many as there are seeds, or 64.
        nfe: most network calls a sample.
        seeds: seed of every sample; 0, 1, ... by default.
        particles: size of the population, for a method that draws samples together, and returns
            num of them; 2 a sample by default, and at least 256. Its noise comes from the first
            seed.
        shape: shape of one sample, where neither the model nor the operator knows it.
        label: class of the samples, for a ScoreModel.
        prompt: sentence for the condition of a ScoreModel that reads sentences.
        cond: value of further conditions of a ScoreModel, by name.
        guidance: scale of ``guidance.free`` for these conditions.
        batch: samples drawn at a time; it does not change them.
        progress: shows how many samples are done.
        look: called at every network call, with the place of the first sample of its batch.
        stopping: asked before every network call; True stops there.

    Raises ValueError for arguments that do not fit, RuntimeError for samples that are not finite.
    """
    if not isinstance(denoiser, Denoiser | ScoreModel):
        raise ValueError(
            f"denoiser: need a Denoiser or a ScoreModel, got {type(denoiser).__name__}"
        )
    measurement = Measurement(operator, y, noise)
    require_whole(num=num, nfe=nfe, batch=batch, particles=particles)
    model = denoiser if isinstance(denoiser, ScoreModel) else None
    chosen = chosen_method(method, model)
    if model is not None and model.codec is not None:
        require_any_operator(chosen)
    if particles is not None and not chosen.population:
        raise ValueError(f"particles: {chosen.name} draws every sample by itself; leave it out")
    seeds = places = checked_seeds(seeds, num, DEFAULT_NUM)
    if chosen.population:
        places = particle_seeds(seeds[0], particles or population_for(len(seeds)))
    size = shape_of(denoiser, measurement, shape, len(places))
    scaling = getattr(getattr(model, "data", None), "scaling", None)
    device = measurement.y.device if model is None else model.device
    like = torch.empty(1, *size, device=device).expand(len(places), *size)
    measured = in_model_units(measurement, scaling, like)
    if model is not None and model.codec is not None:
        measured = replace(measured, operator=of_states(model, measured.operator))
        like = like.new_empty(1, *state_shape(model, size)).expand(len(places), -1, -1, -1)
    measured = measured.fit(like)
    populations: list[Population] = []

    def sampler(rows: Sequence[int]) -> Sampler:
        mine = measured.among(torch.as_tensor(rows))

        def run(denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor:
            x = x.to(measured.y.dtype) if model is None else x
            if not isinstance(chosen, PopulationMethod):
                return chosen(denoiser, mine, x, noise, nfe)
            populations.append(chosen.populate(denoiser, mine, x, noise, nfe))
            return populations[-1].x

        return run

    said: Any
    holder: Any
    if isinstance(denoiser, Denoiser):
        told = (label, prompt, cond)
        if any(value is not None for value in told) or guidance != 1:
            raise ValueError(
                "label, prompt, cond and guidance are of a ScoreModel; leave them out"
            )
        holder = said = _Whole(denoiser, len(places), device)
    else:
        holder = denoiser
        said = said_by(denoiser, label, prompt, cond, None, guidance)
        if chosen.population and said.count > 1:
            raise ValueError(f"{chosen.name}: one population has one condition; give one value")
        said = said.over(len(places))
    job = Job(holder, sampler, chosen.name, places, said, size, False, look, stopping)
    found = drawn(job, len(places) if chosen.population else batch, progress=progress)
    evidence = populations[-1] if populations and not found.unfinished else None
    x, unfinished = found.x, found.unfinished
    if chosen.population:
        x = x[among_particles(len(seeds), len(x))]
        unfinished = len(seeds) if unfinished else 0
    return Inferred(
        x,
        found.nfe,
        tuple(seeds) if chosen.population else found.seeds,
        unfinished,
        getattr(evidence, "log_evidence", None),
        getattr(evidence, "log_evidence_error", None),
        getattr(evidence, "size", None),
    )


def population_for(n: int) -> int:
    """The number of particles of which n samples are taken."""
    return max(2 * n, 256)


def particle_seeds(seed: int, n: int) -> list[int]:
    """The seeds of the n particles of a population that has one seed."""
    return [(seed * n + k) % (LARGEST_SEED + 1) for k in range(n)]


def among_particles(n: int, particles: int) -> list[int]:
    """The places of n samples in a population, evenly along it: relatives are neighbours."""
    return [int((k + 0.5) * particles / n) for k in range(n)]


def chosen_method(method: str | Method | None, model: ScoreModel | None) -> Method:
    """The method that is given, or the default one. Raises as ``method_of``."""
    latents = model is not None and model.codec is not None
    default = DECODED if latents else "moment_matching"
    return method_of(method or default, None if model is None else model.std)


def method_of(method: str | Method, std: float | None) -> Method:
    """The method of a name in ``registry.POSTERIORS``, for data of deviation ``std``; or itself.

    Raises UnknownName for another name, ValueError for what is not a method.
    """
    if isinstance(method, str):
        return constructor(POSTERIORS, method)(**({} if std is None else {"std": std}))
    if not isinstance(method, Method):
        raise ValueError(f"method: need a name or a method of scoresde.posterior, got {method!r}")
    return method


def require_any_operator(method: Method) -> None:
    """Raise ValueError for a method of linear operators only, which no decoder is."""
    if method.linear:
        raise ValueError(
            f"method: {method.name} needs a linear operator, and of latents none is, after their "
            "decoder; choose dps, daps or another that takes any function"
        )


def shape_of(
    denoiser: Denoiser | ScoreModel, measurement: Measurement, shape: Sequence[int] | None, n: int
) -> tuple[int, ...]:
    """The shape of one of n samples, that the model, the arguments or the operator know.

    Raises ValueError if none does, or if y fits samples of two shapes.
    """
    known = getattr(getattr(denoiser, "data", None), "shape", None)
    if known is not None and shape is not None and tuple(shape) != tuple(known):
        raise ValueError(
            f"shape: the model was trained on examples of {tuple(known)}, got {tuple(shape)}"
        )
    if known is not None or shape is not None:
        return tuple(known or shape or ())
    operator, y = measurement.operator, tuple(measurement.y.shape)
    one = _sample(operator, y)
    each = _sample(operator, y[1:]) if y[:1] in ((n,), (1,)) else None
    found = one or each or operator.inputs(y)
    if found is None:
        raise ValueError("shape is missing: the operator does not know the shape of a sample")
    if None not in (one, each) and one != each:
        raise ValueError(
            f"shape is missing: y is of one sample {one}, or of {y[0]} samples {each}; give shape"
        )
    return tuple(found)


def _sample(operator: Operator, y: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of a sample whose measurement has this shape, None if there is none."""
    if not isinstance(operator, LinearOperator):
        return operator.inputs(y)
    try:
        found = operator.inputs(y)
        fits = found is not None and operator.outputs(found) == y
    except (ValueError, IndexError):
        return None
    return found if fits else None


def in_model_units(measurement: Measurement, scaling: Scaling | None, x: Tensor) -> Measurement:
    """A measurement of data = a x + b as one of x, for samples like ``x`` (B, ...).

        (y - A b) / |a| = A (a / |a|) x + (noise / |a|) eps,   |a| the geometric mean of a

    A nonlinear operator is composed with the map.
    """
    if scaling is None:
        return measurement
    operator, y = measurement.operator, measurement.y
    a, b = (part.cpu() for part in scaling.affine(x[:1]))
    if not isinstance(operator, LinearOperator):

        def composed(x: Tensor, f: Operator = operator) -> Tensor:
            return f(a.to(x) * x + b.to(x))

        return Measurement(Nonlinear(composed, tuple(x.shape[1:])), y, measurement.noise)
    operator.outputs(tuple(x.shape[1:]))  # the message of one that does not fit
    mean = float(a.log().mean().exp())
    zero = operator(b.double().expand(1, *x.shape[1:]).clone())[0]
    y = (y.double() - zero.to(y.device)) / mean
    if bool((a != a.flatten()[0]).any()):
        operator = operator @ Scale((a / mean).to(torch.float64))
    return Measurement(operator, y.to(measurement.y.dtype), measurement.noise / mean)


class _Whole(nn.Module):
    """A denoiser in place of a model, and of what is said of its samples."""

    data = codec = None
    cond: Mapping[str, Any] = {}

    def __init__(self, whole: Denoiser, n: int, device: torch.device) -> None:
        super().__init__()
        self.whole, self.sde, self.n, self.device = whole, whole.sde, n, device

    def denoiser(self, rows: Sequence[int]) -> Denoiser:
        return self.whole.among(torch.as_tensor(rows, device=self.device), self.n)

    def labels(self) -> None:
        return None
