"""Editing pictures: parts painted anew, colours, enlargement, variations, codes of the flow."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, final

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.arguments import (
    Count,
    NonNegative,
    Positive,
    Probability,
    Range,
    check,
    nearest,
)
from scoresde.data.foreign import EDITED
from scoresde.denoiser import Denoiser
from scoresde.evaluation import captioned, image_grid, save_png, scatter
from scoresde.guidance.free import Scale
from scoresde.parameterization import ScoreModel
from scoresde.posterior import (
    Blur,
    Downsample,
    Grey,
    LinearOperator,
    Mask,
    Measurement,
    Method,
    Operator,
)
from scoresde.progress import Progress, silent
from scoresde.registry import GridSampler, Sampler
from scoresde.registry.grid_files import StoredGrid
from scoresde.runs.draw import Drawn, Job, checked_seeds, drawn, said_by, sampler_by
from scoresde.runs.edit_pictures import is_path, pictures_of, repainted, whole_numbers
from scoresde.runs.editor import CODES, Editor
from scoresde.runs.infer import (
    DECODED,
    NFE,
    among_particles,
    method_of,
    particle_seeds,
    population_for,
    require_any_operator,
)
from scoresde.runs.instrument import NetworkCall
from scoresde.runs.pictures import is_image, pixels
from scoresde.runs.results import Make, ResultFolder
from scoresde.runs.space import encoded, of_states, state_shape, to_state
from scoresde.samplers import Grid, Noise, Step
from scoresde.samplers.grids import Fixed
from scoresde.sde import SDE, Until

SAMPLES, PICTURE = "edited.npz", "edit.png"
NAMES = re.compile("|".join(map(re.escape, (CODES, SAMPLES, PICTURE))) + r"|\d{6,}\.png")
COLUMNS = 16
SETTINGS = {
    "inpaint": ("mask", "box", "painted"),
    "outpaint": ("margins",),
    "colourise": (),
    "superres": ("factor",),
    "deblur": ("blur", "degrade"),
    "img2img": ("strength", "step", "grid", "sampler", "denoise", "name"),
    "interpolate": ("columns", "tolerance"),
    "invert": ("source", "tolerance"),
}
"""The operations, with the arguments of ``edit`` that belong to each alone."""
STRENGTH, FACTOR, BLUR, PATH = 0.6, 4, 1.0, 9
METHODS = {
    "inpaint": "dps",
    "outpaint": "dps",
    "colourise": "diffpir",
    "superres": "dps",
    "deblur": "diffpir",
}
"""The default methods, by measurement (docs/editing.md)."""
NOISES = {"inpaint": 0.0, "outpaint": 0.0, "colourise": 1.0, "superres": 1.0, "deblur": 1.0}
"""The default error of what is known, in levels of a pixel."""
FIXED = (Fixed, StoredGrid)
"""Grids of one process, with times that do not follow its t_max."""
SMALLEST = 0.1
"""Least length in lam of the way of ``img2img``, from its start to t_min."""


@dataclass(frozen=True, eq=False)
class Edited:
    """Results of an operation, in units of the data: ``num`` of each picture, in turn.

    Args:
        drawn: the results x (M, ...), with seed, class and conditions of each; ``rows`` // num
            are their pictures.
        num: number of results of each picture.
        before: the pictures (N, ...), of the size of the model; None for a measurement alone.
        seen: what is known of each picture, (N, ...): the mask, white where it was painted, the
            grey, small or blurred picture; None for the other operations.
        z: codes of the pictures, or along the paths between them.
        settings: what the operation was asked, as JSON values, its defaults included.
    """

    drawn: Drawn
    num: int = 1
    before: Tensor | None = None
    seen: Tensor | None = None
    z: Tensor | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def x(self) -> Tensor:
        """The results (M, ...)."""
        return self.drawn.x

    @property
    def nfe(self) -> float:
        """Mean number of network calls of a result; NaN where a solver of the flow chose it."""
        return self.drawn.nfe

    def __len__(self) -> int:
        return len(self.drawn)


def edit(
    model: ScoreModel,
    picture: Any,
    operation: str,
    *,
    mask: Any = None,
    box: Sequence[int] | None = None,
    painted: Sequence[int] | None = None,
    margins: Sequence[int] | None = None,
    factor: Count | None = None,
    blur: Positive | None = None,
    degrade: bool | None = None,
    strength: Probability | None = None,
    columns: Annotated[int, Range(ge=2)] | None = None,
    source: Any = None,
    tolerance: Positive | None = None,
    method: Method | str | None = None,
    noise: NonNegative | None = None,
    nfe: Count | None = None,
    step: Step | str | None = None,
    grid: Grid | str | None = None,
    sampler: Sampler | None = None,
    denoise: bool | None = None,
    name: str | None = None,
    num: Count | None = None,
    seeds: Iterable[int] | None = None,
    label: Any = None,
    prompt: str | Sequence[str] | None = None,
    cond: Mapping[str, Any] | None = None,
    negative: Mapping[str, Any] | str | None = None,
    guidance: Scale = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    batch: Count = 64,
    progress: Progress = silent,
    look: Callable[[int, NetworkCall], None] = lambda first, call: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Edited:
    """Edit pictures by a model that was trained on pictures of their size.

    ``inpaint`` paints a part anew and ``outpaint`` the margins; the other pixels stay exactly as
    they are. ``colourise`` colours grey pictures, ``superres`` enlarges small ones, ``deblur``
    sharpens. These five draw from the posterior of the picture by a method of
    ``registry.POSTERIORS``. ``img2img`` adds noise up to a level and removes it, along a grid as
    long as that from pure noise. ``interpolate`` draws paths between the codes of pairs, and
    ``invert`` decodes the code of a picture under what is said. A result depends on its picture
    and its seed, not on the others of its batch.

    Args:
        model: trained model, such as ``load`` returns.
        picture: one example of the data (C, H, W), or several (N, C, H, W), as an array in units
            of the data; or the path of a picture, several, or a folder. ``colourise`` also takes
            grey ones, ``superres`` small ones, ``outpaint`` those without the margins.
        operation: its name, one of the eight.
        mask: where ``inpaint`` paints, an array (H, W) of True, or the path of a grey picture of
            the same size, whose white pixels (from 128) are painted.
        box: rectangle x0, y0, x1, y1 in pixels that ``inpaint`` paints, x1 and y1 not included.
        painted: shades, 0 to 255 of each channel, of the pixels that ``inpaint`` paints.
        margins: pixels that ``outpaint`` paints at the left, top, right and bottom.
        factor: ratio of the sizes of ``superres``; 4, or that of a small picture.
        blur: standard deviation of the blur of ``deblur`` in pixels; 1 by default.
        degrade: blur the picture first; by default ``deblur`` takes it for blurred.
        strength: share sigma / (sigma + alpha std) of noise that ``img2img`` starts from: 0
            returns the picture, 1 does not depend on it; 0.6 by default.
        columns: samples on a path of ``interpolate``, both ends included; 9 by default.
        source: class of the pictures, or conditions by name, by which ``invert`` encodes them.
        tolerance: that of ``interpolate`` and ``invert``, as in ``Editor``.
        method: method of the posterior, or its name in ``registry.POSTERIORS``; by default dps,
            for ``colourise`` and ``deblur`` of pixels diffpir.
        noise: standard deviation of the error of what is known of the picture, in units of the
            data; by default 0 for painting, else one pixel level.
        nfe: most network calls of a result: 100 of a method; for ``img2img`` as in ``draw``.
        step: step of ``img2img``, as in ``draw``.
        grid: grid of ``img2img``, as in ``draw``.
        sampler: whole sampler of ``img2img`` in place of nfe, step, grid and denoise.
        denoise: end ``img2img`` with the denoised state.
        name: what messages call the sampler of ``img2img``.
        num: number of results of each picture.
        seeds: seeds of the results of every picture; by default each result has a seed of its
            own, 0, 1, ... in turn.
        label: class of the results, as in ``draw``; of several there is one for each picture.
        prompt: sentence for the results, or one for each picture.
        cond: further conditions of the results, by name.
        negative: what is said against, as in ``draw``.
        guidance: scale of guidance, as in ``draw``.
        guidance_interval: lowest and highest sigma / alpha of guidance.
        batch: results drawn at a time; it does not change them.
        progress: shows how many results are done.
        look: called at every network call, with the place of the first result of its batch.
        stopping: asked before every network call, or every batch of a flow; True stops there.

    Raises ValueError for arguments that do not fit, before the first network call; RuntimeError
    for results that are not finite.
    """
    if not isinstance(model, ScoreModel):
        raise ValueError(f"model: need a ScoreModel, got {type(model).__name__}")
    given = {k: v for k, v in locals().items() if v is not None or k == "picture"}
    _require_fitting(operation, given)
    if operation in ("interpolate", "invert"):
        return _along_the_flow(given)
    said = said_by(model, label, prompt, cond, negative, guidance, guidance_interval)
    each = checked_seeds(seeds, num, 1)
    task = _task(operation, given)
    pictures, per = len(task.x), len(each)
    size = population_for(per) if task.population else per  # of what is drawn of a picture
    if said.count not in (1, pictures):
        raise ValueError(f"num: {pictures} pictures for {said.count} values; give one for each")
    said = said.over(pictures * size)
    seeds = range(pictures * per) if seeds is None else list(each) * pictures
    drawn_from = seeds
    if task.population:
        drawn_from = [s for first in seeds[::per] for s in particle_seeds(first, size)]
    job = Job(
        model, lambda rows: task.sampler([row // size for row in rows]), task.name, drawn_from,
        said, task.shape, look=look, stopping=stopping,
    )  # fmt: skip
    if task.unchanged:
        x, every = task.x.repeat_interleave(per, 0), tuple(range(len(seeds)))
        told = tuple(map(said.each, every)) if said.cond else ()
        found = Drawn(x, tuple(seeds), 0.0, said.labels(), 0, told, every)
    else:
        if task.population:
            batch = size
        elif task.alone:  # the results of a picture share a batch with no others
            batch = max(d for d in range(1, min(per, batch) + 1) if per % d == 0)
        found = drawn(job, batch, progress=progress)
        if task.population:
            found = _of_population(found, per, size, seeds)
    if task.repainted is not None:
        rows = torch.tensor(found.rows, dtype=torch.long) // per
        anew = task.repainted.expand(pictures, *task.repainted.shape[1:])[rows]
        found = replace(found, x=torch.where(anew, found.x, task.x[rows]))
    return Edited(found, per, task.before, task.seen, settings=task.settings)


def _of_population(found: Drawn, per: int, size: int, seeds: Sequence[int]) -> Drawn:
    """The ``per`` results of each picture among its ``size`` particles."""
    done = found.rows[::size]  # the first particle of each picture
    taken = among_particles(per, size)
    kept = [k * size + place for k in range(len(done)) for place in taken]
    rows = tuple(first // size * per + k for first in done for k in range(per))
    return Drawn(
        found.x[kept],
        tuple(seeds[row] for row in rows),
        found.nfe,
        None if found.label is None else found.label[kept],
        found.unfinished // size * per,
        tuple(found.said[k] for k in kept) if found.said else (),
        rows,
    )


class _Task(NamedTuple):
    """What an operation asks for: ``sampler`` maps the pictures of a batch to their sampler.

    ``x`` are the pictures, or what is known of them; ``repainted`` are the pixels that may change,
    (1 or N, 1, H, W). ``alone`` says that pictures cannot share a batch, ``population`` that the
    results of a picture are drawn together.
    """

    x: Tensor
    shape: tuple[int, ...]
    name: str
    sampler: Callable[[list[int]], Sampler]
    settings: Mapping[str, Any]
    before: Tensor | None = None
    seen: Tensor | None = None
    repainted: Tensor | None = None
    alone: bool = False
    population: bool = False
    unchanged: bool = False


def _require_fitting(operation: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError for an unknown operation, or arguments of another one or out of range."""
    if operation not in SETTINGS:
        raise ValueError(f"operation: unknown name {operation!r}; {nearest(operation, SETTINGS)}")
    check(edit, {k: v for k, v in given.items() if k not in ("tolerance", "step", "grid")})
    require_own(operation, given)
    if operation in ("interpolate", "invert") and ("seeds" in given or given.get("num", 1) > 1):
        raise ValueError(f"num: {operation} draws no noise, so a picture has one result")


