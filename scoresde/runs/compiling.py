"""Errors of the compiler, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

COMPILERS = ("torch._dynamo", "torch._inductor")
"""Modules whose errors come from compilation; given by name, as importing them is slow."""


@contextmanager
def compiling(argument: str) -> Iterator[None]:
    """Raise errors of the compiler as RuntimeError, naming the argument that asks for it."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(COMPILERS):
            raise
        reason = " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())
        raise RuntimeError(
            f"{argument}: compilation failed ({reason}); set it to false, or give the compiler it "
            "asks for"
        ) from error
