"""Which sampler on a trained network: error against its own exact paths, and network calls.

    scoresde train --config configs/digits_vp.yaml --train.steps 500 --out runs/digits_500
    python experiments/samplers.py --checkpoint runs/digits_500

32 starts; a line a sampler and grid; grids marked optimised are found on other starts and kept
beside the checkpoint. Stores the numbers in experiments/results/samplers.json and draws
docs/samplers.png.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch

from scoresde.cli.main import main as scoresde
from scoresde.runs.compare_plot import Trial, draw

HERE = Path(__file__).parent
COMPARISONS = (
    ("recommended,dpmpp_2m", "arctan,optimised", "5,7,10,14,20,30,50"),
    ("dpmpp_2m,ddim", "karras", "5,7,10,14,20,30,50"),
    ("unipc", "arctan", "3,5,7,10,14,20,30,50"),
    ("heun", "arctan,karras", "3,5,7,10,15,25"),
)


def main() -> None:
    """Compare, draw, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "samplers.json")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "samplers.png")
    args = parser.parse_args()
    torch.set_num_threads(1)
    trials = [
        row
        for names, grids, n in COMPARISONS
        for row in compared(args.checkpoint, names, grids, n)
    ]
    draw(args.picture, [Trial(**row) for row in trials])
    record = {"hardware": f"one thread of an {platform.machine()} CPU", "trials": trials}
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(trials))


def compared(checkpoint: Path, samplers: str, grids: str, steps: str) -> list[dict[str, Any]]:
    """The trials of one ``scoresde compare``."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        arguments = ["--checkpoint", str(checkpoint), "--samplers", samplers, "--grid", grids]
        more = ["--steps", steps, "--num", "32", "--tolerance", "1e-6", "--out", str(out)]
        if scoresde(["compare", *arguments, *more]) != 0:
            raise SystemExit(1)
        found: list[dict[str, Any]] = json.loads((out / "compare.json").read_text())["trials"]
    return found


def table(trials: list[dict[str, Any]]) -> str:
    """Markdown: relative L2 by calls."""
    lines = ["| sampler, grid | relative L2 (calls) |", "|---|---|"]
    names = dict.fromkeys((t["sampler"], t["grid"]) for t in trials)
    for name in names:
        rows = [t for t in trials if (t["sampler"], t["grid"]) == name]
        cells = ", ".join(f"{t['relative']:.1e} ({t['nfe']})" for t in rows)
        lines.append(f"| {name[0]}, {name[1]} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