def require_own(operation: str, given: Iterable[str]) -> None:
    """Raise ValueError, naming it, for an argument that belongs to other operations."""
    owners: dict[str, list[str]] = {"nfe": ["img2img"]}
    for each, names in SETTINGS.items():
        for setting in (*names, *(("method", "noise", "nfe") if each in METHODS else ())):
            owners.setdefault(setting, []).append(each)
    for setting in given:
        if operation not in owners.get(setting, [operation]):
            raise ValueError(f"{setting}: is for {', '.join(owners[setting])}; leave it out")


def _task(operation: str, given: Mapping[str, Any]) -> _Task:
    model: ScoreModel = given["model"]
    if operation == "img2img":
        return _variation(given)
    if model.data is None or len(model.data.shape) != 3:
        raise ValueError(
            f"operation: {operation} needs a model of pictures, and their description"
        )
    if operation in ("inpaint", "outpaint"):
        return _painting(operation, given)
    return _restoring(operation, given)


# Variations --------------------------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False)
class FromPictures:
    """A sampler that starts from pictures ``x0`` (B, ...) with the noise of an earlier time.

        x(start) = alpha x0 + sigma eps

    Its grid has as many steps on the shorter way. SDEdit, arXiv 2108.01073, algorithm 1.
    """

    sampler: Sampler
    x0: Tensor
    start: float

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor:
        eps = x / float(denoiser.sde.prior().stddev)
        sde = Until(denoiser.sde, self.start)
        x = sde.perturb(self.x0.to(x), torch.tensor(self.start, dtype=torch.float64), eps)
        sampler, whole = self.sampler, denoiser.sde
        if isinstance(sampler, GridSampler) and isinstance(sampler.grid, FIXED):
            sampler = replace(sampler, grid=Squeezed(sampler.grid, whole))
        return sampler(replace(denoiser, sde=sde), x, noise, seed)


