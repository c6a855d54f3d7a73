"""Cost of training: operations, memory, and peak throughput of the device."""

from __future__ import annotations

import sys
from typing import Any

import torch

from scoresde.parameterization import ScoreModel
from scoresde.training.held_out import evaluating
from scoresde.training.losses import predicted

# Dense bf16 operations per second from NVIDIA's data sheets; the first matching name counts.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


def flops(model: ScoreModel, shape: tuple[int, ...], classes: int | None) -> int:
    """Operations of the forward and backward pass of one example; a multiply-add counts as two.

    Counts convolutions, matrix products and attention, without recomputation in the backward pass,
    and with the estimate of self-conditioning.
    """
    from torch.utils.flop_counter import FlopCounterMode

    weights = [p for p in model.parameters() if p.requires_grad]
    x = torch.zeros(1, *shape, device=model.device)
    label = torch.zeros(1, dtype=torch.long, device=x.device)
    cond: dict[str, Any] = {} if classes is None else {"label": label}
    t = torch.tensor([model.sde.t_max], dtype=torch.float64)
    with evaluating(model), FlopCounterMode(display=False) as counter:
        found = predicted(model, x, t, torch.ones_like(x), cond, estimated=t > 0)
        loss = found.loss(None).sum()
        torch.autograd.grad(loss, weights, allow_unused=True)
    return int(counter.get_total_flops())


def peak(device: torch.device) -> float | None:
    """Peak bf16 operations per second of a device; None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAKS.items() if part in name), None)


def memory(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on a GPU, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def short(number: float) -> str:
    """Format a number with three digits and an SI prefix, such as 1.23 G."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "
