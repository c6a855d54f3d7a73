"""Blocks that keep what goes into them and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint


def run(block: Callable[..., Any], *inputs: Any, again: bool) -> Any:
    """block(*inputs), which with ``again`` is run once more in the backward pass.

    The second time is under the autocast and the function modes of the first.
    Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174.
    """
    if not again:
        return block(*inputs)
    if torch.compiler.is_compiling():  # where both times are traced under them
        return checkpoint(block, *inputs, use_reentrant=False)
    modes = _get_current_function_mode_stack()

    def contexts() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
        return nullcontext(), _under(modes)

    return checkpoint(block, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _under(modes: Sequence[TorchFunctionMode]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield
