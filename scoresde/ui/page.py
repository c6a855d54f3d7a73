"""The page in a browser, on Gradio: fields made of the settings, and what the jobs leave.

Every session has its own fields and jobs; nothing of one user is shown to another. The choices are
read from the registry and the folders when the page is opened.
"""

from __future__ import annotations

import asyncio
import base64
import html
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from scoresde.arguments import EMPTY, unwrapped
from scoresde.progress import duration
from scoresde.registry import GRIDS, POSTERIORS, SAMPLERS
from scoresde.runs.edit import METHODS, SETTINGS
from scoresde.ui import service
from scoresde.ui.api import Studio
from scoresde.ui.jobs import Job, Work, one_line
from scoresde.ui.settings import (
    FOREIGN_GRID,
    OWN,
    Comparing,
    Editing,
    Said,
    Sampling,
    arguments_of,
    read,
)

POLL, WATCH = 0.2, 2.0
"""Seconds between two looks at a job, and at a training."""
SLIDERS = {"guidance": (0.0, 20.0, 0.1), "strength": (0.0, 1.0, 0.01)}
RARE = ("conditions", "guidance_interval", "denoise", "options", "noise", "nfe")
"""Fields that are folded away."""
SMALL = 128
"""Pixels; pictures of fewer are enlarged."""
SAMPLED = tuple(arguments_of(Sampling))
CSS = """
.scoresde-small, .gallery-container img, .grid-container img { image-rendering: pixelated; }
.scoresde-small { height: 200px; }
.scoresde-large { max-width: 100%; }
.scoresde-error { color: #b42318; font-weight: 600; }
body:not(.dark) .gradio-container { --block-info-text-color: var(--neutral-500); }
.gallery-container .grid-wrap { padding-top: 2rem; }
.gallery-container .caption-label { font-size: 0.7rem; padding: 0 0.3rem; }
@media (max-width: 600px) {
  .scoresde-large { max-width: max(100%, 40rem); }
  .prose:has(> .scoresde-large) { overflow-x: auto; }
  .gallery-container .grid-container { grid-template-columns: repeat(3, 1fr) !important; }
}
footer { display: none !important; }
"""
Update = Any


def built(studio: Studio) -> gr.Blocks:
    """The page over a studio."""
    with gr.Blocks(title="scoresde", delete_cache=(600, 3600), analytics_enabled=False) as page:
        gr.Markdown("# scoresde")
        with gr.Tabs():
            for make in (_sampling, _editing, _comparing, _inspecting, _training):
                make(studio, page)

        def left(request: gr.Request) -> None:
            studio.jobs.cancel_all(str(request.session_hash))

        page.unload(left)  # a page that is closed stops its jobs
    found: gr.Blocks = page.queue(default_concurrency_limit=None)
    return found


# Fields ------------------------------------------------------------------------------------------


def _choices(name: str, studio: Studio) -> list[str] | None:
    """What a field offers; None for one that is written."""
    match name:
        case "model":
            return studio.folders.models()
        case "sampler":
            return list(SAMPLERS)
        case "grid":
            return [name for name in GRIDS if name != FOREIGN_GRID]
        case "method":
            return list(POSTERIORS)
        case "operation":
            return list(SETTINGS)
        case "across" | "down":
            return [name for name in SAMPLED if name != "options"]
        case "label":
            return []
        case "denoise" | "degrade":
            return ["true", "false"]
    return None


