"""One home for an argument: what a signature and a docstring say is read and enforced."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import torch

from scoresde.arguments import (
    EMPTY,
    Argument,
    Count,
    Even,
    Open,
    Positive,
    Range,
    arguments,
    check,
    check_fields,
)


def made(
    rho: Annotated[float, Range(ge=0.1)] = 7.0,
    widths: tuple[Count, ...] = (1, 2),
    kind: Literal["a", "b"] | None = None,
    size: Even | None = None,
) -> None:
    """A constructor.

    Args:
        rho: exponent of
            the ramp.
        kind: ``a`` or ``b``.

    Raises ValueError.
    """
    check(made, locals())


@dataclass(frozen=True)
class Held:
    """A dataclass.

    Args:
        snr: signal to noise.
    """

    snr: Open
    rate: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)


class Network(torch.nn.Module):
    """A network.

    Args:
        width: channels.
    """

    def __init__(self, inputs: int, width: Count = 64) -> None:
        super().__init__()


def test_a_function_describes_its_arguments():
    found = arguments(made)
    assert list(found) == ["rho", "widths", "kind", "size"]
    assert found["rho"].about == "exponent of the ramp"
    assert found["rho"].default == 7.0
    assert found["kind"].about == "a or b"
    assert found["widths"].about == ""


def test_so_do_dataclasses_and_modules():
    assert arguments(Held)["snr"] == Argument("snr", Open, EMPTY, "signal to noise")
    assert arguments(Network)["width"] == Argument("width", Count, 64, "channels")
    assert arguments(Network)["inputs"].default is EMPTY


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rho": 0.05}, "need rho >= 0.1, got rho=0.05"),
        ({"rho": math.nan}, "need rho >= 0.1, got rho=nan"),
        ({"widths": (1, 0)}, r"need widths >= 1, got widths=\(1, 0\)"),
        ({"kind": "c"}, "need kind one of a, b, got 'c'"),
        ({"size": 3}, "need size >= 2 and even, got size=3"),
        ({"size": 4.5}, "need a whole number, got size=4.5"),
        ({"size": "4"}, "need a whole number, got size='4'"),
        ({"rho": "7"}, "need a number, got rho='7'"),
    ],
)
def test_what_is_out_of_range_is_named(values, words):
    with pytest.raises(ValueError, match=words):
        made(**values)


def test_a_dataclass_checks_itself():
    assert Held(0.5).snr == 0.5
    with pytest.raises(ValueError, match="need 0 < snr < 1, got snr=1"):
        Held(1.0)
    with pytest.raises(ValueError, match="need rate > 0, got rate=-1"):
        Held(0.5, -1.0)


def test_a_tuple_may_have_a_least_length():
    def taps(values: Annotated[tuple[float, ...], Range(gt=0, length=2)]) -> None:
        check(taps, {"values": values})

    taps((1.0, 2.0))
    with pytest.raises(ValueError, match="at least 2 of values"):
        taps((1.0,))
