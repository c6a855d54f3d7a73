"""Drawing samples from a model, each a function of its own seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.config import build_sampler
from scoresde.data.dataset import reading
from scoresde.data.labels import is_number, label_values, listing
from scoresde.denoiser import Denoiser, compiled
from scoresde.guidance.free import Scale
from scoresde.parameterization import ScoreModel
from scoresde.progress import Progress, silent
from scoresde.registry import (
    GRIDS,
    NEEDY_GRIDS,
    SAMPLERS,
    SELF_PACED,
    STEPS,
    GridSampler,
    Sampler,
    build_step,
    constructor,
)
from scoresde.runs.compiling import compiling
from scoresde.runs.instrument import Instrument, NetworkCall, Stopped, require_finite
from scoresde.runs.optimised import GridSearch, configured_search, optimised_grid
from scoresde.runs.processes import World, jointly
from scoresde.runs.said import Said, said_of, sentence_condition
from scoresde.runs.space import state_shape, to_data
from scoresde.runs.train_setup import takes_labels
from scoresde.samplers import (
    ArctanGrid,
    Grid,
    Step,
    per_sample_noise,
    recommended,
    starting_noise,
    suited_grid,
)
from scoresde.sde import SDE
from scoresde.training.held_out import evaluating

DEFAULT_NUM, DEFAULT_NFE = 64, 19
MOST = 10_000_000
LARGEST_SEED = 2**64 - 1
ALONE = World()


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples ``x`` (N, ...) in units of the data, and the seed and class of each.

    ``nfe`` is the mean number of network calls a sample, counted where the denoiser is called.
    With self-conditioning each is two, with guidance it is one of a larger batch.
    ``label`` (N,) holds places among the classes, or is None; ``said`` what else was said of each
    sample, by name. The last ``unfinished`` samples are denoised states of a sampler that was
    stopped on the way. ``rows`` are the places of the samples in what was asked for.
    """

    x: Tensor
    seeds: tuple[int, ...]
    nfe: float
    label: Tensor | None = None
    unfinished: int = 0
    said: tuple[Mapping[str, Any], ...] = ()
    rows: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.x)