class Fields:
    """The fields of some settings: a dropdown, a number, a box or a text for each argument."""

    def __init__(
        self, tab: str, kind: type[Said], names: Sequence[str], studio: Studio, page: Any
    ) -> None:
        self.kind, self.names, self.studio, self.tab = kind, names, studio, tab
        known = arguments_of(kind)
        made = {name: self._made(known[name]) for name in names if name not in RARE}
        with gr.Accordion("More settings", open=False):
            made |= {name: self._made(known[name]) for name in names if name in RARE}
        self.of = {name: made[name] for name in names}
        chosen = [name for name in names if _choices(name, studio) is not None]
        offered = page.load(partial(self._offered, chosen), None, [self.of[n] for n in chosen])
        self.of["model"].input(self._of_model, self.of["model"], self.every)
        offered.then(self._of_model, self.of["model"], self.every)

    @property
    def every(self) -> list[Any]:
        return list(self.of.values())

    def settings(self, values: Sequence[Any]) -> Any:
        """The settings in the fields. Raises ValueError."""
        return read(self.kind, dict(zip(self.names, values, strict=True)))

    def shown(self, values: Mapping[str, Any]) -> list[Update]:
        """Updates that fill the fields, with what the model can be told; others stay."""
        found = (
            self._of_model(values["model"]) if values.get("model") else [gr.skip()] * len(self.of)
        )
        for place, name in enumerate(self.names):
            if name in values and not (name == "model" and values[name] is None):
                before = found[place] if isinstance(found[place], dict) else {}
                found[place] = gr.update(**{**_plain(before), "value": values[name]})
        return found

    def _made(self, argument: Any) -> Any:
        kind, _ = unwrapped(argument.type)
        name, about = argument.name.replace("_", " "), argument.about
        value = None if argument.default is EMPTY else argument.default
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        common = {"label": name, "info": about, "elem_id": f"{self.tab}-{argument.name}"}
        choices = _choices(argument.name, self.studio)
        if choices is not None:
            return gr.Dropdown(choices, value=value, allow_custom_value=True, **common)
        if argument.name in SLIDERS:
            low, high, step = SLIDERS[argument.name]
            return gr.Slider(low, high, value=value, step=step, **common)
        if kind is bool:
            return gr.Checkbox(bool(value), **common)
        # A number that is not given is an empty text; a field for numbers would send 0.
        return gr.Textbox(None if value is None else str(value), **common)

    def _offered(self, names: Sequence[str]) -> list[Update]:
        """The choices of now; the model is the first of them."""
        found: dict[str, Update] = {n: {"choices": _choices(n, self.studio)} for n in names}
        found["model"]["value"] = next(iter(found["model"]["choices"]), None)
        return [gr.update(**update) for update in found.values()]

    def _of_model(self, name: str | None) -> list[Update]:
        """What a model can be told, and how it is drawn by default."""
        if not name:
            return [gr.skip()] * len(self.of)
        try:
            about = service.about(self.studio.models(name), name)
        except Exception as error:
            wrong = gr.update(info=one_line(error))
            return [wrong if name == "model" else gr.skip() for name in self.names]
        sentences = any(told["sentences"] for told in about["conditions"].values())
        more = {
            k: told["takes"] for k, told in about["conditions"].items() if not told["sentences"]
        }
        guided = bool(about["classes"] or about["conditions"])
        size = " x ".join(map(str, about["shape"]))
        line = f"{about['data']}, {size}, {about['parameters']:,} parameters, step {about['step']}"
        line = "; ".join((line, *about["notes"]))
        updates: dict[str, Update] = {
            "model": {"info": line},
            "label": {"choices": about["classes"] or []} | _shown(bool(about["classes"])),
            "prompt": _shown(sentences),
            "negative": _shown(sentences),
            "conditions": _shown(bool(more)),
            "guidance": _shown(guided, 1.0),
            "guidance_interval": _shown(guided),
            "sampler": {"value": about["sampler"]},
            "grid": {"value": about["grid"]},
            "steps": {"value": str(about["steps"])},
        }
        if more:
            listed = "; ".join(f"{k}: {takes}" for k, takes in more.items())
            updates["conditions"]["info"] = f"object in JSON of {listed}"
        return [gr.update(**updates[n]) if n in updates else gr.skip() for n in self.names]


def _shown(relevant: bool, empty: Any = None) -> dict[str, Any]:
    """A field that is shown; one that is not is emptied, because nobody could empty it."""
    return {"visible": True} if relevant else {"visible": False, "value": empty}


def _plain(update: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in update.items() if k != "__type__"}


# Running jobs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A job as the page sees it: a line, a picture, and the job when it has left something."""

    status: str
    picture: str
    ended: Job | None = None


async def _run(studio: Studio, request: gr.Request, kind: str, make: Callable[[], Work]) -> Any:
    """Queue a job and yield what is to be seen of it until it has ended."""
    try:
        job = studio.jobs.submit(kind, make(), str(request.session_hash))
    except Exception as error:  # whatever it is, it is said on the page: here and wherever below
        yield Seen(_error(one_line(error)), "")
        return
    while not job.finished:
        yield Seen(_line(job, studio.jobs.place(job)), _picture(job.shown))
        await asyncio.sleep(POLL)
    if job.error:
        yield Seen(_error(job.error), "")
    else:
        yield Seen(_line(job, 0), "", job if job.record else None)


