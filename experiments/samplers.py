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
from dataclasses import asdict
from pathlib import Path

import torch

from scoresde.runs.compare import Trial, compare
from scoresde.runs.compare_plot import save_plot
from scoresde.runs.load import load_run
from scoresde.runs.optimised import grid_folder

HERE = Path(__file__).parent
COMPARISONS = (
    ("recommended,dpmpp_2m", "recommended,optimised", "5,7,10,14,20,30,50"),
    ("dpmpp_2m,ddim", "karras", "5,7,10,14,20,30,50"),
    ("unipc", "recommended", "3,5,7,10,14,20,30,50"),
    ("heun", "recommended,karras", "3,5,7,10,15,25"),
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
    save_plot(args.picture, trials)
    record = {
        "hardware": f"one thread of an {platform.machine()} CPU",
        "trials": [asdict(trial) for trial in trials],
    }
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(trials))


def compared(checkpoint: Path, samplers: str, grids: str, steps: str) -> list[Trial]:
    """The trials of one comparison."""
    run = load_run(checkpoint)
    found = compare(
        run.model,
        samplers.split(","),
        [int(n) for n in steps.split(",")],
        grids.split(","),
        num=32,
        tolerance=1e-6,
        folder=grid_folder(run.source),
    )
    return list(found.trials)


def table(trials: list[Trial]) -> str:
    """Markdown: relative L2 by calls."""
    lines = ["| sampler, grid | relative L2 (calls) |", "|---|---|"]
    for name in dict.fromkeys((t.sampler, t.grid) for t in trials):
        rows = [t for t in trials if (t.sampler, t.grid) == name]
        cells = ", ".join(f"{t.relative or float('nan'):.1e} ({t.nfe})" for t in rows)
        lines.append(f"| {name[0]}, {name[1]} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