@final
@dataclass(frozen=True)
class Squeezed:
    """A grid of a whole process on the way from an earlier t_max, its lengths in lam shortened."""

    grid: Grid
    sde: SDE

    def __call__(self, sde: SDE, n: int) -> Tensor:
        ts = self.grid(self.sde, n)
        lam, first = self.sde.lam(ts), sde.lam(torch.tensor(sde.t_max, dtype=torch.float64))
        end = sde.lam(torch.tensor(sde.t_min, dtype=torch.float64))
        last = lam[-1] if lam[-1] > first + SMALLEST / 2 else (first + end) / 2
        found = sde.time(first + (lam - lam[0]) * ((last - first) / (lam[-1] - lam[0])))
        found[0] = sde.t_max
        return found


def start_of(sde: SDE, strength: float, std: float) -> float:
    """The time at which noise is this share of the state, sigma / (sigma + alpha std)."""
    end = float(sde.lam(torch.tensor(sde.t_min, dtype=torch.float64)))
    lam = min(math.log((1 - strength) / (strength * std)), end - SMALLEST)
    return float(sde.time(torch.tensor(lam, dtype=torch.float64)))


def _variation(given: Mapping[str, Any]) -> _Task:
    model: ScoreModel = given["model"]
    strength = given.get("strength", STRENGTH)
    x = pictures_of(given["picture"], model)
    shape = tuple(x.shape[1:])
    settings = {k: given[k] for k in ("nfe", "step", "grid", "denoise", "sampler") if k in given}
    state = state_shape(model, shape)
    sampler, found = sampler_by(model, state, **settings, progress=given["progress"])
    name = given.get("name", found)
    task = _Task(x, shape, name, lambda some: sampler, {"strength": strength}, x)
    if strength in (0, 1):
        return task._replace(unchanged=strength == 0)
    clean, start = to_state(model, x), start_of(model.sde, strength, model.std)
    return task._replace(sampler=lambda some: FromPictures(sampler, clean[some], start))


