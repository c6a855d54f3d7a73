"""Edits of portraits: which method restores them best, and what is left at each strength.

    python experiments/editing.py --out runs/demo

takes the training run of experiments/demo.py in that folder (or trains it), edits test portraits
by the methods of registry.POSTERIORS and by img2img at several strengths, lets a judge read nine
attributes off the results, and stores the numbers in experiments/results/editing.json and a
picture beside them. What is stored is not measured again. ``--num`` is the number of portraits.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from demo import CONFIG, FITTED, STEPS, truth_of
from demonstration import RESULTS, trained
from judging import surroundings
from torch import Tensor

import scoresde as ss
from scoresde.data import avatars
from scoresde.evaluation import Judge, attribute_judge, captioned, image_grid, save_png
from scoresde.evaluation.gaussian import frechet_distance, moments
from scoresde.posterior import Blur, Downsample, Grey, LinearOperator
from scoresde.registry import POSTERIORS

STORE, PICTURE = RESULTS / "editing.json", RESULTS / "editing.png"
NFE, SHOWN = 50, 6
METHODS = [name for name, make in POSTERIORS.items() if not make().population]
TASKS: dict[str, tuple[str, dict[str, Any], LinearOperator | None]] = {
    "inpaint": ("inpaint", {"box": (0, 8, 16, 16)}, None),
    "outpaint": ("outpaint", {"margins": (4, 0, 4, 0)}, None),
    "colourise": ("colourise", {}, Grey()),
    "superres 2": ("superres", {"factor": 2}, Downsample(2)),
    "superres 4": ("superres", {"factor": 4}, Downsample(4)),
    "deblur": ("deblur", {"degrade": True}, Blur(1.0)),
}
STRENGTHS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def main() -> int:
    """Measure, store and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trained(CONFIG, arguments.out, STEPS)
    model, dataset = ss.load(arguments.out), avatars()
    judge = attribute_judge(dataset.train.x, truth_of(dataset.train), steps=FITTED)
    some = dataset.test.take(torch.arange(arguments.num))
    x, truth = some.x, truth_of(some)
    others = dataset.test.x[arguments.num :]
    stored: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
    if (stored.get("num"), stored.get("nfe")) != (arguments.num, NFE):
        stored = {"num": arguments.num, "nfe": NFE, "tasks": {}, **surroundings()}
        stored["portraits"] = judged(judge, x, truth, others)
    rows = [("portraits", x[:SHOWN])]
    for task, (operation, settings, operator) in TASKS.items():
        known = stored["tasks"].setdefault(task, {})
        for method in arguments.methods:
            n = SHOWN if method in known else len(x)
            start = time.process_time()
            edited = ss.edit(model, x[:n], operation, method=method, nfe=NFE, batch=50, **settings)
            rows.append((f"{task}, {method}", edited.x[:SHOWN]))
            if method in known:
                continue
            found = judged(judge, edited.x, truth, others)
            found["cpu_seconds"] = time.process_time() - start
            if operator is not None:
                gap = operator(edited.x.float()) - operator(x.float())
                found["residual_levels"] = float(gap.square().mean().sqrt())
            known[method] = found
            print(task, method, json.dumps(found), flush=True)
            STORE.write_text(json.dumps(stored, indent=2) + "\n")
    stored["strengths"] = {}
    for strength in STRENGTHS:
        edited = ss.edit(model, x, "img2img", strength=strength)
        found = judged(judge, edited.x, truth, others)
        found |= {"correlation": correlation(edited.x, x), "nfe": edited.nfe}
        stored["strengths"][f"{strength:g}"] = found
        rows.append((f"img2img, strength {strength:g}", edited.x[:SHOWN]))
        print("img2img", strength, json.dumps(found), flush=True)
    STORE.write_text(json.dumps(stored, indent=2) + "\n")
    grid = image_grid(torch.cat([part for _, part in rows]), SHOWN, 2)
    save_png(PICTURE, captioned(grid, "Edits of portraits", [name for name, _ in rows]))
    return 0


def judged(judge: Judge, x: Tensor, truth: dict[str, Tensor], others: Tensor) -> dict[str, float]:
    """The share of attributes read as they were, and the Frechet distance of pixels to others."""
    right = torch.stack(list(judge.right(x, truth).values())).double().mean()
    a, b = (moments(part.double().flatten(1) / 255) for part in (x, others))
    return {"attributes": float(right), "frechet_pixels": frechet_distance(a, b)}


def correlation(a: Tensor, b: Tensor) -> float:
    """The correlation of two sets of pictures, each pixel less its mean over the set."""
    u, v = ((part.double() - part.double().mean(0)).flatten() for part in (a, b))
    return float((u * v).sum() / (u.square().sum() * v.square().sum()).sqrt())


def tables(stored: dict[str, Any]) -> tuple[str, str]:
    """The tables of docs/editing.md: methods by operation, and strengths."""
    methods = [
        "| method | " + " | ".join(stored["tasks"]) + " |",
        "|---" * (len(stored["tasks"]) + 1) + "|",
    ]
    for method in stored["tasks"]["inpaint"]:
        cells = [cell(found[method]) for found in stored["tasks"].values()]
        methods.append(f"| `{method}` | " + " | ".join(cells) + " |")
    real = [cell(stored["portraits"])] * len(stored["tasks"])
    methods.append("| the portraits | " + " | ".join(real) + " |")
    strengths = ["| strength | correlation | attributes | calls |", "|---" * 4 + "|"]
    for strength, found in stored["strengths"].items():
        left = f"{found['correlation']:.2f} | {100 * found['attributes']:.0f} %"
        strengths.append(f"| {strength} | {left} | {found['nfe']:g} |")
    return "\n".join(methods), "\n".join(strengths)


def cell(found: dict[str, float]) -> str:
    """Attributes and distance, such as "79 %, 17.4"."""
    return f"{100 * found['attributes']:.0f} %, {found['frechet_pixels']:.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
