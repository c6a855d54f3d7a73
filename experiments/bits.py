"""Bits per dimension of levels: train a configuration, bound its likelihood, write it down.

    python experiments/bits.py digits_likelihood
    python experiments/bits.py mnist_likelihood --path FOLDER --num 500 train.steps=1500 ...

Trains configs/NAME.yaml into RUNS/NAME (or goes on), with KEY=VALUE in place of what it says, and
scores its test split at t_min in two ways:

- ``flow``: the density of the probability flow at truncated normal draws. Its mean over draws is
  an upper bound on the bits of the levels under the flow; the divergence is estimated by fresh
  probes, without bias, and one draw an image is taken.
- ``elbo``: the variational bound with a decoder, an upper bound on the bits of the levels under
  the reverse process; its error over the noise is told by independent copies of each image.

The draws of an image are functions of its place in the test split. Numbers go to
experiments/results/bits.json and to the footer of the configuration.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from scoresde.config import build_dataset, load_config
from scoresde.data import Scaling
from scoresde.likelihood import elbo, path_log_likelihood
from scoresde.likelihood.dequantise import Decoder, TruncatedNormal
from scoresde.likelihood.divergence import rademacher
from scoresde.likelihood.path import Orthogonal
from scoresde.parameterization import ScoreModel
from scoresde.runs.folder import RunFolder, records
from scoresde.runs.load import load_run
from scoresde.runs.run import parameters
from scoresde.runs.train import train_run

HERE = Path(__file__).parent
CONFIGS, RESULTS = HERE.parent / "configs", HERE / "results" / "bits.json"
FOOTER = "# Reached"


@dataclass(frozen=True)
class Effort:
    """Copies of an image and noises for each of them; nodes and probes a node of the flow."""

    copies: int = 16
    times: int = 8
    nodes: int = 96
    rows: int = 1
    batch: int = 64


def main() -> int:
    """Record one configuration."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", help="configuration, without .yaml")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE of the configuration")
    parser.add_argument("--runs", type=Path, default=Path("runs/bits"))
    parser.add_argument("--path", type=Path, help="the data folder, where one is needed")
    parser.add_argument("--num", type=int, help="score so many test images, from the first")
    parser.add_argument("--flow", type=int, help="by the flow, score fewer")
    parser.add_argument("--copies", type=int, default=Effort.copies)
    parser.add_argument("--times", type=int, default=Effort.times)
    parser.add_argument("--nodes", type=int, default=Effort.nodes)
    parser.add_argument("--note", help="what else should be known of the run")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    result = record(arguments)
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(stored | {arguments.name: result}, indent=1) + "\n")
    write_footer(CONFIGS / f"{arguments.name}.yaml", result)
    print(json.dumps(result, indent=1), file=sys.stderr)
    return 0