def _line(job: Job, place: int) -> str:
    told = job.told()
    left = "" if told["left"] is None else f", {duration(told['left'])} left"
    match job.state:
        case "queued":
            text = f"waits, {place} before it"
        case "running":
            text = f"{job.note or 'begins'}{left}"
        case _:
            calls = f", {told['nfe']:g} network calls" if told.get("nfe") else ""
            kept = f", {told['unfinished']} unfinished samples" if told.get("unfinished") else ""
            text = f"{job.state} in {told['seconds']:.1f} s{calls}{kept}"
    bar = f'<progress value="{job.share:.3f}" max="1" style="width: 100%"></progress>'
    return f"{bar}<div>{html.escape(text)}</div>"


def _error(text: str) -> str:
    return f'<div class="scoresde-error">{html.escape(text)}</div>'


def _picture(path: Path | None) -> str:
    """A picture as a part of the page, a small one enlarged; "" for one that is gone."""
    try:
        content = b"" if path is None else path.read_bytes()
    except OSError:
        content = b""
    if not content:
        return ""
    small = int.from_bytes(content[16:20], "big") < SMALL  # the width in a PNG
    code = base64.b64encode(content).decode()
    look = "scoresde-small" if small else "scoresde-large"
    return f'<img class="{look}" src="data:image/png;base64,{code}">'


def _stop(studio: Studio, kind: str, button: Any) -> None:
    def stop(request: gr.Request) -> None:
        studio.jobs.cancel_all(str(request.session_hash), kind)

    button.click(stop, None, None, queue=False)


def _buttons(tab: str, name: str) -> tuple[Any, Any]:
    with gr.Row():
        go = gr.Button(name, variant="primary", elem_id=f"{tab}-go")
        return go, gr.Button("Stop", variant="stop", elem_id=f"{tab}-stop")


def _pictures(tab: str, label: str) -> Any:
    return gr.Gallery(
        label=label, columns=6, format="png", object_fit="contain", elem_id=f"{tab}-gallery"
    )


def _gallery(job: Job) -> list[tuple[str, str]]:
    """The pictures of a job with their seeds."""
    seeds = [f"seed {seed}" for seed in job.record.get("seeds", ())]
    files = [name for name in job.record["files"] if name[0].isdigit() and name.endswith(".png")]
    named = zip(files, seeds or [""] * len(files), strict=False)
    return [(str(job.folder / name), text) for name, text in named]


def _content(path: str | None) -> list[bytes]:
    return [Path(path).read_bytes()] if path else []


class Scrubber:
    """A slider over pictures, one of which is shown; the list is kept for each session."""

    def __init__(self, tab: str, label: str) -> None:
        self.files = gr.State([])
        self.slider = gr.Slider(1, 2, value=1, step=1, label=label, visible=False)
        self.shown = gr.HTML(elem_id=f"{tab}-samples")
        self.slider.input(self._one, [self.files, self.slider], self.shown, show_progress="hidden")

    @property
    def parts(self) -> list[Any]:
        return [self.files, self.slider, self.shown]

    def fill(self, files: Sequence[Path]) -> list[Update]:
        """Updates that show these pictures, the last one first."""
        n = len(files)
        slider = gr.update(maximum=max(n, 2), value=n, visible=n > 1)
        return [[str(file) for file in files], slider, _picture(files[-1] if files else None)]

    @staticmethod
    def _one(files: Sequence[str], place: int) -> str:
        return _picture(Path(files[min(int(place), len(files)) - 1])) if files else ""


# The pages ---------------------------------------------------------------------------------------


