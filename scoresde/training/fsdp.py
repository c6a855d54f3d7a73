"""Weights, gradients and averages split between processes, for networks too large for one device.

``fully_shard`` of PyTorch leaves each process a part of each tensor, and gathers the weights of a
block while it computes. Only this module depends on it. Fully Sharded Data Parallel, arXiv
2304.11277.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.training.distributed import Rank

LEAST = 2**20
"""Fewest weights of a block that is gathered on its own."""


def split(net: nn.Module, rank: Rank, device: torch.device, least: int = LEAST) -> None:
    """Split the weights of a network between the processes, in place.

    Gradients are then summed over the processes and split likewise. Scalars stay whole.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (rank.size,))
    scalars = {p for p in net.parameters() if p.ndim == 0}
    for scalar in scalars:
        scalar.data = scalar.data.to(device)  # fully_shard moves all others
    for block in [*_blocks(net, least, set(scalars)), net]:
        if not isinstance(block, FSDPModule):
            # Reshard after a forward pass, because the parts are read between steps.
            fully_shard(block, mesh=mesh, ignored_params=scalars, reshard_after_forward=True)
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # a divide factor would need NCCL


def parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The local part of each tensor, to be changed in place under ``no_grad``.

    The part of a tensor that is not split is the tensor itself.
    """
    found: list[Any] = list(tensors)
    return [tensor.to_local() if _is_split(tensor) else tensor for tensor in found]


def sum_gradients(model: nn.Module, loss: Tensor, rank: Rank) -> Tensor:
    """Sum loss and gradients over the processes, in place; return the norm of the gradient."""
    # Split gradients are already summed; only their squared norms are added.
    found = [p.grad for p in model.parameters() if p.grad is not None]
    rest = [gradient for gradient in found if not _is_split(gradient)]
    if len(rest) == len(found):
        rank.add([loss, *rest])
        return nn.utils.get_total_norm(found)
    square = nn.utils.get_total_norm(parts(g for g in found if _is_split(g))).square()
    rank.add([loss, square, *rest])
    return (square + nn.utils.get_total_norm(rest).square()).sqrt()


def gathered(tree: Mapping[Any, Any], keep: bool = True) -> dict[Any, Any]:
    """A state dict with whole tensors; those that were split are moved to the host.

    All processes must call it. Without ``keep`` a process keeps the parts.
    """
    return {key: _gathered(value, keep) for key, value in tree.items()}


def scattered(tree: Mapping[Any, Any], like: Mapping[Any, Any]) -> dict[Any, Any]:
    """The inverse of ``gathered``: split the tensors of a state dict as those of ``like``."""
    return {key: _as(value, like.get(key)) for key, value in tree.items()}


def scattered_optimizer(
    tree: Mapping[str, Any], parameters: Iterable[nn.Parameter]
) -> dict[str, Any]:
    """The state dict of an optimiser with its moments split as its parameters."""
    of = dict(enumerate(parameters))
    state = {
        number: {name: _as(value, of.get(number)) for name, value in moments.items()}
        for number, moments in tree["state"].items()
    }
    return {**tree, "state": state}


def _blocks(module: nn.Module, least: int, taken: set[nn.Parameter]) -> Iterator[nn.Module]:
    """The innermost modules with children and at least ``least`` weights of their own."""
    for child in module.children():
        yield from _blocks(child, least, taken)
    if isinstance(module, nn.ModuleList | nn.ModuleDict) or not list(module.children()):
        return
    left = {p for p in module.parameters() if p not in taken}
    if sum(p.numel() for p in left) >= least:
        taken |= left
        yield module


def _is_split(tensor: object) -> bool:
    # isinstance would import DTensor, which is slow.
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

    # Without src_data_rank there are no messages: every process has the whole tensor.
    local = value.to(like.device)
    return distribute_tensor(local, like.device_mesh, like.placements, src_data_rank=None)
