"""How wrong the path likelihood is on sharp data, and whether it says so.

    python experiments/sharp.py [--out experiments/results/sharp.json] [--points 12] [--seeds 2]

Random mixtures with modes of deviation 0.001 to 0.4 in 1 to 64 dimensions, whose density at t_min
is known: points drawn from them, points on lines between two modes, and points anywhere. Every
cell has the largest error in nats of 64 nodes alone and of the default, the proportion of points
that the default calls uncertain, and the number whose error is above 0.05 nats and 3 times what
was said. Then point masses of 256 pixel levels, in bits per dimension.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde import EDM, SDE, VE, VP, SubVP
from scoresde.likelihood import FlowEstimator, path_log_likelihood
from scoresde.likelihood.dequantise import TruncatedNormal
from scoresde.likelihood.estimators import GridFlow
from scoresde.likelihood.path import default_tolerance
from scoresde.samplers import per_sample_noise
from scoresde.testing import Mixture, mostly_black

DIMS, STDS = (1, 2, 8, 64), (0.001, 0.01, 0.05, 0.2, 0.4)
FINE: dict[str, SDE] = {
    "VP": VP(),
    "sub-VP": SubVP(),
    "VE, sigma_min 2e-4": VE(sigma_min=2e-4),
    "EDM, t_min 2e-4": EDM(t_min=2e-4),
}
IMAGES, PIXELS = 100, 16


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "sharp.json"
    )
    parser.add_argument("--points", type=int, default=12, help="points of a kind in each mixture")
    parser.add_argument("--seeds", type=int, default=2, help="mixtures of each kind")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        cell(sde, dim, std, kind, args.points, args.seeds)
        for sde in (VP(), EDM())
        for dim in DIMS
        for std in STDS
        for kind in ("drawn", "between", "anywhere")
    ]
    pixels = [pixel_row(name, sde) for name, sde in FINE.items()]
    found = {"hardware": "one thread of an x86_64 CPU", "mixtures": rows, "pixels": pixels}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(summary(rows))


def summary(rows: list[dict[str, Any]]) -> str:
    """Markdown: worst errors by kind of point and dimension, over processes and deviations."""
    lines = ["| points | D | worst, 64 nodes alone | worst of the certain | uncertain | calls |"]
    lines.append("|---|---|---|---|---|---|")
    for kind in ("drawn", "between", "anywhere"):
        for dim in DIMS:
            some = [row for row in rows if (row["kind"], row["dim"]) == (kind, dim)]
            once = max(row["worst_64_nodes"] for row in some)
            certain = max(row["worst_certain"] or 0.0 for row in some)
            share, calls = (sum(row[k] for row in some) / len(some) for k in ("uncertain", "nfe"))
            cells = (kind, str(dim), f"{once:.2g} nats", f"{certain:.2g} nats", f"{share:.0%}")
            lines.append("| " + " | ".join([*cells, f"{calls:.0f}"]) + " |")
    total, false = (sum(row[name] for row in rows) for name in ("points", "false"))
    return "\n".join([*lines, f"{false} of {total} points are wrong by more than was said"])


def mixture(dim: int, std: float, seed: int) -> Mixture:
    """2 to 11 modes with unequal weights and deviations near ``std``."""
    g = torch.Generator().manual_seed(1000 * seed + dim)
    modes = int(torch.randint(2, 12, (1,), generator=g))
    means = torch.randn(modes, dim, generator=g, dtype=torch.float64) / 2
    weights, stds = torch.rand(2, modes, generator=g, dtype=torch.float64)
    return Mixture(weights + 0.1, means, std * (0.7 + 0.6 * stds))


def points(data: Mixture, kind: str, n: int, seed: int) -> Tensor:
    """Points of a kind (n, D)."""
    g = torch.Generator().manual_seed(seed)
    modes, dim = data.means.shape
    noise = torch.randn(n, dim, generator=g, dtype=torch.float64)
    if kind == "drawn":
        return data.sample(n, g)
    if kind == "anywhere":
        return 0.7 * noise
    i, j = torch.randint(modes, (2, n), generator=g)
    share = torch.rand(n, 1, generator=g, dtype=torch.float64)
    return share * data.means[i] + (1 - share) * data.means[j] + 0.05 * noise


def cell(sde: SDE, dim: int, std: float, kind: str, n: int, seeds: int) -> dict[str, Any]:
    """Errors of one kind of points under one process."""
    start, end = (torch.tensor(t, dtype=torch.float64) for t in (sde.t_min, sde.t_max))
    once, error, said, calls = [], [], [], []
    for seed in range(seeds):
        data = mixture(dim, std, seed)
        x, denoiser = points(data, kind, n, seed), data.denoiser(sde)
        truth = data.log_prob(x, sde, start)

        def prior(x: Tensor, data: Mixture = data) -> Tensor:
            return data.log_prob(x, sde, end)

        plain = path_log_likelihood(denoiser, x, prior=prior, tolerance=math.inf)
        found = path_log_likelihood(denoiser, x, prior=prior)
        once.append((plain.log_prob - truth).abs())
        error.append((found.log_prob - truth).abs())
        said.append(found.solver_error)
        calls.append(found.nfe)
    off, claim = torch.cat(error), torch.cat(said)
    certain = claim <= default_tolerance(dim)
    row = {
        "process": type(sde).__name__,
        "dim": dim,
        "std": std,
        "kind": kind,
        "points": len(off),
        "worst_64_nodes": float(torch.cat(once).max()),
        "worst_certain": float(off[certain].max()) if bool(certain.any()) else None,
        "uncertain": float((~certain).double().mean()),
        "false": int((off > (3 * claim).clamp(min=0.05)).sum()),
        "nfe": sum(calls) / seeds,
    }
    print("| " + " | ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()))
    return row


def pixel_row(name: str, sde: SDE) -> dict[str, Any]:
    """Mean error in bits per dimension of levels with known probabilities."""
    law = mostly_black()
    k = law.sample(IMAGES, PIXELS, torch.Generator().manual_seed(0))
    row: dict[str, Any] = {"process": name}
    for title, tolerance in (("64 nodes", math.inf), ("default", None)):
        estimator = FlowEstimator(GridFlow(tolerance=tolerance), TruncatedNormal())
        found = estimator(law.denoiser(sde), k, law.scale, per_sample_noise(range(IMAGES)))
        bits = (found.log_prob - law.log_prob(k)) / PIXELS / math.log(2)
        row |= {title: float(bits.mean()), f"{title}, se": float(bits.std()) / IMAGES**0.5}
        row[f"{title}, nfe"] = found.nfe
    print(row)
    return row


if __name__ == "__main__":
    main()
