"""Blocks that keep what goes into them and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint


def run(block: Callable[..., Any], *inputs: Any, again: bool) -> Any:
    """block(*inputs), which with ``again`` is run once more in the backward pass.

    The second time is under the autocast and the function modes of the first. torch.func, which
    has no such pass, runs it once.
    Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174.
    """
    if not again or torch._C._are_functorch_transforms_active():
        return block(*inputs)
    if torch.compiler.is_compiling():  # where both times are traced under them
        return checkpoint(block, *inputs, use_reentrant=False)
    modes = _get_current_function_mode_stack()

    def contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        return nullcontext(), _Under(modes)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


class _Under:
    """The modes that are not on already, as often as a backward pass asks for them."""

    def __init__(self, modes: Sequence[TorchFunctionMode]) -> None:
        self.modes = modes

    def __enter__(self) -> None:
        on = _get_current_function_mode_stack()
        with ExitStack() as stack:
            for mode in self.modes:
                if mode not in on:
                    stack.enter_context(mode)
            self.entered = stack.pop_all()

    def __exit__(self, *raised: Any) -> None:
        self.entered.close()
