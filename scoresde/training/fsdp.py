"""Weights, gradients and averages split between processes, for networks too large for one each.

PyTorch's fully sharded data parallelism, ``fully_shard``: every process keeps a part of each
tensor, and a block's weights are put together while it computes. Here is all that knows of it; a
tensor that is not split is its own part. Fully Sharded Data Parallel, arXiv 2304.11277.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.training.distributed import Rank

LEAST = 2**20
"""Numbers a block has at least for its weights to be put together apart from the others."""


def split(net: nn.Module, rank: Rank, device: torch.device, least: int = LEAST) -> None:
    """Leave each process its part of a network's weights on its device, in place.

    Gradients are then summed over the processes, and each keeps its part of them. Scalars stay
    whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (rank.size,))
    scalars = {p for p in net.parameters() if p.ndim == 0}
    for scalar in scalars:
        scalar.data = scalar.data.to(device)  # all others are moved as they are split
    for block in [*_blocks(net, least, set(scalars)), net]:
        if not isinstance(block, FSDPModule):
            # Put away after a forward pass too: what is read between steps are the parts.
            fully_shard(block, mesh=mesh, ignored_params=scalars, reshard_after_forward=True)
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # a factor of its own asks for NCCL


def parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process has of each tensor, to be changed in place. Call it without gradients."""
    return [_part(tensor) for tensor in tensors]


def sum_gradients(model: nn.Module, loss: Tensor, rank: Rank) -> Tensor:
    """Sum loss and gradients over the processes, in place; return the norm of the gradient.

    The parts of what is split are sums already: of them only the squares are added.
    """
    found = [p.grad for p in model.parameters() if p.grad is not None]
    rest = [gradient for gradient in found if not _is_split(gradient)]
    if len(rest) == len(found):
        rank.add([loss, *rest])
        return nn.utils.get_total_norm(found)
    square = nn.utils.get_total_norm(parts(g for g in found if _is_split(g))).square()
    rank.add([loss, square, *rest])
    return (square + nn.utils.get_total_norm(rest).square()).sqrt()


def gathered(tree: Mapping[Any, Any], keep: bool = True) -> dict[Any, Any]:
    """A state dict with its tensors whole, those that were split on the host.

    All processes take part, and those that do not ``keep`` it are left their parts.
    """
    return {key: _gathered(value, keep) for key, value in tree.items()}


def scattered(tree: Mapping[Any, Any], like: Mapping[Any, Any]) -> dict[Any, Any]:
    """The inverse: a state dict whose whole tensors are split as those of ``like``."""
    return {key: _as(value, like.get(key)) for key, value in tree.items()}


def scattered_optimizer(
    tree: Mapping[str, Any], parameters: Iterable[nn.Parameter]
) -> dict[str, Any]:
    """The state dict of an optimiser with its moments split as the parameters they belong to."""
    of = dict(enumerate(parameters))
    state = {
        number: {name: _as(value, of.get(number)) for name, value in moments.items()}
        for number, moments in tree["state"].items()
    }
    return {**tree, "state": state}


def _blocks(module: nn.Module, least: int, taken: set[nn.Parameter]) -> Iterator[nn.Module]:
    """The innermost modules that have parts, and so many numbers no other of them has."""
    for child in module.children():
        yield from _blocks(child, least, taken)
    if isinstance(module, nn.ModuleList | nn.ModuleDict) or not list(module.children()):
        return
    left = {p for p in module.parameters() if p not in taken}
    if sum(p.numel() for p in left) >= least:
        taken |= left
        yield module


def _part(tensor: Any) -> Tensor:
    part: Tensor = tensor.to_local() if _is_split(tensor) else tensor
    return part


def _is_split(tensor: object) -> bool:
    # Not by its class: importing that takes longer than many a command.
    return hasattr(tensor, "device_mesh")


def _gathered(value: Any, keep: bool) -> Any:
    if isinstance(value, Mapping):
        return gathered(value, keep)
    if not _is_split(value):
        return value
    whole = value.full_tensor()
    return whole.cpu() if keep else value


def _as(value: Any, like: Any) -> Any:
    if not _is_split(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every process has read all of it: no messages.
    where = value.to(like.device)
    return distribute_tensor(where, like.device_mesh, like.placements, src_data_rank=None)
