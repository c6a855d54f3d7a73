"""A share of ``experiments/fuzz.py``: whatever is given to a reader, it works or says why."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from experiments.fuzz import KINDS, MARKER, Case, Hang, Kind, Payload, intact, limited, outcome

FEW = settings(
    max_examples=12,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_reader_works_or_says_why(kind, tmp_path):
    @FEW
    @given(case=kind.cases)
    def every(case: Case) -> None:
        assert outcome(kind, case, tmp_path) in ("read", "refused")

    every()


@pytest.mark.parametrize("kind", KINDS[3:], ids=lambda kind: kind.name)
def test_what_is_intact_is_read(kind, tmp_path):
    """So that a refusal is for the damage."""
    names = {
        "checkpoint": "model.pt",
        "weights": "w.safetensors",
        "codec": "codec.safetensors",
        "npz": "x.npz",
        "npy": "x.npy",
        "idx": "images-ubyte",
        "idx.gz": "images-ubyte",
        "picture": "a.png",
        "statistics": "moments.npz",
    }
    name = names[kind.name]
    assert outcome(kind, Case("intact", name, intact()[name]), tmp_path) == "read"


def test_the_harness_sees_what_it_is_to_see(tmp_path, capfd):
    """A bare error, a warning, print, a payload that runs, and a hang."""
    import os
    import pickle
    import time
    import warnings

    def kind(read) -> Kind:
        return Kind("bad", st.nothing(), read, (ValueError,))

    def hang(path) -> None:
        with limited(0.05):
            time.sleep(5)

    bad = [
        (lambda path: [][0], IndexError),
        (lambda path: warnings.warn("odd", stacklevel=1), UserWarning),
        (lambda path: os.write(2, b"text"), AssertionError),
        (lambda path: pickle.loads(pickle.dumps(Payload())), AssertionError),
        (lambda path: int("two\nlines"), None),
        (hang, Hang),
    ]
    for read, error in bad:
        case = Case("", "file", b"")
        if error is None:
            assert outcome(kind(read), case, tmp_path) == "refused"
            continue
        with pytest.raises(error):
            outcome(kind(read), case, tmp_path)
        MARKER.unlink(missing_ok=True)
