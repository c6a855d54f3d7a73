"""What the page and the API do: functions of settings that fill the folder of a job.

All of it is in ``runs``; here are the files, the progress and the previews of a job.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import scoresde
from scoresde.config import Section, build_dataset
from scoresde.convergence import draws_noise, gap
from scoresde.data.images import picture_levels
from scoresde.evaluation.figures import histogram
from scoresde.registry import (
    GRIDS,
    POSTERIORS,
    SAMPLERS,
    SELF_PACED,
    STEPS,
    GridSampler,
    Sampler,
    build_step,
    summary,
)
from scoresde.runs.compare import MOST_CALLS
from scoresde.runs.draw import Drawn, calls_of, draw, said_by
from scoresde.runs.edit import METHODS, SETTINGS, edit, edit_folder, picture_of, rows_of
from scoresde.runs.edit_pictures import fitted, pictures_of
from scoresde.runs.field_plot import PANELS, save_field
from scoresde.runs.infer import NFE
from scoresde.runs.instrument import NetworkCall
from scoresde.runs.load import LoadedRun
from scoresde.runs.pictures import (
    PREVIEWS,
    Recorder,
    picture_files,
    pixels,
    write_samples,
)
from scoresde.runs.process_plot import save_process
from scoresde.runs.recipe import recipe
from scoresde.runs.said import sentence_condition
from scoresde.runs.samples import configured_sampler, drawn_settings, sampling_settings
from scoresde.runs.score import score, valued
from scoresde.runs.score_report import report_of
from scoresde.runs.table_plot import Cell, save_table
from scoresde.samplers import suited_grid
from scoresde.ui.folders import Models
from scoresde.ui.jobs import Job, one_line
from scoresde.ui.settings import (
    FOREIGN_GRID,
    OWN,
    Comparing,
    Editing,
    Said,
    Sampling,
    pairs,
    restored,
)

MOST_FRAMES = 60
"""The most pictures of a trajectory."""
TOLERANCE = 1e-5
"""Of the exact paths that a comparison measures errors against."""
BESIDE = 32
"""Test examples whose bits per dimension a picture is shown among."""

# What can be chosen ------------------------------------------------------------------------------


def samplers() -> list[dict[str, Any]]:
    """Every sampler of the registry, with its order and network calls a step."""
    found = []
    for name in SAMPLERS:
        entry: dict[str, Any] = {"name": name, "about": summary(SAMPLERS[name])}
        entry["options"] = list(SAMPLERS.arguments(name))
        if name in STEPS:
            step = build_step(name, {}, 20)
            entry |= {"order": step.order, "calls": step.nfe_per_step}
            entry |= {"noise": draws_noise(step), "self_paced": name in SELF_PACED}
        found.append(entry)
    return found


def grids() -> list[dict[str, Any]]:
    """Every grid of the registry that needs no file."""
    return [
        {"name": name, "about": summary(GRIDS[name]), "options": list(GRIDS.arguments(name))}
        for name in GRIDS
        if name != FOREIGN_GRID
    ]


def operations() -> list[dict[str, Any]]:
    """Every operation on pictures, the settings of its own, and its methods."""
    return [
        {
            "name": name,
            "settings": [key for key in settings if key in (*OWN, "mask")],
            "methods": list(POSTERIORS) if name in METHODS else [],
        }
        for name, settings in SETTINGS.items()
    ]


def about(loaded: LoadedRun, name: str) -> dict[str, Any]:
    """What a model makes, and what may be said to it."""
    model, data = loaded.model, loaded.data
    conditions = {
        key: {"takes": condition.takes(), "sentences": condition.sentences}
        for key, condition in model.conditions.items()
        if key != "label"
    }
    sample = loaded.config.sample
    return {
        "model": name,
        "step": loaded.step,
        "data": data.name,
        "shape": list(data.shape),
        "levels": data.scaling.levels,
        "classes": list(data.classes) if loaded.classed and data.classes else None,
        "conditions": conditions,
        "latents": model.codec is not None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "sampler": sample.sampler.kind,
        "grid": sample.grid.kind,
        "steps": sample.steps,
        "notes": list(loaded.notes),
    }


def asked_by(picture: Path, models: Models) -> dict[str, Any]:
    """The settings that a picture carries, as those of ``Sampling``; its model if it is there.

    Raises ValueError for a picture without them.
    """
    found = recipe(picture)
    source = Path(found["checkpoint"]).resolve()
    near = {Path(name).resolve(): name for name in models.folders.models()}
    name = next((near[path] for path in (source, *source.parents) if path in near), None)
    read = {} if name is None else models(name).model.conditions
    sentences = [key for key, condition in read.items() if condition.sentences]
    return restored(found, name, sentences[0] if len(sentences) == 1 else None)


# Drawing -----------------------------------------------------------------------------------------


def require(models: Models, settings: Sampling) -> None:
    """Raise NotFound or ValueError for settings that the model cannot be drawn with."""
    loaded = models(settings.model)
    settings.section(loaded.config)
    told = settings.told(loaded)
    interval = told.pop("guidance_interval")
    said_by(loaded.model, **told, interval=interval).over(len(settings.each()))


def sample(models: Models, settings: Sampling, job: Job) -> dict[str, Any]:
    """Draw samples: a picture of each with its settings, or a file of arrays."""
    loaded = models(settings.model)
    section, told = settings.section(loaded.config), settings.told(loaded)
    recorder = Recorder(loaded.data, None, job.folder, 1, False, loaded.model)
    began = time.perf_counter()
    drawn = _drawn(loaded, section, settings.each(), told, job, recorder)
    seconds = time.perf_counter() - began
    if not len(drawn):
        return {"files": [], "nfe": 0.0}
    record = drawn_settings(loaded, section, told, drawn, seconds, batch=len(drawn))
    if drawn.unfinished:
        record |= {"unfinished": drawn.unfinished}
    title = f"{loaded.data.name}: {section.sampler.kind}, {drawn.nfe:g} network calls"
    write_samples(job.folder, drawn, loaded.data, record, title=title)
    return {**_outcome(job.folder, drawn), "drawing_seconds": seconds}


def _drawn(
    loaded: LoadedRun,
    section: Section,
    seeds: Sequence[int],
    told: Mapping[str, Any],
    job: Job,
    recorder: Recorder,
    every: bool = False,
) -> Drawn:
    """Draw with previews, now and then or at every so many calls."""
    sampler, _ = configured_sampler(loaded, section, progress=job.stoppable)
    calls = calls_of(sampler, loaded.model.sde)
    job.expect(len(seeds), calls)
    recorder.preview_every = math.ceil(calls / MOST_FRAMES) if every else 1
    if not every:
        job.preview = partial(_preview, recorder)

    def look(first: int, call: NetworkCall) -> None:
        if every:
            recorder(first, call)
        job.look(first, call)

    return draw(
        loaded.model,
        seeds=seeds,
        sampler=sampler,
        name=section.sampler.kind,
        **told,
        batch=len(seeds),
        progress=job.progress,
        look=look,
        stopping=job.stopping,
    )


def _preview(recorder: Recorder, first: int, call: NetworkCall) -> Path | None:
    """Write the picture of a call and return it, without the one before."""
    recorder(first, call)
    written = sorted((recorder.folder or Path()).glob(f"{PREVIEWS}/*.png"))
    for old in written[:-2]:  # the one before may be being read
        old.unlink()
    return written[-1] if written else None


def _outcome(folder: Path, drawn: Drawn) -> dict[str, Any]:
    """The files of a drawing, with the seeds of its pictures."""
    return {
        "files": sorted(path.name for path in folder.iterdir() if path.is_file()),
        "seeds": list(drawn.seeds),
        "unfinished": drawn.unfinished,
        "nfe": None if math.isnan(drawn.nfe) else drawn.nfe,
    }


# Editing -----------------------------------------------------------------------------------------


def edited(
    models: Models, settings: Editing, pictures: Sequence[bytes], mask: Any, job: Job
) -> dict[str, Any]:
    """Edit pictures, given as the bytes of their files.

    ``mask`` is an array (H, W) of True where ``inpaint`` paints, or the bytes of a grey picture.
    """
    loaded, operation = models(settings.model), settings.operation
    model, told = loaded.model, settings.told(loaded)
    given = {name: value for name in OWN if (value := getattr(settings, name)) is not None}
    if mask is not None:
        given["mask"] = _kept(job, "mask.png", mask) if isinstance(mask, bytes) else mask
    record: dict[str, Any] = {"operation": operation, "checkpoint": str(loaded.source.resolve())}
    if operation == "img2img":
        section = settings.section(loaded.config)
        sampler, _ = configured_sampler(loaded, section, progress=job.stoppable)
        given |= {"sampler": sampler, "name": section.sampler.kind}
        record |= sampling_settings(loaded, section)
    seeds = settings.each() if operation not in ("interpolate", "invert") else None
    calls = settings.nfe or NFE
    if "sampler" in given:
        calls = calls_of(given["sampler"], model.sde)
    if seeds is not None:
        job.expect(len(seeds) * len(pictures), calls)
    recorder = Recorder(loaded.data, None, job.folder, 1, False, model)
    job.preview = partial(_preview, recorder)
    found = edit(
        model,
        read_pictures(loaded, pictures, settings.fit, job),
        operation,
        **given,
        **told,
        seeds=seeds,
        progress=job.stoppable if operation == "interpolate" else job.progress,
        look=job.look,
        stopping=job.stopping,
    )
    if not len(found):
        return {"files": [], "nfe": 0.0}
    names = [f"picture {k + 1}" for k in range(len(pictures))]
    nfe = None if math.isnan(found.nfe) else found.nfe
    record |= {**found.settings, "guidance": told["guidance"], "nfe": nfe}
    record |= {"model_hash": loaded.digest, "version": scoresde.__version__}
    more = [{"picture": names[row // found.num % len(names)]} for row in found.drawn.rows]
    files = picture_files(found.drawn, loaded.data, record, more)
    files |= picture_of(model, rows_of(found, names), f"{loaded.data.name}: {operation}")
    edit_folder(job.folder).write(files, record)
    return _outcome(job.folder, found.drawn)


def read_pictures(loaded: LoadedRun, pictures: Sequence[bytes], fit: bool, job: Job) -> Any:
    """Pictures from the bytes of their files: fitted examples, or files as they are."""
    require_pictures(loaded)
    if not pictures:
        raise ValueError("picture is missing; give one")
    if fit:
        return torch.stack([fitted(content, loaded.model) for content in pictures])
    return [_kept(job, f"picture-{k + 1}.png", content) for k, content in enumerate(pictures)]


def shades_of(loaded: LoadedRun, content: bytes, fit: bool) -> np.ndarray:
    """The shades of a picture, uint8 (C, H, W), fitted to the model or as they are."""
    require_pictures(loaded)
    if not fit:
        return picture_levels(content)
    found: np.ndarray = pixels(fitted(content, loaded.model)[None], loaded.data.scaling)[0].numpy()
    return found


def require_pictures(loaded: LoadedRun) -> None:
    """Raise ValueError for a model of other data than pictures."""
    if len(shape := loaded.data.shape) != 3:
        raise ValueError(f"model: makes examples {tuple(shape)}, no pictures; choose another")


def _kept(job: Job, name: str, content: bytes) -> Path:
    """A file in the folder of a job."""
    path = job.folder / "given" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


# Comparing ---------------------------------------------------------------------------------------


def compared(models: Models, settings: Comparing, job: Job) -> dict[str, Any]:
    """Draw every cell of a table from the same noise: its calls, its seconds and its error.

    The error is the relative L2 distance of the end states from those of the exact path of the
    probability flow under the same conditions, over all samples of a cell. A sampler that draws
    noise has none. A cell that fails says why, and the others are drawn.
    """
    rows = settings.cells()
    exact: dict[Any, Tensor] = {}
    table: list[dict[str, Any]] = []
    drawn: list[Cell] = []
    with job.progress(len(rows) * len(rows[0]), "cells") as advance:
        for cell in (cell for row in rows for cell in row):
            loaded = models(cell.model)
            found: dict[str, Any] = {
                "row": _headed(cell, settings.down),
                "column": _headed(cell, settings.across),
                **dict.fromkeys(("nfe", "cell_seconds", "error", "failed")),
            }
            x, began = None, time.perf_counter()
            try:
                x, end, found["nfe"] = _cell(loaded, cell, job)
                found["cell_seconds"] = time.perf_counter() - began
                if settings.reference and _has_path(loaded, cell):
                    key = (cell.model, cell.seeds, repr(cell.told(loaded)))
                    if key not in exact and not job.stopping():
                        exact[key] = _cell(loaded, cell, job, _exact(loaded))[1]
                    if not job.stopping():
                        found["error"] = gap(end, exact[key]).relative
            except RuntimeError as error:  # samples that are not finite
                found["failed"] = one_line(error)
            if job.stopping():
                break
            table.append(found)
            drawn.append(Cell(_in_words(found), x, loaded.data.scaling))
            advance(1)
    if drawn:
        save_table(job.folder / "compare.png", drawn, len(rows[0]))
    return {"cells": table, "files": ["compare.png"] if drawn else []}


def _headed(cell: Sampling, name: str) -> str:
    """The value of a setting in a cell, with its name."""
    if "." in name:
        return f"{name} {pairs(cell.options)[name]}"
    value = getattr(cell, name)
    return f"{name} {','.join(map(str, value)) if isinstance(value, tuple) else value}"


def _in_words(found: Mapping[str, Any]) -> str:
    """What a cell is and costs."""
    if found["failed"] is not None:
        return f"{found['row']}, {found['column']}: {found['failed']}"
    error = "" if found["error"] is None else f", error {found['error']:.1e}"
    cost = f"{found['nfe']:g} calls, {found['cell_seconds']:.2f} s"
    return f"{found['row']}, {found['column']}: {cost}{error}"


def _exact(loaded: LoadedRun) -> GridSampler:
    """The probability flow at a small tolerance."""
    options = {"rtol": TOLERANCE, "atol": TOLERANCE, "max_nfe": MOST_CALLS}
    step = build_step("dpm_adaptive", options, 1)
    return GridSampler(suited_grid(step, loaded.model.std), step, 1)


def _has_path(loaded: LoadedRun, cell: Sampling) -> bool:
    """Whether a sampler ends, denoised, on a path to compare with: it draws no noise."""
    section, std = cell.section(loaded.config), loaded.model.std
    kind = section.sampler.kind
    if kind not in STEPS or not section.denoise:
        return bool(section.denoise and kind == "ode")
    return not draws_noise(build_step(kind, section.sampler.values, section.steps, std))


def _cell(
    loaded: LoadedRun, cell: Sampling, job: Job, sampler: Sampler | None = None
) -> tuple[Tensor, Tensor, float]:
    """Samples in units of the data, their end states in model units, and the calls."""
    section, seeds = cell.section(loaded.config), cell.each()
    if sampler is None:
        sampler, _ = configured_sampler(loaded, section, progress=job.stoppable)
    ends: dict[int, Tensor] = {}

    def look(first: int, call: NetworkCall) -> None:
        ends[first] = call.x0  # the last is the end, because that is denoised

    drawn = draw(
        loaded.model,
        seeds=seeds,
        sampler=sampler,
        name=section.sampler.kind,
        **cell.told(loaded),
        batch=len(seeds),
        look=look,
        stopping=job.stopping,
    )
    end = torch.cat([x.cpu() for x in ends.values()]) if ends else torch.empty(0)
    return drawn.x, end, drawn.nfe


# Inspecting --------------------------------------------------------------------------------------


def scheduled(models: Models, settings: Sampling, job: Job) -> dict[str, Any]:
    """Draw the process of a model, and the times of a grid on it."""
    loaded = models(settings.model)
    section = settings.section(loaded.config)
    sampler, _ = configured_sampler(loaded, section, progress=job.stoppable)
    if not isinstance(sampler, GridSampler):
        raise ValueError(f"sampler: {section.sampler.kind} has no grid; choose another")
    sde = loaded.model.sde
    ts = sampler.grid(sde, sampler.steps)
    title = f"{type(sde).__name__}, {section.grid.kind} grid of {len(ts) - 1} steps"
    save_process(job.folder / "process.png", sde, ts, title)
    return {"files": ["process.png"], "times": ts.tolist(), "lam": sde.lam(ts).tolist()}


def followed(models: Models, settings: Sampling, job: Job) -> dict[str, Any]:
    """Draw samples and keep a picture of the denoised state at every call, or at 60 of them."""
    loaded = models(settings.model)
    recorder = Recorder(loaded.data, None, job.folder, 1, False, loaded.model)
    section, told = settings.section(loaded.config), settings.told(loaded)
    drawn = _drawn(loaded, section, settings.each(), told, job, recorder, every=True)
    frames = sorted(path.name for path in (job.folder / PREVIEWS).glob("*.png"))
    if not frames:
        raise ValueError("model: a trajectory is shown of pictures and of points in the plane")
    return {"files": [f"{PREVIEWS}/{name}" for name in frames], "nfe": drawn.nfe}


def scored(
    models: Models, settings: Said, pictures: Sequence[bytes], fit: bool, job: Job
) -> dict[str, Any]:
    """Bits per dimension of a picture with their errors, and where it lies among test examples."""
    loaded = models(settings.model)
    model, told = loaded.model, _unguided(settings.told(loaded))
    label, said = told["label"], dict(told["cond"])
    if told["prompt"] is not None:
        said[sentence_condition(model, "prompt")] = told["prompt"]
    x = pictures_of(read_pictures(loaded, pictures, fit, job), model)
    data = (x, {name: [value] for name, value in said.items()}) if said else x
    of, codec, notes = "picture", model.codec, list[str]()
    if codec is not None and (codec.law is None or codec.adversarial):
        of, notes = "latents", ["of the latent of the picture; its codec has no law of pictures"]
    own = score(
        model, data, label=label, check=1, of=of, progress=job.progress, stopping=job.stopping
    )
    report = report_of(own)
    found: dict[str, Any] = {
        "bits_per_dim": own.bits_per_dim,
        "draws_error": report["draws_se"],
        "solver_error": report["told_error"],
        "change_with_half_the_effort": (report["solver_error"] or {}).get("change"),
        "is": report["is"],
        "warnings": [*notes, *report["warnings"]],
        "files": [],
    }
    conditional = True if said or label is not None else None
    try:
        bits = _beside(models, loaded, conditional, of, job)
    except (ValueError, OSError) as error:
        return found | {"warnings": [*found["warnings"], f"no test examples: {error}"]}
    histogram(
        job.folder / "histogram.png",
        {f"{len(bits)} test examples": bits},
        "bits per dimension",
        {"this picture": own.bits_per_dim},
    )
    below = float((bits < own.bits_per_dim).double().mean())
    return found | {"below": below, "examples": len(bits), "files": ["histogram.png"]}


def _beside(
    models: Models, loaded: LoadedRun, conditional: bool | None, of: str, job: Job
) -> Tensor:
    """Bits per dimension of the first test examples of a model, scored once."""
    if (key := (loaded.digest, conditional, of)) not in models.bits:
        dataset = build_dataset(loaded.config.data)
        scores = score(
            loaded.model,
            dataset,
            num=min(BESIDE, len(dataset.test)),
            conditional=conditional,
            of=of,
            progress=job.progress,
            stopping=job.stopping,
        )
        models.bits[key] = valued(scores.bits)
    return models.bits[key]


def flowed(models: Models, settings: Said, job: Job) -> dict[str, Any]:
    """Draw the density and the velocity of a model of points in the plane at several times."""
    loaded = models(settings.model)
    if tuple(loaded.data.shape) != (2,):
        raise ValueError("model: the field is drawn of points in the plane; choose such a model")
    told = _unguided(settings.told(loaded))
    said = said_by(loaded.model, **{k: told[k] for k in ("label", "prompt", "cond")})
    if said.count > 1:
        raise ValueError("label: the field is drawn of one class, or of none; choose one")
    denoiser = said.over(1).denoiser([0])
    with job.progress(PANELS, "times") as advance:
        save_field(job.folder / "field.png", denoiser, lambda: advance(1), job.stopping)
    return {"files": ["field.png"]}


def _unguided(told: dict[str, Any]) -> dict[str, Any]:
    """What is said. Raises ValueError for guidance, which makes a density that no one knows."""
    if told["guidance"] != 1:
        raise ValueError("guidance: a guided density is not normalised; set it to 1")
    return told


def outlined(picture: Tensor | np.ndarray, least: int = 384) -> np.ndarray:
    """A picture uint8 (C, H, W) enlarged for painting on, (h, w, 3)."""
    x = np.asarray(picture)
    factor = max(1, round(least / max(x.shape[1:])))
    large = np.moveaxis(np.broadcast_to(x, (3, *x.shape[1:])), 0, -1)
    enlarged: np.ndarray = large.repeat(factor, 0).repeat(factor, 1)
    return enlarged


def painted(alpha: np.ndarray, height: int, width: int) -> np.ndarray:
    """The mask (height, width) of what was painted, ``alpha`` (h, w), on an enlarged picture.

    A pixel is painted if half of its square is. Raises ValueError for another size.
    """
    h, w = alpha.shape
    if not h or not w or h % height or w % width or h // height != w // width:
        raise ValueError(
            f"mask: {w} x {h} pixels are no multiple of the {width} x {height} of the model; "
            "load the picture again, of this size or resized"
        )
    squares = (alpha > 0).reshape(height, h // height, width, w // width)
    found: np.ndarray = squares.mean((1, 3)) >= 0.5
    return found