# What is known of a picture ----------------------------------------------------------------------


@final
@dataclass(frozen=True, eq=False)
class FromMeasurement:
    """A method of ``registry.POSTERIORS`` as a sampler of the posterior of one measurement."""

    method: Method
    measurement: Measurement
    nfe: int

    def __call__(self, denoiser: Denoiser, x: Tensor, noise: Noise, seed: int = 0) -> Tensor:
        found: Tensor = self.method(denoiser, self.measurement, x, noise, self.nfe)
        return found


def _method(given: Mapping[str, Any]) -> Method:
    """The method that is given, or the default one of the operation."""
    default = DECODED if given["model"].codec is not None else METHODS[given["operation"]]
    return method_of(given.get("method", default), given["model"].std)


def _measured(
    given: Mapping[str, Any],
    operator: Callable[[list[int]], Operator],
    y: Tensor,
    settings: Mapping[str, Any],
    alone: bool = False,
    **task: Any,
) -> _Task:
    """The task of drawing from the posterior of measurements ``y`` (N, *m) of states."""
    model, operation, nfe = given["model"], given["operation"], given.get("nfe", NFE)
    noise, method = given.get("noise", NOISES[operation]), _method(given)
    std, shape = noise * model.data.scaling.step, state_shape(model)

    def measurement(some: list[int]) -> Measurement:
        return Measurement(operator(some), y[some[0] if method.population else some], std)

    def sampler(some: list[int]) -> Sampler:
        return FromMeasurement(method, measurement(some), nfe)

    method.ready(measurement([0]), torch.empty(1 + method.population, *shape))  # raises early
    settings = {**settings, "method": method.name, "noise": noise, "nfe": nfe}
    return _Task(
        shape=tuple(model.data.shape),
        name=method.name,
        sampler=sampler,
        settings=settings,
        alone=alone or method.population,
        population=method.population,
        **task,
    )


