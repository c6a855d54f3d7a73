"""What the judges of conditional samples read off real held-out pictures: the ceiling of a model.

    python experiments/judges.py
    python experiments/judges.py --mnist FOLDER    # the pairs of digits too

Each judge is fitted with three seeds; its time is CPU seconds of one thread. Writes
experiments/results/judges.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from judging import surroundings

from scoresde.data import Dataset, Split, avatars, digit_pairs
from scoresde.evaluation import Judge, attribute_judge, halves_judge

STORE = Path(__file__).parent / "results" / "judges.json"
SEEDS = (0, 1, 2)


def main() -> int:
    """Fit, judge, store, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mnist", help="folder with the four idx files of MNIST")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {"avatars": judged(avatars(), lambda x, truth, seed: attribute_judge(x, truth, seed))}
    if given.mnist:
        found["digit_pairs"] = judged(
            digit_pairs(given.mnist),
            lambda x, truth, seed: halves_judge(x, truth["left"], truth["right"], seed),
        )
    STORE.write_text(json.dumps({"judges": found, **surroundings()}, indent=1) + "\n")
    for name, judge in found.items():
        for part, accuracy in judge["accuracy"].items():
            print(name, part, {k: f"{100 * value:.1f}" for k, value in accuracy.items()})
    return 0


def judged(
    data: Dataset, fit: Callable[[torch.Tensor, Mapping[str, torch.Tensor], int], Judge]
) -> dict[str, Any]:
    """Mean accuracies over the seeds on every part for testing, and the time of a fit."""
    names = [name for name in data.words if name != "template"]
    parts = {"test": data.test, **data.parts}
    sums: dict[str, dict[str, float]] = {part: {} for part in parts}
    began = time.process_time()
    judges = [fit(data.train.x, truth(data.train, names), seed) for seed in SEEDS]
    seconds = (time.process_time() - began) / len(SEEDS)
    for judge in judges:
        for part, split in parts.items():
            for name, accuracy in judge.accuracy(split.x, truth(split, names)).items():
                sums[part][name] = sums[part].get(name, 0) + accuracy.value / len(SEEDS)
    counts = {part: len(split) for part, split in parts.items()}
    return {"seeds": SEEDS, "cpu_seconds": seconds, "pictures": counts, "accuracy": sums}


def truth(split: Split, names: list[str]) -> dict[str, torch.Tensor]:
    """Columns of labels by name."""
    return {
        name: column for name in names if isinstance(column := split.columns[name], torch.Tensor)
    }


if __name__ == "__main__":
    raise SystemExit(main())
