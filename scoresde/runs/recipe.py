"""What a PNG says of itself: settings that viewers show, and those that draw it again."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

KEY, VIEWERS = "scoresde", "parameters"
MOST_ROWS = 2**16
"""The largest batch that a picture can ask for."""
KINDS: dict[str, tuple[type, ...]] = {
    "checkpoint": (str,),
    "seed": (int,),
    "sampler": (dict,),
    "grid": (dict, type(None)),
    "steps": (int,),
    "denoise": (bool,),
    "weights": (str,),
    "ema_decay": (float, type(None)),
    "ema_width": (float, type(None)),
    "variant": (str, type(None)),
    "dtype": (str, type(None)),
    "nearest": (bool,),
    "class": (str, type(None)),
    "label": (int, type(None)),
    "conditions": (dict,),
    "negative": (dict, type(None)),
    "guidance": (float, int),
    "guidance_interval": (list, type(None)),
    "compile": (bool,),
    "model_hash": (str,),
    "row": (int, type(None)),
    "rows": (int, type(None)),
}
"""The settings that draw a picture again, with the types of their JSON values."""
SINCE = {"conditions": {}, "guidance": 1.0, "compile": False, "model_hash": "", "nearest": False}
"""Those that pictures of earlier versions do not have; others may be null."""


def recipe(path: Path) -> dict[str, Any]:
    """The settings of a picture that ``scoresde sample`` wrote, checked; nothing is executed.

    Raises ValueError, naming the file, for another picture.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as picture:
            text = picture.info.get(KEY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or "no picture that can be read"
        raise ValueError(f"{path}: {why}; give a PNG of scoresde sample") from None
    if not isinstance(text, str):
        raise ValueError(f"{path}: holds no settings of scoresde; give a PNG of scoresde sample")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its settings are damaged ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: its settings are damaged (no object)")
    if "operation" in found:
        raise ValueError(f"{path}: edited by scoresde edit; give a PNG of scoresde sample")
    if "seed" not in found and "seeds" not in found and "sampler" in found:
        raise ValueError(f"{path}: shows several samples; give the picture of one")
    found = {**SINCE, **found}
    for name, kinds in KINDS.items():
        value = found.setdefault(name, None)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            shown = repr(value)[:40]
            raise ValueError(f"{path}: its settings are damaged ({name} is {shown})")
    numbers = found["guidance"], *(found["guidance_interval"] or ())
    if not all(isinstance(v, int | float) and abs(v) <= sys.float_info.max for v in numbers):
        raise ValueError(f"{path}: its settings are damaged (guidance)")
    if "\0" in found["checkpoint"]:
        raise ValueError(f"{path}: its settings are damaged (checkpoint)")
    row, rows = found["row"] or 0, found["rows"] or 1
    if not 0 <= row < rows <= MOST_ROWS:
        raise ValueError(f"{path}: its settings are damaged (row {row} of {rows})")
    return {name: found[name] for name in KINDS}


def parameters(settings: Mapping[str, Any], width: int, height: int) -> str:
    """The settings as lines that viewers read: prompt, negative prompt, and pairs in a last line.

    The form is that of AUTOMATIC1111's web UI, whose reader takes ``name: value`` between commas
    and JSON text for values that hold a comma, a colon or a line break.
    """
    said: dict[str, Any] = dict(settings.get("conditions") or {})
    against: dict[str, Any] = dict(settings.get("negative") or {})
    checkpoint = Path(str(settings.get("checkpoint", "model")))
    folder = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else None
    interval = settings.get("guidance_interval")
    pairs = {
        "Steps": settings.get("steps"),
        "Sampler": (settings.get("sampler") or {}).get("kind"),
        "Schedule type": (settings.get("grid") or {}).get("kind"),
        "CFG scale": settings.get("guidance"),
        "Seed": settings.get("seed"),
        "Size": f"{width}x{height}",
        "Model hash": (settings.get("model_hash") or "")[:10] or None,
        "Model": checkpoint.stem if folder is None else folder.name,
        "Class": settings.get("class") or settings.get("label"),
        "Denoising strength": settings.get("strength"),
        "Operation": settings.get("operation"),
        "Method": settings.get("method"),
        "Guidance interval": None if interval is None else ",".join(f"{x:g}" for x in interval),
        **{f"Condition {k}": in_words(v) for k, v in said.items() if not isinstance(v, str)},
        **{f"Negative {k}": in_words(v) for k, v in against.items() if not isinstance(v, str)},
        "Version": f"scoresde {settings['version']}" if "version" in settings else None,
    }
    last = ", ".join(f"{k}: {_quoted(v)}" for k, v in pairs.items() if v is not None)
    prompt = [v for v in said.values() if isinstance(v, str)]
    negative = [f"Negative prompt: {v}" for v in against.values() if isinstance(v, str)]
    return "\n".join([*prompt, *negative, last])


def _quoted(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def in_words(value: Any) -> str:
    """A user's value of a condition in a few words; a picture by its size."""
    value = as_json(value)
    if depth(value) > 1:
        return " x ".join(map(str, np.shape(value)))
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def depth(value: Any) -> int:
    """How deep the lists of a JSON value are nested."""
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def as_json(value: Any) -> Any:
    """A user's value of a condition as JSON, which reads as the same."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return [as_json(one) for one in value] if isinstance(value, list | tuple) else value


def differences(path: Path, pixels: np.ndarray) -> str:
    """One line that says how pixels differ from those of a picture; "" if they do not."""
    from PIL import Image

    with Image.open(path) as picture:
        before = np.asarray(picture)
    if before.shape != pixels.shape:
        return f"{path}: is of {before.shape}, these are of {pixels.shape}"
    gap = np.abs(before.astype(int) - pixels)
    if not gap.any():
        return ""
    return f"{path}: {np.count_nonzero(gap)} of {gap.size} values differ, by {gap.max()} at most"
