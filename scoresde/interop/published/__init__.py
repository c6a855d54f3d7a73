"""Published checkpoints of other programs: their files in, models of ours out.

``read`` returns the sections of a configuration and the weights of the network that they build.
Nothing is unpickled but tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scoresde.arguments import nearest
from scoresde.data.file_kinds import kind_of
from scoresde.interop.published import compvis, edm, guided, k_diffusion, lucidrains, score_sde
from scoresde.interop.published.compvis import Pipeline
from scoresde.interop.published.file import Published, PublishedError, Said, read_file
from scoresde.training.safe_files import DAMAGE, CheckpointError, brief

__all__ = ["FORMATS", "Pipeline", "Published", "PublishedError", "Said", "read"]

Reader = Callable[[Path, Mapping[str, str], dict[str, Any], Said], Published | Pipeline]
_READERS: Mapping[str, tuple[Reader, Callable[[Mapping[str, Any]], bool]]] = MappingProxyType(
    {
        "score_sde": (score_sde.read, score_sde.looks),
        "edm": (edm.read, edm.looks),
        "guided_diffusion": (guided.read, guided.looks),
        "lucidrains": (lucidrains.read, lucidrains.looks),
        "k_diffusion": (k_diffusion.read, k_diffusion.looks),
        "compvis": (compvis.read, compvis.looks),
    }
)
FORMATS = tuple(_READERS)
"""Names of the programs whose checkpoints are read."""


def read(
    path: str | Path,
    program: str,
    settings: Mapping[str, Any] | None = None,
    said: Mapping[str, Any] | None = None,
) -> Published | Pipeline:
    """Read a checkpoint of a program, one of ``FORMATS``.

    ``settings`` are those of its training, of which the ones that the file does not hold are used;
    nested ones count by their last name. ``said`` are single ones, which take precedence. Raises
    ValueError, naming the file and the remedy, for a file that is missing, damaged or of another
    program, for a pickle of code, for settings that are missing or that contradict the weights,
    and for names in ``said`` that mean nothing here.
    """
    path = Path(path).expanduser()
    if program not in FORMATS:
        raise PublishedError(f"unknown program {program!r}; {nearest(program, FORMATS)}")
    reader, looks = _READERS[program]
    if program == "edm" and path.is_file() and "pickle" in kind_of(path):
        raise PublishedError(
            f"{path}: a Python pickle, which is never opened, since it could run code; where EDM "
            f"is installed, convert it by: {edm.RECIPE}"
        )
    metadata, contents = read_file(path)
    if not looks(contents):
        alike = [name for name, (_, other) in _READERS.items() if other(contents)]
        remedy = f"it looks like {alike[0]}: give --from {alike[0]}" if alike else "check the file"
        raise PublishedError(f"{path}: not a checkpoint of {program}; {remedy}")
    known = Said(path, {"settings": settings or {}, "said": said or {}})
    try:
        found = reader(path, metadata, contents, known)
    except (PublishedError, CheckpointError):
        raise
    except DAMAGE as error:
        raise PublishedError(
            f"{path}: damaged, or not of {program} ({brief(error)}); use an intact copy"
        ) from error
    if stray := [name for name in said or {} if name not in known.asked]:
        raise PublishedError(f"{stray[0]}: means nothing here; {nearest(stray[0], known.asked)}")
    return found
