"""The JSON API: what a request is answered. It needs no web server, which only carries it.

GET  /samplers  /grids  /operations  /models  /models?model=NAME
POST /sample  /edit  /compare                  begin a job, which is answered at once
GET  /progress?job=ID  /jobs/ID  /jobs/ID/FILE
POST /interrupt  /png-info
"""

from __future__ import annotations

import base64
import binascii
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from scoresde.runs.recipe import VIEWERS
from scoresde.ui import service
from scoresde.ui.folders import Folders, Models
from scoresde.ui.jobs import WAITING, Busy, Job, Jobs, NotFound, one_line
from scoresde.ui.settings import (
    MOST_SEEDS,
    Comparing,
    Editing,
    Sampling,
    arguments_of,
    read,
    require_known,
)
from scoresde.ui.training import Trainings

MOST_BYTES = 32 * 2**20
"""The largest body of a request."""


@dataclass(frozen=True)
class Studio:
    """All that the server holds: folders, models in memory, the queue and the trainings."""

    folders: Folders
    models: Models
    jobs: Jobs
    trainings: Trainings
    work: Path


@contextmanager
def opened(
    roots: tuple[Path, ...], device: str = "cpu", waiting: int = WAITING
) -> Iterator[Studio]:
    """A studio over some folders. Its results are in a temporary folder and end with it."""
    folders = Folders(roots)
    with tempfile.TemporaryDirectory(prefix="scoresde-ui-") as work:
        trainings = Trainings(folders, Path(work) / "logs", device)
        with Jobs(Path(work) / "jobs", waiting) as jobs:
            try:
                yield Studio(folders, Models(folders, device), jobs, trainings, Path(work))
            finally:
                trainings.close()


class Answer(NamedTuple):
    """The status of an answer and its JSON value, or the file that it is."""

    status: int
    body: Any


def respond(
    studio: Studio, method: str, path: str, query: Mapping[str, str], body: Any = None
) -> Answer:
    """Answer a request; ``body`` is the JSON value of a POST. Errors are one line."""
    try:
        job = path.startswith("/jobs/")
        if not job and path not in ROUTES:
            raise NotFound(f"{path!r:.80}: no such address; see docs/ui.md")
        expected, names, answer = ("GET", (), None) if job else ROUTES[path]
        if method != expected:
            return Answer(405, {"error": f"{path:.80}: is asked by {expected}, got {method}"})
        if method == "POST" and not isinstance(body, dict):
            raise ValueError("body: need a JSON object")
        require_known(query, names if method == "GET" else ())
        if answer is None:
            return _job(studio, path.removeprefix("/jobs/"))
        require_known(given := body if method == "POST" else query, names)
        return Answer(200, _finite(answer(studio, given)))
    except NotFound as error:
        return Answer(404, {"error": one_line(error)})
    except Busy as error:
        return Answer(503, {"error": one_line(error)})
    except ValueError as error:
        return Answer(400, {"error": one_line(error)})
    except Exception as error:  # a fault of the program: it is said, and the server goes on
        return Answer(500, {"error": one_line(error)})


def _models(studio: Studio, query: Mapping[str, str]) -> Any:
    if "model" in query:
        return service.about(studio.models(query["model"]), query["model"])
    return [{"name": name} for name in studio.folders.models()]


def _sample(studio: Studio, body: Mapping[str, Any]) -> Any:
    settings = read(Sampling, body)
    service.require(studio.models, settings)
    return _begun(studio, "sample", partial(service.sample, studio.models, settings))


def _edit(studio: Studio, body: Mapping[str, Any]) -> Any:
    given = dict(body)
    pictures = given.pop("pictures", [])
    if not isinstance(pictures, list):
        raise ValueError("pictures: need a list of files in base64")
    files = [_decoded("pictures", picture) for picture in pictures]
    mask = given.pop("mask", None)
    mask = None if mask is None else _decoded("mask", mask)
    settings = read(Editing, given)
    studio.folders.find(settings.model)
    drawn = settings.operation not in ("interpolate", "invert")
    each = len(settings.each()) if drawn else settings.columns or 1
    if len(files) * each > MOST_SEEDS:
        raise ValueError(f"pictures: {len(files)} of {each} results; at most {MOST_SEEDS} in all")
    work = partial(service.edited, studio.models, settings, files, mask)
    return _begun(studio, "edit", work)


def _compare(studio: Studio, body: Mapping[str, Any]) -> Any:
    settings = read(Comparing, body)
    for row in settings.cells():
        for cell in row:
            service.require(studio.models, cell)
    return _begun(studio, "compare", partial(service.compared, studio.models, settings))


def _begun(studio: Studio, kind: str, work: Callable[[Job], Mapping[str, Any]]) -> Any:
    job = studio.jobs.submit(kind, work)
    return {**job.told(), "place": studio.jobs.place(job)}


def _progress(studio: Studio, query: Mapping[str, str]) -> Any:
    job = _asked(studio, query)
    return {**job.told(), "place": studio.jobs.place(job)}


def _interrupt(studio: Studio, body: Mapping[str, Any]) -> Any:
    job = _asked(studio, body)
    studio.jobs.cancel(job)
    return job.told()


def _asked(studio: Studio, given: Mapping[str, Any]) -> Job:
    if not isinstance(name := given.get("job"), str):
        raise ValueError("job is missing; give the one that the request was answered with")
    return studio.jobs.get(name)


def _png_info(studio: Studio, body: Mapping[str, Any]) -> Any:
    from PIL import Image

    content = _decoded("image", body.get("image"))
    with tempfile.TemporaryDirectory(dir=studio.work) as folder:
        path = Path(folder) / "picture.png"
        path.write_bytes(content)
        try:
            found = service.asked_by(path, studio.models)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "image")) from None
        with Image.open(path) as picture:
            info = picture.info.get(VIEWERS, "")
    return {"info": info, "settings": {k: v for k, v in found.items() if v not in (None, "")}}


def _job(studio: Studio, rest: str) -> Answer:
    name, slash, file = rest.partition("/")
    job = studio.jobs.get(name)
    if not slash:
        return Answer(200, _finite({**job.told(), "place": studio.jobs.place(job)}))
    if file not in job.record.get("files", ()) or not (job.folder / file).is_file():
        raise NotFound(f"{file!r:.80}: not among the files of this job")
    return Answer(200, job.folder / file)


def _decoded(name: str, text: Any) -> bytes:
    """Bytes from base64, as such or as a data URL."""
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except (AttributeError, ValueError, binascii.Error):
        raise ValueError(f"{name}: need the bytes of a file in base64") from None


def _finite(value: Any) -> Any:
    """A JSON value without NaN and infinity, which JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list | tuple) else value


Handler = Callable[[Studio, Mapping[str, Any]], Any]
ROUTES: Mapping[str, tuple[str, tuple[str, ...], Handler]] = {
    "/samplers": ("GET", (), lambda studio, query: service.samplers()),
    "/grids": ("GET", (), lambda studio, query: service.grids()),
    "/operations": ("GET", (), lambda studio, query: service.operations()),
    "/models": ("GET", ("model",), _models),
    "/sample": ("POST", tuple(arguments_of(Sampling)), _sample),
    "/edit": ("POST", (*arguments_of(Editing), "pictures", "mask"), _edit),
    "/compare": ("POST", tuple(arguments_of(Comparing)), _compare),
    "/progress": ("GET", ("job",), _progress),
    "/interrupt": ("POST", ("job",), _interrupt),
    "/png-info": ("POST", ("image",), _png_info),
}
"""The method of an address, the names that it takes, and what answers it."""
