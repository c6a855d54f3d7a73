"""What it costs to score discrete data at t_0: bits a pixel against an entropy that is known.

    python experiments/dequantisation.py [--out experiments/results/dequantisation.json]

Pixels of 256 levels, 80 % of them black, independent, with the exact score. The value of uniform
dequantisation at the times that published code stops at, and the truncated normal, the decoder and
the variational bound where a level is 16 deviations wide. Every value is compared with the exact
bits of the very pixels scored. Prints the table in markdown and stores it with standard errors.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from pathlib import Path
from typing import Any

import torch

from scoresde import EDM, SDE, VE, VP, SubVP
from scoresde.likelihood import FlowEstimator
from scoresde.likelihood.confidence import mean
from scoresde.likelihood.dequantise import Decoder, TruncatedNormal, Uniform
from scoresde.likelihood.divergence import EXACT
from scoresde.likelihood.estimators import BlackBox, DecodedVariational, Estimator
from scoresde.samplers import per_sample_noise
from scoresde.testing import mostly_black

SAMPLES, DIM = 1000, 3
SOLVER = BlackBox("dopri5", 1e-5, 1e-5, trace=EXACT)
LAWS: dict[str, Estimator] = {
    "uniform": FlowEstimator(SOLVER, Uniform()),
    "truncated normal": FlowEstimator(SOLVER, TruncatedNormal()),
    "decoder": FlowEstimator(SOLVER, Decoder()),
    "variational bound, decoder": DecodedVariational(times=256),
}
FINE: dict[str, SDE] = {
    "VP": VP(),
    "sub-VP": SubVP(),
    "VE, sigma_min 1e-4": VE(sigma_min=1e-4),
    "EDM": EDM(t_min=1e-4, t_eps=1e-4),
}
PUBLISHED: dict[str, SDE] = {
    "VP, t_min 1e-5": VP(),
    "VP, t_min 1e-3": VP(t_min=1e-3),
    "EDM, sigma_min 0.002": EDM(),
    "VE, sigma_min 0.01": VE(),
}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "dequantisation.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    pixels = mostly_black()
    rows: list[dict[str, Any]] = [gap("uniform", name, sde) for name, sde in PUBLISHED.items()]
    rows += [gap(law, name, sde) for law in list(LAWS)[1:] for name, sde in FINE.items()]
    results = {
        "hardware": f"one thread of an {platform.machine()} CPU",
        "entropy": pixels.entropy,
        "samples": SAMPLES,
        "pixels": DIM,
        "rows": rows,
    }
    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def gap(law: str, process: str, sde: SDE) -> dict[str, Any]:
    """Bits a pixel beyond the exact ones, with the standard error."""
    pixels = mostly_black()
    k = pixels.sample(SAMPLES, DIM, torch.Generator().manual_seed(0))
    noise = per_sample_noise(range(SAMPLES))
    found = LAWS[law](pixels.denoiser(sde), k, pixels.scale, noise).log_prob
    excess = mean((pixels.log_prob(k) - found) / DIM / math.log(2))
    return {"law": law, "process": process, "excess": excess.value, "se": excess.error}


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"Entropy {results['entropy']:.3f} bits a pixel.",
        "",
        "| dequantisation | process | bits a pixel too many |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['law']} | {row['process']} | {row['excess']:+.4f} +- {row['se']:.4f} |"
        for row in results["rows"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