def _painting(operation: str, given: Mapping[str, Any]) -> _Task:
    """Pixels are painted anew, the others are known."""
    model: ScoreModel = given["model"]
    channels, height, width = model.data.shape
    if operation == "outpaint":
        left, top, right, bottom = _margins(given.get("margins"), height, width)
        inner = (height - top - bottom, width - left - right)
        x = pictures_of(given["picture"], model, (channels, *inner))
        inside = (slice(top, height - bottom), slice(left, width - right))
        if tuple(x.shape[2:]) != (height, width):
            grey = model.data.scaling.decode(torch.zeros(len(x), channels, height, width))
            grey[..., inside[0], inside[1]] = x.to(grey.dtype)
            x = grey.to(x.dtype)
        anew = torch.ones(1, 1, height, width, dtype=torch.bool)
        anew[..., inside[0], inside[1]] = False
    else:
        x = pictures_of(given["picture"], model)
        anew = repainted(x, model, *(given.get(k) for k in ("mask", "box", "painted")))
    clean = units(x, model)
    alone = len(anew) > 1

    y, known = clean.masked_fill(anew, 0), ~anew
    if latent := model.codec is not None and _method(given).linear:
        y, known = _known_latents(given, clean, anew)

    def operator(some: list[int]) -> Operator:
        mask = Mask(known[some[0] if alone else 0])
        return mask if latent else of_states(model, mask)

    white = model.data.scaling.decode(torch.where(anew, 1.0, -1.0).expand(len(x), *x.shape[1:]))
    settings = {k: given[k] for k in ("mask", "box", "painted", "margins") if k in given}
    if "mask" in settings:
        settings["mask"] = str(settings["mask"]) if is_path(settings["mask"]) else "given"
    return _measured(
        given, operator, y, settings, alone, x=x, before=x, seen=white, repainted=anew
    )