def draw(
    model: ScoreModel,
    num: int | None = None,
    *,
    seeds: Iterable[int] | None = None,
    nfe: int | None = None,
    step: Step | str | None = None,
    grid: Grid | str | None = None,
    sampler: Sampler | None = None,
    label: Any = None,
    prompt: str | Sequence[str] | None = None,
    cond: Mapping[str, Any] | None = None,
    negative: Mapping[str, Any] | str | None = None,
    guidance: Scale = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    batch: int = 64,
    denoise: bool | None = None,
    compile: bool = False,
    shape: Sequence[int] | None = None,
    name: str | None = None,
    world: World = ALONE,
    progress: Progress = silent,
    look: Callable[[int, NetworkCall], None] = lambda first, call: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Drawn:
    """Draw samples from a model, each from its own stream of noise, the starting noise included.

    So a sample does not depend on the others in its batch (but those of the black-box solvers
    ``ode`` and ``sde`` do). Without nfe, step, grid and sampler it is the sampler that the model's
    configuration names, or else ``samplers.recommended``. Of several labels, prompts or values of
    a condition there are as many samples of each, in turn.

    Args:
        model: trained model, such as ``load`` returns.
        num: number of samples; as many as there are seeds or values, or 64.
        seeds: seed of every sample; 0, 1, ... by default.
        nfe: most network calls a sample, the denoising call included; 19 by default.
        step: sampler's step, or a name in ``registry.SAMPLERS``.
        grid: times between which it steps, or a name in ``registry.GRIDS``.
        sampler: whole sampler in place of nfe, step, grid and denoise.
        label: class of the samples by name or place, or several; "all" stands for all classes.
        prompt: sentence, or several, for the condition of the model that reads sentences.
        cond: value, or several, of further conditions, by name.
        negative: what is said against, by name, or a sentence; it takes the place of the
            prediction with nothing said.
        guidance: scale of ``guidance.free``: 1 is the plain conditional, 0 the unconditional.
        guidance_interval: lowest and highest sigma / alpha of guidance; all by default.
        batch: samples drawn at a time; it does not change them.
        denoise: end with the denoised state.
        compile: compile the network, which takes up to minutes, and makes its calls faster; on a
            GPU they are captured as a graph.
        shape: shape of one sample, for a model without a description of its data, whose samples
            are then returned in model units.
        name: what messages call the sampler.
        world: processes that share the batches; the first gets all samples, the others their own.
        progress: shows how many samples are done.
        look: called at every network call, with the place of the first sample of its batch.
        stopping: asked before every network call; True stops there.

    Raises ValueError for arguments that do not fit, RuntimeError for samples that are not finite.
    """
    if not isinstance(model, ScoreModel):
        raise ValueError(f"model: need a ScoreModel, got {type(model).__name__}")
    require_whole(num=num, nfe=nfe, batch=batch)
    said = said_by(model, label, prompt, cond, negative, guidance, guidance_interval)
    # "all" is a few of each.
    several = said.count > 1 and not isinstance(label, str)
    seeds = checked_seeds(seeds, num, said.count if several else max(DEFAULT_NUM, said.count))
    said = said.over(len(seeds))
    if model.data is None and shape is None:
        raise ValueError("shape is missing: the model does not say what it was trained on")
    known = None if model.data is None else tuple(model.data.shape)
    shape = tuple(shape or known or ())
    if known is not None and shape != known:
        raise ValueError(
            f"shape: the model was trained on examples of {known}, got {shape}; leave it out, or "
            "train on examples of that shape"
        )
    state = state_shape(model, shape)
    same, found_name = sampler_by(model, state, nfe, step, grid, denoise, sampler, progress)
    job = Job(
        model, lambda rows: same, name or found_name, seeds, said, shape, compile, look, stopping
    )
    return drawn(job, batch, world, progress)


# The loop over the batches -----------------------------------------------------------------------


class _Part(NamedTuple):
    """The samples of a batch in units of the data, whose first one has the place ``first``."""

    first: int
    x: Tensor
    calls: int
    unfinished: bool


@dataclass(frozen=True)
class Job:
    """What the batches of a call share; ``sampler`` maps places of samples to their sampler.

    ``shape`` is that of a sample in units of the data.
    """

    model: ScoreModel
    sampler: Callable[[Sequence[int]], Sampler]
    name: str
    seeds: Sequence[int]
    said: Said
    shape: tuple[int, ...]
    compile: bool = False
    look: Callable[[int, NetworkCall], None] = lambda first, call: None
    stopping: Callable[[], bool] = lambda: False

    def part(self, first: int, batch: int, show: Callable[[NetworkCall], None]) -> _Part | None:
        """Draw a batch; None if it was stopped before its first network call."""
        rows = list(range(first, min(first + batch, len(self.seeds))))
        n, device = len(rows), self.model.device
        if self.compile and first:  # a smaller batch would be compiled anew
            rows += [rows[-1]] * (batch - n)
        seeds = [self.seeds[row] for row in rows]
        dtype = next((p.dtype for p in self.model.parameters()), None)
        instrument = Instrument(self.name, show, self.stopping, dtype=dtype)
        noise = per_sample_noise(seeds)
        like = torch.empty(len(seeds), *state_shape(self.model, self.shape), device=device)
        x = starting_noise(self.model.sde, like, noise)
        denoiser = self.said.denoiser(rows)
        denoiser = instrument.on(compiled(denoiser) if self.compile else denoiser)
        try:
            with evaluating(self.model), compiling("compile"):
                end, stopped = self.sampler(rows)(denoiser, x, noise, seeds[0]), False
        except Stopped:
            if instrument.last is None:
                return None
            end, stopped = instrument.last.x0, True
        require_finite(end, self.name, "at the end", dtype)
        x = to_data(self.model, end[:n].cpu(), self.shape)
        return _Part(first, x, instrument.count, stopped)


def drawn(job: Job, batch: int, world: World = ALONE, progress: Progress = silent) -> Drawn:
    """The samples of a job, drawn batch by batch up to where it is stopped."""
    seeds, said = job.seeds, job.said
    firsts = range(0, len(seeds), batch)[world.rank :: world.size]
    mine = sum(len(seeds[first : first + batch]) for first in firsts)
    parts = jointly(world, lambda: _parts(job, firsts, batch, mine, progress))
    found = sorted(_gathered(world, parts), key=lambda part: (part.unfinished, part.first))
    rows = [row for part in found for row in range(part.first, part.first + len(part.x))]
    none = to_data(job.model, torch.empty(0, *job.shape), job.shape)
    x = torch.cat([none, *(part.x for part in found)])
    return Drawn(
        x,
        tuple(seeds[row] for row in rows),
        sum(part.calls * len(part.x) for part in found) / max(len(x), 1),
        None if (places := said.labels()) is None else places[rows],
        sum(len(part.x) for part in found if part.unfinished),
        tuple(map(said.each, rows)) if said.cond else (),
        tuple(rows),
    )


def _parts(
    job: Job, firsts: Iterable[int], batch: int, total: int, progress: Progress
) -> list[_Part]:
    """The batches of this process, up to where it is stopped."""
    found: list[_Part] = []
    started, calls = time.perf_counter(), 0
    with progress(total, "samples") as advance:
        for first in firsts:

            def show(call: NetworkCall, first: int = first) -> None:
                nonlocal calls
                calls += 1
                rate = calls / (time.perf_counter() - started)
                advance(0, f"call {call.number}, {rate:.3g} calls/s")
                job.look(first, call)

            part = job.part(first, batch, show)
            if part is None:
                break
            found.append(part)
            advance(len(part.x))
            if part.unfinished:
                break
    return found


def _gathered(world: World, parts: list[_Part]) -> list[_Part]:
    """The parts of all processes in the first of them; in the others their own."""
    if world.size == 1:
        return parts
    from torch import distributed

    found: list[Any] | None = [None] * world.size if world.rank == 0 else None
    distributed.gather_object(parts, found)
    return parts if found is None else [_Part(*part) for theirs in found for part in theirs]


# Seeds and labels --------------------------------------------------------------------------------


def require_whole(**values: Any) -> None:
    """Raise ValueError, naming the argument, for what is not a whole number from 1."""
    for name, value in values.items():
        if value is not None and not (hasattr(value, "__index__") and index(value) >= 1):
            raise ValueError(f"{name}: need a whole number from 1, got {value!r}")


def said_by(
    model: ScoreModel,
    label: Any = None,
    prompt: str | Sequence[str] | None = None,
    cond: Mapping[str, Any] | None = None,
    negative: Mapping[str, Any] | str | None = None,
    guidance: Scale = 1.0,
    interval: tuple[float, float] | None = None,
) -> Said:
    """What these arguments of ``draw`` say. Raises ValueError."""
    if not isinstance(cond, Mapping | None):
        raise ValueError(f"cond: need a mapping of conditions by name, got {cond!r:.60}")
    cond = dict(cond or {})
    if prompt is not None:
        name = sentence_condition(model, "prompt")
        if cond.get(name) is not None:
            raise ValueError(f"prompt: cond has {name} too; give it once")
        cond[name] = prompt
    if label is not None and cond.get("label") is not None:
        raise ValueError("label: cond has it too; give it once")
    if "label" not in model.conditions:
        label = cond.pop("label", None) if label is None else label
        if (places := _places(label, model)) is not None:
            cond = {"label": places, **cond}
    elif label is not None:
        cond["label"] = _every(label, model)
    return said_of(model, cond, negative, guidance, interval)


def checked_seeds(seeds: Iterable[int] | None, num: int | None, default: int) -> Sequence[int]:
    """The seed of each sample: those given, or 0 to num - 1. Raises ValueError."""
    if num is not None and num > MOST:
        raise ValueError(f"num: need 1 to {MOST:,}, got {num}")
    if seeds is None:
        seeds = range(num or default)
    try:
        seeds = seeds if isinstance(seeds, range) else [index(seed) for seed in seeds]
    except TypeError:
        raise ValueError(f"seeds: need whole numbers, such as range(4), got {seeds!r}") from None
    if not seeds or len(seeds) > MOST:
        raise ValueError(f"seeds: need 1 to {MOST:,} of them, got {len(seeds):,}")
    if not 0 <= min(seeds) <= max(seeds) <= LARGEST_SEED:
        raise ValueError(f"seeds: need 0 <= seed < 2^64, got {min(seeds)} to {max(seeds)}")
    if num is not None and num != len(seeds):
        raise ValueError(f"num: {num} samples but {len(seeds)} seeds; leave one of them out")
    return seeds


def places_of(label: Any, model: ScoreModel, n: int) -> Tensor | None:
    """The place (n,) among the classes of a model of every sample; None without a label.

    Of several labels there are as many of each, in blocks. A label is the name of a class; a
    number is a place instead where no class is named by a number. Raises ValueError for a model
    without classes, or one that needs a class, for labels that name none, and for too few samples.
    """
    if (places := _places(label, model)) is None:
        return None
    if len(places) > n:
        raise ValueError(f"num: {n} samples for {len(places)} labels; ask for more samples")
    return places[torch.arange(n) * len(places) // n]


def _every(label: Any, model: ScoreModel) -> Any:
    """The label, or all classes of the condition of this name for "all"."""
    classes = getattr(model.conditions["label"], "classes", ())
    every = isinstance(label, str) and label == "all" and isinstance(classes, tuple)
    return list(classes) if every and "all" not in classes else label


def _places(label: Any, model: ScoreModel) -> Tensor | None:
    config, data = model.config, model.data
    if "label" in model.conditions:
        return None if label is None else model.read(label=_every(label, model))["label"]
    if label is None:
        if model.needs_label:
            raise ValueError("label is missing: the network needs a class")
        if config is not None and config.conditional and config.train.label_dropout == 0:
            raise ValueError(
                "label is missing: this model never learned to do without a class "
                "(train.label_dropout=0)"
            )
        return None
    classes = None if data is None else data.classes
    if not takes_labels(model.net) or (config is not None and not config.conditional):
        raise ValueError("label: this model was trained without classes; leave it out")
    if isinstance(label, str) and label == "all" and "all" not in (classes or ()):
        if classes is None:
            raise ValueError("label: the model does not say which classes it has; give numbers")
        return torch.arange(len(classes))
    scalar = isinstance(label, str | int | float) or getattr(label, "ndim", 1) == 0
    with reading("label"):
        values = label_values([label] if scalar else label)
    if not len(values):
        raise ValueError("label: empty; give at least one")
    if classes is None:
        if values.dtype.kind == "U" or values.min() < 0:
            raise ValueError(f"label: need numbers from 0, got {values[0].item()!r}")
        return torch.from_numpy(values)
    numbered = any(map(is_number, classes))
    places = {name: k for k, name in enumerate(classes)}
    known = f"choose from {listing(classes)}"
    if values.dtype.kind != "U" and not numbered:
        known = f"choose from 0 to {len(classes) - 1}, or by name: {listing(classes)}"
        places = {str(k): k for k in range(len(classes))}
    for value in map(str, values):
        if value not in places:
            raise ValueError(f"label: no class {value!r}; {known}")
    return torch.tensor([places[str(value)] for value in values])


# Samplers ----------------------------------------------------------------------------------------


def sampler_by(
    model: ScoreModel,
    shape: tuple[int, ...],
    nfe: int | None = None,
    step: Step | str | None = None,
    grid: Grid | str | None = None,
    denoise: bool | None = None,
    sampler: Sampler | None = None,
    progress: Progress = silent,
) -> tuple[Sampler, str]:
    """The sampler that these arguments of ``draw`` name, and what messages call it.

    Raises ValueError for arguments that exclude each other.
    """
    for argument, value in {"step": step, "grid": grid, "sampler": sampler}.items():
        if isinstance(value, type) or not (
            value is None or callable(value) or (isinstance(value, str) and argument != "sampler")
        ):
            raise ValueError(f"{argument}: need an object that can be called, got {value!r}")
    if sampler is not None:
        if any(given is not None for given in (nfe, step, grid, denoise)):
            raise ValueError("sampler: a whole sampler replaces nfe, step, grid and denoise")
        return sampler, _name_of(sampler)
    if nfe is None and step is None and grid is None and model.config is not None:
        sample = model.config.sample
        search = configured_search(sample, model.std)
        found = None if search is None else optimised_grid(model, shape, search, None, progress)[0]
        built: Any = build_sampler(sample, found, model.std)
        return replace(built, **({} if denoise is None else {"denoise": denoise})), (
            sample.sampler.kind
        )
    last = denoise is None or denoise
    name = "recommended" if step is None else step if isinstance(step, str) else _name_of(step)
    if name in SELF_PACED or (name in SAMPLERS and name not in STEPS):
        if nfe is not None or grid is not None:
            given = "nfe" if nfe is not None else "grid"
            raise ValueError(f"{given}: {name} paces itself; leave it out")
        if name not in SELF_PACED:
            return constructor(SAMPLERS, name)(denoise=last), name
        paced = build_step(name, {}, 1)
        return GridSampler(suited_grid(paced, model.std), paced, 1, last), name
    times, calls = _grid_of(grid), DEFAULT_NFE if nfe is None else nfe
    made, steps = _within(model, times or ArctanGrid(), name, step, calls, last)
    if grid is None or grid == "recommended":
        times = suited_grid(made, model.std)
    if times is None:
        search = GridSearch(name, made, steps)
        times, _ = optimised_grid(model, shape, search, None, progress)
    return GridSampler(times, made, steps, last), name


def _grid_of(grid: Grid | str | None) -> Grid | None:
    """The grid of a name; None for one that is yet to be optimised."""
    if grid is None or not isinstance(grid, str):
        return ArctanGrid() if grid is None else grid
    make = constructor(GRIDS, grid)
    if grid == "optimised":
        return None
    if grid in NEEDY_GRIDS:
        raise ValueError(f"grid: {grid!r} needs arguments; give the grid itself")
    return make()


def _within(
    model: ScoreModel, grid: Grid, name: str, step: Step | str | None, nfe: int, denoise: bool
) -> tuple[Step, int]:
    """A step, and the largest number of its steps that take at most ``nfe`` network calls."""

    def made(n: int) -> Step:
        if step is None:
            return recommended(n + 1, std=model.std)[0]
        return build_step(step, {}, n, model.std) if isinstance(step, str) else step

    def calls(n: int) -> int:
        return calls_of(GridSampler(grid, made(n), n, denoise), model.sde)

    n = max(1, (nfe - denoise) // made(1).nfe_per_step)
    while n > 1 and calls(n) > nfe:
        n -= 1
    while calls(n + 1) <= nfe:
        n += 1
    if (least := calls(n)) > nfe:
        raise ValueError(f"nfe: {name} takes at least {least} network calls, got {nfe}")
    return made(n), n


def calls_of(sampler: Sampler, sde: SDE) -> int:
    """The network calls of a sampler for each sample; of one that paces itself a rough number."""
    instrument = Instrument(strict=False)
    denoiser = instrument.on(Denoiser(sde, lambda x, t: x / 2))
    sampler(denoiser, torch.ones(1, 1), _ones)
    return instrument.count


def _ones(x: Tensor, t: Tensor | None = None, s: Tensor | None = None) -> Tensor:
    return torch.ones_like(x)


def _name_of(value: object) -> str:
    return getattr(value, "__name__", type(value).__name__)
