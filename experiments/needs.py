"""What the configurations for a GPU need: parameters, operations and memory, without running them.

    python experiments/needs.py

Operations are counted in one forward and backward pass, as ``scoresde train --dry-run`` does.
Memory is the weights with their gradients, averages and Adam's two moments, and what autograd
keeps of an image in the precision of the configuration, counted from the tensors that it saves:
the difference between a batch of two and of one, by the plain kernels and without the masks of
dropout. Work space of the kernels comes on top. Nothing is trained, no data are read. Writes
experiments/results/needs.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from judging import surroundings
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from scoresde.config import AutoencoderConfig, Config, build_codec, build_model, load_config
from scoresde.data import Scaling
from scoresde.parameterization import ScoreModel
from scoresde.runs.cost import flops
from scoresde.runs.run import parameters
from scoresde.training import dsm_loss
from scoresde.training.checkpoint import DataDescription
from scoresde.training.precision import autocast

HERE = Path(__file__).parent
CONFIGS, STORE = HERE.parent / "configs", HERE / "results" / "needs.json"
GREY = DataDescription("28 x 28", (1, 28, 28), Scaling(256))
COLOUR = DataDescription("32 x 32", (3, 32, 32), Scaling(256))
LATENTS = DataDescription("32 x 32 latents", (4, 32, 32), Scaling(None))
LARGE = {
    "mnist": GREY,
    "mnist_likelihood": GREY,
    "fashion_mnist": GREY,
    "fashion_mnist_likelihood": GREY,
    "cifar10": COLOUR,
    "image256_latent": LATENTS,
}
CODECS = {"image256_kl_f8": (3, 256, 256)}
WORD = 4
"""Bytes of a weight, its gradient, an average or a moment."""


@dataclass
class Saved:
    """Counts the bytes that autograd keeps, each storage once, without the weights."""

    weights: set[int]
    seen: dict[int, int]

    def pack(self, tensor: Tensor) -> Tensor:
        """Look at a tensor on its way into the graph."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.seen[storage.data_ptr()] = storage.nbytes()
        return tensor


def main() -> int:
    """Count, store, print."""
    argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0]).parse_args()
    torch.set_num_threads(1)
    plain = {"conditional": False}  # the table of the classes is small
    found = {
        name: needs(load_config(CONFIGS / f"{name}.yaml", plain), data)
        for name, data in LARGE.items()
    }
    for name, shape in CODECS.items():
        config = load_config(CONFIGS / f"{name}.yaml", {}, AutoencoderConfig)
        found[name] = codec_needs(config, shape)
    STORE.write_text(json.dumps({"needs": found, **surroundings()}, indent=1) + "\n")
    print(table(found))
    return 0


def needs(config: Config, data: DataDescription) -> dict[str, Any]:
    """What a configuration needs."""
    model, train = build_model(config, data), config.train
    kept = activations(config, data, model)
    copies = 5 + len(train.posthoc)  # weights, gradients, two moments, the averages
    return summed(train, parameters(model), copies, flops(model, data.shape, None), kept)


def codec_needs(config: AutoencoderConfig, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the configuration of an autoencoder of pictures of a shape needs."""
    codec = build_codec(config.autoencoder, shape[0])
    weights = {p.untyped_storage().data_ptr() for p in codec.parameters()}

    def loss(n: int) -> Tensor:
        x, noise = torch.zeros(n, *shape), torch.zeros(n, *codec.latent_shape(shape))
        with autocast(config.train.precision, x.device):
            passed = codec.passed(x, noise)
        return passed.output.float().square().sum() + passed.penalty.sum()

    kept = []
    for n in (1, 2):
        counted = Saved(weights, {})
        with kept_by(counted):
            found = loss(n)
        assert found.grad_fn is not None
        kept.append(sum(counted.seen.values()))
    with FlopCounterMode(display=False) as counter:
        loss(1).backward()
    n, an_image = sum(p.numel() for p in codec.parameters()), int(counter.get_total_flops())
    return summed(config.train, n, 5, an_image, kept[1] - kept[0])


def summed(train: Any, n: int, copies: int, an_image: int, kept: int) -> dict[str, Any]:
    """What a training needs of n weights, by operations and bytes of an image."""
    return {
        "parameters": n,
        "flops_an_image": an_image,
        "batch": train.batch,
        "steps": train.steps,
        "flops_a_step": an_image * train.batch,
        "flops": an_image * train.batch * train.steps,
        "precision": train.precision,
        "bytes_of_weights": WORD * n * copies,
        "bytes_an_image": kept,
        "bytes": WORD * n * copies + kept * train.batch // train.accumulate,
    }


def activations(config: Config, data: DataDescription, model: ScoreModel) -> int:
    """Bytes that one image more adds to what autograd keeps."""
    one, two = (saved(config, data, model, n) for n in (1, 2))
    return two - one


def saved(config: Config, data: DataDescription, model: ScoreModel, n: int) -> int:
    """Bytes that autograd keeps for n images."""
    counted = Saved({p.untyped_storage().data_ptr() for p in model.parameters()}, {})
    x, t = torch.zeros(n, *data.shape), torch.full((n,), 0.5, dtype=torch.float64)
    with kept_by(counted), autocast(config.train.precision, x.device):
        loss = dsm_loss(model.eval(), x, t, torch.ones_like(x))
    assert loss.grad_fn is not None  # the graph, and so what it keeps, is alive until here
    return sum(counted.seen.values())


def kept_by(counted: Saved) -> torch.autograd.graph.saved_tensors_hooks:
    """Inside, what is saved for the backward pass is counted."""
    return torch.autograd.graph.saved_tensors_hooks(counted.pack, lambda tensor: tensor)


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| configuration | parameters | GFLOP an image | batch, steps | EFLOP in all "
        "| hours at 100 TFLOP/s | memory, GiB |",
        "|---" * 7 + "|",
    ]
    lines += [f"| `{name}` | {' | '.join(cells(found[name]))} |" for name in found]
    return "\n".join(lines)


def cells(r: dict[str, Any]) -> list[str]:
    """A row of the table."""
    return [
        f"{r['parameters'] / 1e6:.1f} M",
        f"{r['flops_an_image'] / 1e9:.2f}",
        f"{r['batch']}, {r['steps']:,}",
        f"{r['flops'] / 1e18:.2f}",
        f"{r['flops'] / 1e14 / 3600:.1f}",
        f"{r['bytes'] / 2**30:.1f} ({r['precision']})",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
