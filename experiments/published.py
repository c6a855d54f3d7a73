"""Compare trained weights of another program, read by name, with what its own program computes.

    pip install adaptive-terrain-diffusion==0.4.2 onnx onnxruntime
    python experiments/published.py [--onnx FILE] [--out experiments/results/published.json]

The package (MIT licence) holds a consistency model of heights as an ONNX graph, whose U-Net has
the names of guided-diffusion. The weights of its norms, which the graph has under other names, are
taken in the order of the graph. ``interop.published.guided`` maps all of them to our ``adm``. At
several sigmas the largest difference to onnxruntime is stored, of the output before it is cut to
[-1, 1], in units of the deviation of the output.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.interop.published.file import Moved
from scoresde.interop.published.guided import heads_of, moved_unet, shape_of
from scoresde.nn import ConcatUNet, adm

STORE = Path(__file__).parent / "results" / "published.json"
SIGMAS = (0.05, 0.2, 1.0, 5.0, 20.0, 80.0)
WEIGHTS = "weights/terrain_consistency_unet_difficulty100.onnx"
EACH, LEAST, STD = 32, 0.002, 0.5  # channels of a head, the least sigma, and sigma_data


def main() -> int:
    """Compare, store, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--onnx", type=Path, help="the file; by default that of the package")
    parser.add_argument("--out", type=Path, default=STORE)
    arguments = parser.parse_args()
    file = arguments.onnx or Path(str(resources.files("terrain_diffusion") / WEIGHTS))
    torch.set_num_threads(1)
    found = {
        "hardware": f"one thread of an {platform.machine()} CPU",
        "model": "adaptive-terrain-diffusion 0.4.2, onnxruntime in float32",
        **compared(file),
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


def compared(file: Path) -> dict[str, Any]:
    """Differences at every sigma, of the same noise and two difficulties."""
    runtime = import_module("onnxruntime")
    graph = import_module("onnx").load(str(file)).graph
    tensors = weights(graph)
    model = Consistency(tensors).double().eval()
    session = runtime.InferenceSession(_uncut(file), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 1, 128, 128, generator=generator)
    difficulty = torch.tensor([0.1, 0.9])
    differences = {}
    for sigma in SIGMAS:
        feeds = {
            "noisy": (sigma * noise).numpy(),
            "sigma": torch.full((2,), sigma).numpy(),
            "difficulty": difficulty.numpy(),
        }
        theirs = torch.from_numpy(session.run(None, feeds)[0]).double()
        with torch.no_grad():
            ours = model(sigma * noise.double(), torch.full((2,), sigma).double(), difficulty)
        differences[f"{sigma:g}"] = float((ours - theirs).abs().max() / theirs.std())
    parameters = sum(value.numel() for value in model.net.parameters())
    return {"parameters": parameters, "largest_difference": differences}


def _uncut(file: Path) -> bytes:
    """The model with its last value, before it is cut, as its output."""
    onnx = import_module("onnx")
    model = onnx.load(str(file))
    last = model.graph.node.pop()
    assert last.op_type == "Clip"
    model.graph.output[0].name = last.input[0]
    result: bytes = model.SerializeToString()
    return result


def weights(graph: Any) -> dict[str, Tensor]:
    """The tensors of the U-Net by the names of guided-diffusion."""
    to_array = import_module("onnx.numpy_helper").to_array
    stored = {each.name: torch.from_numpy(to_array(each).copy()) for each in graph.initializer}
    found = {
        name.removeprefix("network."): value
        for name, value in stored.items()
        if name.startswith("network.")
    }
    norms = iter(_norms(graph))
    before = {"in_layers.2": "in_layers.0", "out_layers.3": "out_layers.0", "qkv": "norm"}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        name = node.input[1].removeprefix("network.").removesuffix(".weight")
        last = re.search(r"(in_layers\.2|out_layers\.3|qkv|(?<=^out)\.2)$", name)
        if last is None:
            continue
        norm = "out.0" if name == "out.2" else name[: last.start()] + before[last[0]]
        for part, value in zip(("weight", "bias"), next(norms), strict=True):
            found[f"{norm}.{part}"] = stored[value].flatten()
    assert next(norms, None) is None
    return found


def _norms(graph: Any) -> list[tuple[str, str]]:
    """Names of the weight and the bias of every norm, in the order of the graph."""
    makers = {node.output[0]: node for node in graph.node}
    found = []
    for node in graph.node:
        if node.op_type == "Add" and node.output[0].startswith("group_norm"):
            found.append((makers[node.input[0]].input[1], node.input[1]))
    return found


class Consistency(nn.Module):
    """skip x + out F(inp x, 250 ln sigma, difficulty), the model of the package with our network.

    skip = sd^2 / ((s - least)^2 + sd^2), out = (s - least) sd / n, inp = 1 / n, n^2 = s^2 + sd^2.
    Consistency Models, arXiv 2303.01469, appendix C.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.told = [tensors.pop(f"label_emb.{k}.{p}") for k in (0, 2) for p in ("weight", "bias")]
        moved = Moved(Path(WEIGHTS), tensors)
        network = shape_of(moved) | {"heads": None, "head_channels": EACH}
        state = moved_unet(moved, network, heads_of(network), ordered=True, scale=1.0)
        size = network["vector"]
        state["condition.embed.weight"] = torch.eye(size)
        given = {k: v for k, v in network.items() if k not in ("kind", "head")}
        given |= {k: tuple(given[k]) for k in ("multipliers", "attention")}
        self.net: ConcatUNet = adm(1, embed=size, **given)
        self.net.load_state_dict(state)

    def forward(self, x: Tensor, sigma: Tensor, difficulty: Tensor) -> Tensor:
        w0, b0, w1, b1 = (value.to(x) for value in self.told)
        embed = F.linear(F.silu(F.linear(difficulty.to(x)[:, None], w0, b0)), w1, b1)
        above, n = sigma - LEAST, (sigma**2 + STD**2).sqrt()
        skip, out = STD**2 / (above**2 + STD**2), above * STD / n
        s, o, i = (c[:, None, None, None] for c in (skip, out, 1 / n))
        return s * x + o * self.net(i * x, 250 * sigma.log(), embed=embed)


if __name__ == "__main__":
    raise SystemExit(main())