def _known_latents(given: Mapping[str, Any], clean: Tensor, anew: Tensor) -> tuple[Tensor, Tensor]:
    """The known latents of pictures in model units, and where they are known (1 or N, 1, h, w).

    A latent is known if all pixels of its square are. The painted pixels, which the encoder sees
    from there, become means of the known ones around them. Raises ValueError if none is known, or
    for noise, which is of pixels.
    """
    model, name = given["model"], _method(given).name
    factor = model.codec.factor
    if given.get("noise"):
        raise ValueError(f"noise: {name} replaces latents, and noise is of pixels; leave it out")
    known = F.max_pool2d(anew.float(), factor, ceil_mode=True) == 0
    if not bool(known.flatten(1).any(1).all()):
        raise ValueError(
            f"mask: no square of {factor} x {factor} pixels is kept, that of a latent, which "
            f"{name} needs; choose dps, which measures pixels"
        )
    x = _filled(clean, (~anew).to(clean).expand(len(clean), 1, -1, -1))
    return encoded(model, x).masked_fill(~known, 0), known


def _filled(x: Tensor, known: Tensor) -> Tensor:
    """Pictures (N, C, H, W) with means of known pixels in place of those where ``known`` is 0."""
    if bool(known.all()) or x.shape[2:] == (1, 1):
        return x
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    means = F.avg_pool2d(x * known, 2, ceil_mode=True) / share.clamp(min=1e-6)
    coarse = _filled(means, (share > 0).to(x))
    wide = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return torch.where(known > 0, x, wide[..., : x.shape[2], : x.shape[3]])


def _margins(margins: Sequence[int] | None, height: int, width: int) -> tuple[int, ...]:
    if margins is None:
        raise ValueError("margins is missing: give the pixels at the left, top, right and bottom")
    found = whole_numbers(margins)
    if len(found) != 4 or min(found) < 0:
        raise ValueError(f"margins: need four numbers from 0, such as 4,0,4,0, got {margins}")
    left, top, right, bottom = found
    if not any(found) or left + right >= width or top + bottom >= height:
        raise ValueError(
            f"margins: {found} leave {width - left - right} x {height - top - bottom} of "
            f"{width} x {height} pixels; leave a part, and paint a part"
        )
    return found