def record(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train and score one configuration."""
    pairs = (pair.split("=", 1) for pair in arguments.overrides)
    changed = {key: yaml.safe_load(value) for key, value in pairs}
    folder = {} if arguments.path is None else {"data.path": str(arguments.path)}
    config = load_config(CONFIGS / f"{arguments.name}.yaml", changed | folder)
    out = arguments.runs / arguments.name
    train_run(config, out, resume=RunFolder(out).is_run())
    run, dataset = load_run(out), build_dataset(config.data)
    levels = dataset.test.x[: arguments.num]
    effort = Effort(arguments.copies, arguments.times, arguments.nodes)
    model, scaling = run.model, dataset.scaling
    return {
        "flow": scored(flow, model, scaling, levels[: arguments.flow], effort),
        "elbo": scored(variational, model, scaling, levels, effort),
        "test_images": len(dataset.test),
        "changed": changed,
        "note": arguments.note,
        "step": run.step,
        "steps": config.train.steps,
        "images_a_step": config.train.batch,
        "parameters": parameters(run.model),
        "training_seconds": records(RunFolder(out))[-1]["seconds"],
        "t_min": config.sde.values.get("t_min"),
        "hardware": f"one thread of an {platform.machine()} CPU",
        "torch": torch.__version__,
        "command": command(arguments),
    }


def scored(
    method: Any, model: ScoreModel, scaling: Scaling, levels: Tensor, effort: Effort
) -> dict[str, Any]:
    """Mean bits per dimension with its error over images, and the part that the draws have in it.

    ``method`` gives nats (draws, B) of a batch of levels and the place of the first.
    """
    begin, found = time.perf_counter(), []
    for first in range(0, len(levels), effort.batch):
        found.append(method(model, scaling, levels[first : first + effort.batch], first, effort))
        progress(method.__name__, found, levels[0].numel(), len(levels))
    each = in_bits(torch.cat(found, 1), levels[0].numel())
    n, draws = len(levels), len(each)
    return {
        "bits_per_dim": float(each.mean()),
        "standard_error": float(each.mean(0).std()) / math.sqrt(n),
        "standard_error_of_draws": error_of_draws(each),
        "images": n,
        "scoring_seconds": round(time.perf_counter() - begin, 1),
        **({"times": effort.times, "copies": draws} if method is variational else {}),
        **({"nodes": effort.nodes, "probes_a_node": effort.rows} if method is flow else {}),
    }


def error_of_draws(each: Tensor) -> float | None:
    """The error that (draws, n) independent draws leave in the mean over n images."""
    draws, n = each.shape
    return math.sqrt(float(each.var(0).mean()) / draws / n) if draws > 1 else None


def variational(
    model: ScoreModel, scaling: Scaling, levels: Tensor, first: int, effort: Effort
) -> Tensor:
    """The evidence lower bound through the decoder, (copies, B)."""
    sde, found = model.sde, []
    for index, image in enumerate(levels, first):
        k = image.expand(effort.copies, *image.shape)
        found.append(
            elbo(
                model.denoiser(),
                scaling.encode(k, dtype=torch.float64),
                times=effort.times,
                reconstruction=lambda z, k=k: Decoder().log_prob(k, z, scaling, sde, sde.t_min),
                generator=torch.Generator().manual_seed(index),
            ).log_prob
        )
    return torch.stack(found, 1)


def flow(
    model: ScoreModel, scaling: Scaling, levels: Tensor, first: int, effort: Effort
) -> Tensor:
    """The flow's log-density of a truncated normal draw, and the draw's weight, (1, B)."""
    sde, u, signs = model.sde, [], []
    for index, image in enumerate(levels, first):
        generator = torch.Generator().manual_seed(index)
        u.append(torch.rand(image.shape, generator=generator, dtype=torch.float64))
        signs.append(rademacher(u[-1], 1, generator))
    drawn = TruncatedNormal().draw(levels, torch.stack(u), scaling, sde, sde.t_min)
    probing = Orthogonal(torch.stack(signs, 1), effort.rows)
    found = path_log_likelihood(model.denoiser(), drawn.x, probing, nodes=effort.nodes)
    return (found.log_prob + drawn.weight)[None]


def in_bits(nats: Tensor, dim: int) -> Tensor:
    """Bits per dimension of log-probabilities of levels."""
    return -nats / dim / math.log(2)


def progress(name: str, found: list[Tensor], dim: int, n: int) -> None:
    """The mean so far."""
    each = in_bits(torch.cat(found, 1).mean(0), dim)
    error = float(each.std()) / math.sqrt(len(each))
    print(f"{name}: {len(each)}/{n}  {each.mean():.4f} +- {error:.4f} bits/dim", file=sys.stderr)


def command(arguments: argparse.Namespace) -> str:
    """What was typed, but for folders."""
    parts = ["python experiments/bits.py", arguments.name]
    parts += ["--path FOLDER"] * (arguments.path is not None)
    usual = Effort()
    for option in ("num", "flow", "copies", "times", "nodes"):
        if (value := getattr(arguments, option)) != getattr(usual, option, None):
            parts.append(f"--{option} {value}")
    return " ".join([*parts, *arguments.overrides])


def write_footer(path: Path, r: dict[str, Any]) -> None:
    """Replace the configuration's footer with what was reached."""
    body = path.read_text().split(FOOTER)[0].rstrip("\n")
    number = "{bits_per_dim:.3f}~+-~{standard_error:.3f} bits/dim"  # to stay in one line
    text = (
        f"{FOOTER[2:]}: {number.format(**r['elbo'])} by the variational bound "
        f"({r['elbo']['images']} of {r['test_images']} test images), {number.format(**r['flow'])} "
        f"by the flow from truncated normal draws ({r['flow']['images']} images), "
        f"by {r['parameters']:,} parameters at step {r['step']} of {r['steps']} with "
        f"{r['images_a_step']} images each, "
        f"{r['training_seconds'] / 60:.0f} minutes on {r['hardware']} shared with other work"
        f"{'' if r['note'] is None else '; ' + r['note']}. "
        f"All numbers in experiments/results/bits.json, by {r['command']}"
    )
    wrapped = textwrap.wrap(text, 97, break_on_hyphens=False)
    lines = [f"# {line}".replace("~", " ") for line in wrapped]
    path.write_text("\n".join([body, *lines]) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