def _sampling(studio: Studio, page: Any) -> None:
    with gr.Tab("Sample", id="sample"), gr.Row():
        with gr.Column(scale=2):
            fields = Fields("sample", Sampling, SAMPLED, studio, page)
            dropped = gr.File(
                label="A picture drawn here or by scoresde sample fills the form",
                file_types=[".png"],
                height=140,
                elem_id="sample-dropped",
            )
        with gr.Column(scale=3):
            draw, stop = _buttons("sample", "Draw")
            status, preview = gr.HTML(elem_id="sample-status"), gr.HTML(elem_id="sample-preview")
            gallery = _pictures("sample", "Samples, each a PNG with its settings")
            files = gr.File(label="Files", visible=False, elem_id="sample-files")

    async def run(request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        def work() -> Work:
            return partial(service.sample, studio.models, fields.settings(values))

        async for seen in _run(studio, request, "sample", work):
            shown, listed, picture = gr.skip(), gr.skip(), seen.picture
            if seen.ended is not None:
                picture = _picture(seen.ended.folder / "scatter.png")  # of points
                shown = _gallery(seen.ended)
                rest = [
                    n
                    for n in seen.ended.record["files"]
                    if n not in {Path(p).name for p, _ in shown}
                ]
                paths = [str(seen.ended.folder / name) for name in rest]
                listed = gr.update(value=paths, visible=bool(paths))
            yield seen.status, picture, shown, listed

    def fill(path: str | None) -> Any:
        if not path:
            return [gr.skip()] * (len(fields.every) + 1)
        try:
            found = service.asked_by(Path(path), studio.models)
        except Exception as error:
            text = _error(one_line(error).replace(path, Path(path).name))
            return [*[gr.skip()] * len(fields.every), text]
        line = "<div>the form is that of the picture</div>"
        if found["model"] is None:
            line = _error("the model of this picture is not in the folders; choose one")
        return [*fields.shown(found), line]

    draw.click(run, fields.every, [status, preview, gallery, files], show_progress="hidden")
    dropped.upload(fill, dropped, [*fields.every, status])
    _stop(studio, "sample", stop)


EDITED = (
    "model",
    "operation",
    *OWN,
    *(name for name in SAMPLED if name not in ("model", "denoise")),
)


def _own(operation: str) -> tuple[str, ...]:
    """The settings that belong to an operation."""
    method = ("method", "noise", "nfe") if operation in METHODS else ()
    return (*SETTINGS.get(operation, ()), *method)


def _editing(studio: Studio, page: Any) -> None:
    with gr.Tab("Edit", id="edit"), gr.Row():
        with gr.Column(scale=2):
            fields = Fields("edit", Editing, EDITED, studio, page)
        with gr.Column(scale=3):
            with gr.Row():
                first = gr.File(label="Picture", height=140, elem_id="edit-picture")
                second = gr.File(label="Other end of interpolate", height=140, visible=False)
            fit = gr.Checkbox(True, label="crop and resize it to the size of the model")
            canvas = gr.ImageEditor(
                label="Paint where to inpaint",
                type="numpy",
                image_mode="RGBA",
                sources=(),
                transforms=(),
                layers=False,
                format="png",
                elem_id="edit-canvas",
                brush=gr.Brush(default_size=40, colors=["#d9680d"], color_mode="fixed"),
            )
            go, stop = _buttons("edit", "Edit the picture")
            status, preview = gr.HTML(elem_id="edit-status"), gr.HTML()
            scrub = Scrubber("edit", "results")
            gallery = _pictures("edit", "Results, each a PNG with its settings")

    def load(name: str, path: str | None, fitted: bool) -> Any:
        """The picture on the canvas, large enough to paint on."""
        if not path:
            return None, ""
        try:
            loaded = studio.models(name)
            picture = service.shades_of(loaded, Path(path).read_bytes(), fitted)
        except Exception as error:
            return None, _error(one_line(error))
        large = service.outlined(picture)
        return {"background": large, "layers": [], "composite": large}, ""

    def relevant(operation: str) -> Any:
        own, hidden = _own(operation), ("sampler", "grid", "steps", "options")
        found = []
        for name in EDITED:
            if name in OWN:
                found.append(gr.update(visible=name in own))
            elif name in hidden:
                found.append(gr.update(visible=operation == "img2img"))
            else:
                found.append(gr.skip())
        ends = gr.update(visible=operation == "interpolate")
        return [*found, ends, gr.update(visible=operation == "inpaint")]

    async def run(request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        *filled, one, other, fitted, drawn = values

        def work() -> Work:
            given = dict(zip(EDITED, filled, strict=True))
            operation, own = given["operation"], _own(given["operation"])
            given = {k: v for k, v in given.items() if k not in OWN or k in own}
            settings = read(Editing, given | {"fit": fitted})
            pictures = _content(one) + (_content(other) if operation == "interpolate" else [])
            mask = None
            if operation == "inpaint":
                loaded = studio.models(settings.model)
                service.require_pictures(loaded)
                mask = _mask(drawn, *loaded.data.shape[-2:])
            return partial(service.edited, studio.models, settings, pictures, mask)

        async for seen in _run(studio, request, "edit", work):
            results = [gr.skip()] * 4
            if seen.ended is not None:
                shown = _gallery(seen.ended)
                inner = [Path(path) for path, _ in shown]
                results = [*scrub.fill(inner), shown]
            yield [seen.status, seen.picture, *results]

    model, operation = fields.of["model"], fields.of["operation"]
    for event in (first.upload, first.clear, fit.input):
        event(load, [model, first, fit], [canvas, status])
    operation.change(relevant, operation, [*fields.every, second, canvas])
    page.load(relevant, operation, [*fields.every, second, canvas])
    outputs = [status, preview, *scrub.parts, gallery]
    go.click(run, [*fields.every, first, second, fit, canvas], outputs, show_progress="hidden")
    _stop(studio, "edit", stop)


def _mask(drawn: Mapping[str, Any] | None, height: int, width: int) -> np.ndarray:
    """The mask that was painted on a canvas. Raises ValueError for none."""
    layers = [] if drawn is None else [x for x in drawn["layers"] if x is not None]
    if not layers:
        raise ValueError("mask: give a picture, and paint what is to be painted anew")
    return service.painted(np.max([layer[..., 3] for layer in layers], 0), height, width)


COMPARED = (
    "model",
    "across",
    "columns",
    "down",
    "rows",
    "reference",
    *(name for name in SAMPLED if name != "model"),
)


def _comparing(studio: Studio, page: Any) -> None:
    with gr.Tab("Compare", id="compare"), gr.Row():
        with gr.Column(scale=2):
            fields = Fields("compare", Comparing, COMPARED, studio, page)
        with gr.Column(scale=3):
            go, stop = _buttons("compare", "Draw the table")
            status = gr.HTML(elem_id="compare-status")
            picture = gr.HTML(elem_id="compare-picture")
            heads = ["row", "column", "calls", "seconds", "error"]
            table = gr.Dataframe(headers=heads, interactive=False, elem_id="compare-table")

    async def run(request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        def work() -> Work:
            return partial(service.compared, studio.models, fields.settings(values))

        async for seen in _run(studio, request, "compare", work):
            if seen.ended is None:
                yield seen.status, gr.skip(), gr.skip()
                continue
            rows = [
                [
                    *(cell["row"], cell["column"]),
                    *(_number(cell[k], of) for k, of in NUMBERS.items()),
                    cell["failed"] or _number(cell["error"], ".2e"),
                ]
                for cell in seen.ended.record["cells"]
            ]
            yield seen.status, _picture(seen.ended.folder / "compare.png"), rows

    go.click(run, fields.every, [status, picture, table], show_progress="hidden")
    _stop(studio, "compare", stop)


NUMBERS = {"nfe": "g", "cell_seconds": ".2f"}
"""The numbers of a cell, and how they are written."""


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _inspecting(studio: Studio, page: Any) -> None:
    with gr.Tab("Inspect", id="inspect"), gr.Row():
        with gr.Column(scale=2):
            fields = Fields("inspect", Sampling, SAMPLED, studio, page)
        with gr.Column(scale=3):
            with gr.Row(equal_height=True):
                process = gr.Button("Process and grid", elem_id="inspect-process")
                path = gr.Button("Trajectory", elem_id="inspect-path")
                field = gr.Button("Flow and density", elem_id="inspect-field")
                stop = gr.Button("Stop", variant="stop", elem_id="inspect-stop")
            status = gr.HTML(elem_id="inspect-status")
            scrub = Scrubber("inspect", "picture")
            picture = gr.File(label="Picture to score", height=140, elem_id="inspect-picture")
            fit = gr.Checkbox(False, label="crop and resize it to the size of the model")
            score = gr.Button("Bits per dimension", elem_id="inspect-score")

    outputs = [status, *scrub.parts]

    def running(make: Callable[[Any, Sequence[Any]], Work]) -> Any:
        async def run(request: gr.Request, *values: Any) -> AsyncIterator[Any]:
            *own, dropped, fitted = values
            settings_of = partial(fields.settings, own)
            extra = (_content(dropped), fitted)
            async for seen in _run(studio, request, "inspect", lambda: make(settings_of(), extra)):
                if seen.ended is None:
                    yield [seen.status, gr.skip(), gr.skip(), gr.skip()]
                    continue
                job = seen.ended
                files = [job.folder / name for name in job.record["files"]]
                yield [seen.status + _scored(job.record), *scrub.fill(files)]

        return run

    makes: dict[Any, Callable[[Any, Sequence[Any]], Work]] = {
        process: lambda s, extra: partial(service.scheduled, studio.models, s),
        path: lambda s, extra: partial(service.followed, studio.models, s),
        field: lambda s, extra: partial(service.flowed, studio.models, s),
        score: lambda s, extra: partial(service.scored, studio.models, s, *extra),
    }
    for button, make in makes.items():
        button.click(running(make), [*fields.every, picture, fit], outputs, show_progress="hidden")
    _stop(studio, "inspect", stop)


def _scored(record: Mapping[str, Any]) -> str:
    """The value of a picture with its errors, in lines."""
    if "bits_per_dim" not in record:
        return ""
    lines = [f"<b>{record['bits_per_dim']:.4f} bits per dimension</b>"]
    for name in ("draws_error", "solver_error", "change_with_half_the_effort"):
        if record[name] is not None:
            lines.append(f"{name.replace('_', ' ')}: {record[name]:.1e}")
    if "below" in record:
        lines.append(f"more than {record['below']:.0%} of {record['examples']} test examples")
    lines += [record["is"], *record["warnings"]]
    return "".join(f"<div>{line if '<b>' in line else html.escape(line)}</div>" for line in lines)


def _training(studio: Studio, page: Any) -> None:
    trainings, folders = studio.trainings, studio.folders
    with gr.Tab("Train", id="train") as tab, gr.Row():
        with gr.Column(scale=2):
            out = gr.Dropdown(
                [],
                allow_custom_value=True,
                label="run folder",
                elem_id="train-out",
                info="a run to watch or to resume, or a new folder",
            )
            config = gr.Dropdown(
                [],
                allow_custom_value=True,
                label="configuration",
                elem_id="train-config",
                info="YAML file in the folders; without one the defaults",
            )
            changes = gr.Textbox(
                label="changes",
                elem_id="train-changes",
                info="keys of the configuration, such as train.steps=500",
            )
            with gr.Row():
                start = gr.Button("Start", variant="primary", elem_id="train-go")
                resume = gr.Button("Resume", elem_id="train-resume")
                halt = gr.Button("Stop", variant="stop", elem_id="train-stop")
        with gr.Column(scale=3):
            status = gr.HTML(elem_id="train-status")
            loss = gr.HTML(elem_id="train-loss")
            scrub = Scrubber("train", "samples over time")
            lines = gr.Textbox(label="Log", lines=8, interactive=False)
    timer, pressed = gr.Timer(WATCH, active=False), gr.State("")
    outputs = [status, loss, *scrub.parts, lines, timer]

    def offered() -> Any:
        runs = folders.runs()
        value = next(iter(runs), str(folders.roots[0] / "mine"))
        return gr.update(choices=runs, value=value), gr.update(choices=folders.configurations())

    def watch(name: str, seen: Sequence[str] = ()) -> Any:
        try:
            report = trainings.report(name)
        except Exception as error:
            return [_error(one_line(error)), "", *scrub.fill(()), "", gr.Timer(active=False)]
        state, step, curve = (report[name] for name in ("state", "step", "loss"))
        last = "" if step is None else f", step {step}"
        curve = _picture(None if curve is None else Path(curve))
        text = f"<div>{html.escape((state or 'not started here') + last)}</div>"
        if state == "failed":
            text = _error((report["lines"] or ["failed"])[-1])
        pictures = [Path(path) for path in report["samples"]]
        log = "\n".join(report["lines"])
        return [
            text,
            curve,
            # The slider stays where it is until there is another picture.
            *(scrub.fill(pictures) if report["samples"] != seen else [gr.skip()] * 3),
            log,
            gr.Timer(active=state == "running"),
        ]

    def act(of: Callable[..., None], *given: Any) -> Any:
        try:
            of(*given)
        except Exception as error:
            gr.Warning(html.escape(one_line(error)))  # the next look at the run ends the line
            return [_error(one_line(error)), *[gr.skip()] * 6]
        return watch(given[0])

    def begin(name: str, file: str | None, text: str, request: gr.Request) -> Any:
        return act(partial(trainings.start, owner=str(request.session_hash)), name, file, text)

    def go_on(name: str, text: str, request: gr.Request) -> Any:
        start = partial(trainings.start, resume=True, owner=str(request.session_hash))
        return act(start, name, None, text)

    def end(name: str, before: str, request: gr.Request) -> Any:
        """The training of another page is stopped by a second press."""
        found = act(trainings.stop, name, str(request.session_hash), before == name)
        return [*found[:-1], gr.Timer(active=True), "" if before == name else name]

    page.load(offered, None, [out, config])
    tab.select(watch, [out, scrub.files], outputs, show_progress="hidden")
    start.click(begin, [out, config, changes], outputs)
    resume.click(go_on, [out, changes], outputs)
    halt.click(end, [out, pressed], [*outputs, pressed])
    out.input(watch, out, outputs)
    timer.tick(watch, [out, scrub.files], outputs, show_progress="hidden")