def _restoring(operation: str, given: Mapping[str, Any]) -> _Task:
    """A grey, small or blurred picture is known."""
    model: ScoreModel = given["model"]
    full = channels, height, width = tuple(model.data.shape)
    operator: LinearOperator
    settings: dict[str, Any] = {}
    if operation == "colourise":
        if channels != 3:
            raise ValueError("operation: colourise needs a model of pictures in colour")
        x, operator = pictures_of(given["picture"], model, (1, height, width)), Grey()
    elif operation == "superres":
        factors = [given["factor"]] if "factor" in given else _factors(height, width)
        smaller = [(channels, height // f, width // f) for f in factors]
        x = pictures_of(given["picture"], model, *smaller)
        factor = given.get("factor", FACTOR)
        if height % factor or width % factor:
            raise ValueError(f"factor: {factor} does not divide {width} x {height} pixels")
        factor = factor if tuple(x.shape[1:]) == full else height // x.shape[2]
        operator, settings = Downsample(factor), {"factor": factor}
    else:
        blur = given.get("blur", BLUR)
        x, operator, settings = pictures_of(given["picture"], model), Blur(blur), {"blur": blur}
    degraded = tuple(x.shape[1:]) == full and (
        operation != "deblur" or given.get("degrade", False)
    )
    y = operator(units(x, model)) if degraded else units(x, model)
    scaling = model.data.scaling
    seen = scaling.decode(y.clamp(scaling.low, scaling.high) if scaling.levels else y)
    before, measured = x if degraded else None, of_states(model, operator)
    if model.codec is not None:
        require_any_operator(_method(given))
    return _measured(given, lambda some: measured, y, settings, x=x, before=before, seen=seen)


def _factors(height: int, width: int) -> list[int]:
    """The factors by which a picture may have been made smaller."""
    return [f for f in range(2, min(height, width)) if height % f == 0 and width % f == 0]


def units(x: Tensor, model: ScoreModel) -> Tensor:
    """Examples in model units; pixel levels become the middles of their bins."""
    return x.float() if model.data is None else model.data.scaling.encode(x)


# Codes of the flow -------------------------------------------------------------------------------


def _along_the_flow(given: Mapping[str, Any]) -> Edited:
    """``interpolate`` and ``invert``, batch by batch, up to where they are stopped."""
    model, batch, stopping = given["model"], given["batch"], given["stopping"]
    names = ("label", "prompt", "cond", "negative", "guidance")
    told = {k: given[k] for k in names if k in given}
    said = said_by(model, **told, interval=given.get("guidance_interval"))
    x = pictures_of(given["picture"], model)
    tolerance = given.get("tolerance", Editor.tolerance)
    editor = Editor(model, tolerance, batch, given["progress"])
    n = len(x)
    said = said.over(n)
    if said.count not in (1, n):
        raise ValueError(f"num: {n} pictures for {said.count} values; give one for each")
    if given["operation"] == "interpolate":
        columns = given.get("columns", PATH)
        found = editor.interpolate(x, said, columns)
        rows = tuple(range(n // 2 * columns))
        ends = Drawn(found.x.flatten(0, 1), (), math.nan, rows=rows)
        return Edited(ends, columns, x, None, found.z.flatten(0, 1), {"tolerance": tolerance})
    source = given.get("source")
    cond = {"cond": source} if isinstance(source, Mapping) else {"label": source}
    own = said if source is None and not said.cond else said_by(model, **cond).over(n)
    target = said if said.cond or said.negative else own
    parts: list[tuple[Tensor, Tensor]] = []
    for rows_of in torch.arange(n).split(batch):
        if stopping():
            break
        z = editor.encode(x[rows_of], own.part(rows_of.tolist()))
        parts.append((editor.decode(z, target.part(rows_of.tolist())), z))
    done = sum(len(z) for _, z in parts)
    rows = tuple(range(done))
    each = tuple(map(target.each, rows)) if target.cond else ()
    labels = target.labels()
    ends = Drawn(
        torch.cat([x.new_empty(0, *x.shape[1:]), *(x for x, _ in parts)]),
        (),
        math.nan,
        None if labels is None else labels[:done],
        0,
        each,
        rows,
    )
    codes = torch.cat([z for _, z in parts]) if parts else None
    return Edited(ends, 1, x, None, codes, {"tolerance": tolerance})


# Files -------------------------------------------------------------------------------------------


def edit_folder(folder: Path) -> ResultFolder:
    """The folder of an edit, whose files ``edit.json`` lists."""
    return ResultFolder(folder, EDITED, NAMES)


def picture_of(
    model: ScoreModel, rows: Sequence[tuple[str, Tensor]], title: str
) -> dict[str, Make]:
    """Picture of named rows of images or named sets of points; empty for other shapes."""
    x = rows[0][1]
    if is_image(x):
        images = [pixels(row, model.data.scaling) for _, row in rows]
        width = max(map(len, images))
        white = torch.full_like(images[0][:1], 255)
        whole = [torch.cat([row, white.expand(width - len(row), -1, -1, -1)]) for row in images]
        grid = captioned(image_grid(torch.cat(whole), width), title, [name for name, _ in rows])
        return {PICTURE: partial(save_png, picture=grid)}
    if x.ndim == 2 and x.shape[1] == 2:
        frame = torch.cat([row for _, row in rows])
        return {PICTURE: partial(scatter, panels=dict(rows), frame=frame)}
    return {}


def rows_of(edited: Edited, names: Sequence[str]) -> list[tuple[str, Tensor]]:
    """A named row for each picture: itself, what is known of it, and its results.

    Of other data than pictures they are the sets before and after.
    """
    x, rows = edited.x, torch.tensor(edited.drawn.rows, dtype=torch.long) // edited.num
    if not is_image(x):
        sets = {"before": edited.before, "after": x}
        return [(name, part) for name, part in sets.items() if part is not None]
    found = []
    for k in rows.unique().tolist():
        parts = [part[k : k + 1] for part in (edited.before, edited.seen) if part is not None]
        zoom = [x.shape[2] // part.shape[2] for part in parts]
        larger = [
            part.expand(-1, x.shape[1], -1, -1).repeat_interleave(f, 2).repeat_interleave(f, 3)
            for part, f in zip(parts, zoom, strict=True)
        ]
        found.append((names[k], torch.cat([*larger, x[rows == k]])))
    return found
