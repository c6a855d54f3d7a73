"""Trained weights with the names of guided-diffusion, from a package: against its own runtime."""

import importlib
from pathlib import Path

import pytest

pytestmark = pytest.mark.parity


def test_trained_weights_give_what_their_own_runtime_gives(monkeypatch):
    package = pytest.importorskip(
        "terrain_diffusion", reason="needs the package adaptive-terrain-diffusion"
    )
    for name in ("onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"needs the package {name}")
    root = importlib.import_module("tests.test_readme").ROOT
    monkeypatch.syspath_prepend(root / "experiments")
    script = importlib.import_module("published")
    monkeypatch.setattr(script, "SIGMAS", (1.0,))
    found = script.compared(Path(package.__path__[0]) / script.WEIGHTS)
    assert found["largest_difference"]["1"] < 1e-3
