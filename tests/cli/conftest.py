"""Models with known answers: a fresh network gives 0, so that under VP with v the denoiser is
alpha x, that of standard normal data, whose probability flow stands still.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from scoresde.config import build_dataset, build_model, load_config, to_plain
from scoresde.runs.folder import RunFolder
from scoresde.training.checkpoint import Checkpoint, describe, save
from tests.cli.test_train import finished_run, tiny

POINTS = {
    "data.kind": "moons",
    "data.train": 50,
    "data.test": 20,
    "parameterization.kind": "v",
    "network.kind": "mlp",
    "network.width": 8,
    "network.depth": 1,
}
IMAGES = {
    "conditional": True,
    "parameterization.kind": "v",
    "network.width": 8,
    "network.multipliers": [1],
    "network.blocks": 1,
    "network.attention": [],
}


def save_model(file: Path, overrides: dict[str, object], spread: float = 0.0) -> Path:
    """A checkpoint of a fresh model, its weights disturbed by normal numbers."""
    config = load_config(None, overrides)
    data = build_dataset(config.data)
    state = build_model(config, data).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {k: v + spread * torch.randn(v.shape, generator=generator) for k, v in state.items()}
    save(file, Checkpoint(to_plain(config), describe(data), 7, state, state, {}))
    return file


@pytest.fixture(scope="session", autouse=True)
def plain_layout() -> Iterator[None]:
    """Pictures without a computed layout, which takes most of the time of runs this small.

    The tests of ``evaluation`` draw them as they are.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "set_layout_engine", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> RunFolder:
    """A run of 12 steps that nobody disturbed; its checkpoints are those of 8 and 12."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return finished_run(tiny(), out)


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory) -> Path:
    """A class-conditional checkpoint on the digits that was never trained without a class."""
    changed = IMAGES | {"train.label_dropout": 0}
    return save_model(tmp_path_factory.mktemp("unlabelled") / "model.pt", changed)


@pytest.fixture(scope="session")
def points(tmp_path_factory) -> Path:
    """A checkpoint whose model is the standard normal law in the plane."""
    return save_model(tmp_path_factory.mktemp("points") / "model.pt", POINTS)


@pytest.fixture(scope="session")
def split_points(tmp_path_factory) -> Path:
    """A checkpoint on points in a file, a tenth of them held out."""
    folder = tmp_path_factory.mktemp("split")
    np.save(folder / "x.npy", np.random.default_rng(0).normal(size=(20, 2)))
    plain = {key: value for key, value in POINTS.items() if not key.startswith("data.")}
    data = {"data.kind": "arrays", "data.path": str(folder / "x.npy")}
    return save_model(folder / "model.pt", plain | data)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A class-conditional checkpoint on the digits whose model is the standard normal law."""
    return save_model(tmp_path_factory.mktemp("images") / "model.pt", IMAGES)


@pytest.fixture(scope="session")
def wild(tmp_path_factory) -> Path:
    """A class-conditional checkpoint on the digits with random weights."""
    return save_model(tmp_path_factory.mktemp("wild") / "model.pt", IMAGES, spread=0.1)


@pytest.fixture(scope="session")
def broken(tmp_path_factory) -> Path:
    """A checkpoint on the digits whose finite weights make numbers that overflow."""
    return save_model(tmp_path_factory.mktemp("broken") / "model.pt", IMAGES, spread=1e20)
