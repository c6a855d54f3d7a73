"""Training from Python: own models and data, with and without a folder, resumed to the bit."""

from __future__ import annotations

import pickle
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import scoresde as ss
from scoresde import parameterization as P
from scoresde.config import load_config
from scoresde.runs.log import Quiet
from scoresde.runs.stored import page, stored
from scoresde.training import CheckpointError, TrainingError
from scoresde.training.times import LogNormal

X = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)) * 1000 + 5000


class Net(nn.Module):
    """A network of a program's own; with classes it takes labels."""

    def __init__(self, width: int = 16, dim: int = 2) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(dim + 1, width), nn.Linear(width, dim)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(torch.cat([x, noise[:, None]], dim=1))))


class Labelled(Net):
    """The same, with a class that moves the output; it has no row for "no class"."""

    def __init__(self) -> None:
        super().__init__()
        self.move = nn.Embedding(3, 2)

    def forward(self, x, noise, label=None):
        y = super().forward(x, noise)
        return y if label is None else y + self.move(label)


def mine(width: int = 16) -> ss.ScoreModel:
    torch.manual_seed(1)
    return ss.ScoreModel(Net(width), ss.EDM(), P.edm(1.0))


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_a_model_of_ones_own_is_trained_in_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = ss.train(mine(), X, steps=6, batch=16, listener=Quiet())
    assert run.folder is None
    assert run.step == 6
    assert not list(tmp_path.iterdir())
    assert not run.model.training
    assert not any(p.requires_grad for p in run.model.parameters())
    # The scale of the data goes with the model.
    assert np.allclose(run.model.data.scaling.shift, X.mean(0).numpy(), rtol=0.05)


def test_a_run_of_ones_own_model_is_resumed_to_the_bit(tmp_path):
    settings = {"batch": 16, "checkpoint_every": 4, "listener": Quiet()}
    whole = ss.train(mine(), X, out=tmp_path / "whole", steps=10, **settings)
    ss.train(mine(), X, out=tmp_path / "parts", steps=4, **settings)
    parts = ss.train(mine(), X, out=tmp_path / "parts", steps=10, resume=True, **settings)
    pairs = zip(weights(whole.model), weights(parts.model), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_it_is_loaded_into_the_model_given_and_into_no_other(tmp_path):
    run = ss.train(mine(), X, out=tmp_path / "run", steps=4, batch=16, listener=Quiet())
    loaded = ss.load(run.folder, mine())
    assert all(torch.equal(a, b) for a, b in zip(weights(loaded), weights(run.model), strict=True))
    assert torch.equal(
        pickle.loads(pickle.dumps(loaded)).net.inner.weight, loaded.net.inner.weight
    )
    with pytest.raises(CheckpointError, match=r"a program made.*give the model"):
        ss.load(run.folder)
    with pytest.raises(CheckpointError, match=r"net\.inner\.weight"):
        ss.load(run.folder, mine(width=8))
    other = ss.ScoreModel(Net(), ss.EDM(), P.edm(0.5))
    with pytest.raises(CheckpointError, match="another process or parameterisation"):
        ss.load(run.folder, other)


@pytest.mark.parametrize("kind", ["array", "dataset", "npy", "csv"])
def test_data_come_in_many_forms(tmp_path, kind):
    x = X.numpy()
    np.save(tmp_path / "x.npy", x)
    np.savetxt(tmp_path / "x.csv", x, delimiter=",")
    data = {
        "array": x,
        "dataset": torch.utils.data.TensorDataset(X),
        "npy": tmp_path / "x.npy",
        "csv": tmp_path / "x.csv",
    }[kind]
    run = ss.train(mine(), data, steps=2, batch=16, listener=Quiet())
    assert run.model.data.shape == (2,)


def test_labels_go_to_networks_that_take_them():
    y = torch.arange(400) % 3
    model = ss.ScoreModel(Labelled(), ss.VP(), P.v)
    before = model.net.move.weight.detach().clone()
    run = ss.train(model, (X, y), steps=4, batch=16, listener=Quiet())
    assert run.model.data.classes == ("0", "1", "2")
    assert not torch.equal(run.model.net.move.weight, before)
    # A network without labels learns the data without them.
    ss.train(mine(), (X, y), steps=2, batch=16, listener=Quiet())


def test_a_configuration_takes_data_from_memory():
    config = {"network": {"kind": "mlp", "width": 8}}
    run = ss.train(config, X, steps=2, batch=16, times=LogNormal(0.5), listener=Quiet())
    assert run.model.config.train.times.values == {"mean": 0.5, "std": 1.2}
    assert ss.draw(run.model, 3, nfe=3).x.shape == (3, 2)


def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path):
    class Wide(Net):
        def forward(self, x, noise):
            return super().forward(x, noise)[:, :1]

    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"returns \(2, 1\) for x of shape \(2, 2\)"):
        ss.train(ss.ScoreModel(Wide(), ss.VP(), P.v), X, out=out, listener=Quiet())
    with pytest.raises(ValueError, match="a model of your own needs data"):
        ss.train(mine())
    with pytest.raises(ValueError, match="need a ScoreModel or a configuration, got Net"):
        ss.train(Net(), X)
    with pytest.raises(ValueError, match="resume and overwrite need out"):
        ss.train(mine(), X, resume=True)
    assert not out.exists()


def test_a_rate_that_diverges_names_the_rate():
    with pytest.raises(TrainingError, match=r"lower lr=1e\+30"):
        ss.train(mine(), X, steps=50, batch=16, lr=1e30, clip=1e9, listener=Quiet())


def test_no_memory_names_the_batch(monkeypatch):
    forward = Net.forward

    def refuse(self, x, noise):
        if self.training:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to")
        return forward(self, x, noise)

    monkeypatch.setattr(Net, "forward", refuse)
    net = mine()
    with pytest.raises(RuntimeError, match="out of memory with batch=16; lower batch"):
        ss.train(net, X, steps=2, batch=16, listener=Quiet())


class Interrupting(Quiet):
    """Sends the signal of Ctrl-C after a few steps; keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def advance(self, step: int) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_keeps_what_there_is(tmp_path):
    run = ss.train(mine(), X, steps=50, batch=16, listener=Interrupting())
    assert run.stopped
    assert run.step == 3
    saved = ss.train(mine(), X, out=tmp_path / "run", steps=50, batch=16, listener=Interrupting())
    assert saved.stopped
    assert (tmp_path / "run/checkpoints/step-00000003.pt").exists()
    assert ss.train(mine(), X, out=saved.folder, steps=5, batch=16, resume=True).step == 5


def test_what_is_unusual_is_remarked(tmp_path):
    heard = Interrupting()
    model = ss.ScoreModel(Labelled(), ss.VP(), P.eps)
    y = torch.arange(400) % 3
    ss.train(model, (X, y), steps=2, batch=16, warmup=100, listener=heard)
    said = "\n".join(heard.said)
    assert "3 classes (training examples): 0 (134), 1 (133), 2 (133)" in said
    assert "train.warmup=100 is longer than the 2 steps of the run: shortened to 1" in said
    assert "multiplies the network's errors by" in said


def test_records_say_how_the_loss_went(tmp_path):
    run = ss.train(mine(), X, steps=6, batch=16, log_every=2, listener=Quiet())
    assert [record["step"] for record in run.records] == [2, 4, 6]
    assert all(a["images"] < b["images"] for a, b in pairwise(run.records))


def test_a_model_of_ones_own_goes_on_as_it_began(tmp_path):
    ss.train(mine(), X, out=tmp_path, steps=4, batch=16, lr=1e-3, listener=Quiet())
    # Neither the batch nor the number of steps is given again.
    assert ss.train(mine(), X, out=tmp_path, resume=True, listener=Quiet()).step == 4
    ss.train(mine(), X, out=tmp_path, steps=6, resume=True, listener=Quiet())
    found = load_config(tmp_path / "config.yaml").train
    assert (found.steps, found.batch, found.lr) == (6, 16, 1e-3)


def test_an_interrupted_run_says_at_which_step(tmp_path):
    run = ss.train(mine(), X, out=tmp_path, steps=50, batch=16, listener=Interrupting())
    assert (run.step, run.records) == (3, [])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lr": -1.0}, "^lr: must be greater than 0"),
        ({"times": {"kind": "uniform", "mean": 1}}, r"^times\.mean: "),
        ({"bacth": 3}, "^bacth: no setting of training; did you mean 'batch'"),
        ({"conditional": True}, "^conditional: no setting of training; choose one of steps"),
    ],
)
def test_a_wrong_setting_is_named_as_the_argument_it_is(settings, words):
    with pytest.raises(ValueError, match=words):
        ss.train(mine(), X, **settings)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: None, "returns NoneType; it has to return a tensor"),
        (lambda x: 1 / 0, r"fails for x of shape \(2, 2\).*ZeroDivisionError"),
        (lambda x: x[:, :1], r"returns \(2, 1\) for x of shape \(2, 2\)"),
    ],
)
def test_a_network_that_fails_is_the_models_fault(monkeypatch, answer, words):
    monkeypatch.setattr(Net, "forward", lambda self, x, noise: answer(x))
    with pytest.raises(ValueError, match=f"^model: its network {words}"):
        ss.train(mine(), X, listener=Quiet())


def test_a_network_without_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameters to train"):
        ss.train(ss.ScoreModel(nn.Identity(), ss.VP(), P.v), X, listener=Quiet())


def test_a_path_is_kept_with_the_settings_of_its_kind(tmp_path):
    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(10):
            picture.save(tmp_path / "data" / name / f"{k}.png")
    config = {"network": {"kind": "mlp", "width": 8}, "data": {"kind": "folder", "size": 4}}
    out = tmp_path / "run"
    run = ss.train(config, tmp_path / "data", out=out, steps=2, batch=4, listener=Quiet())
    assert run.model.data.shape == (3, 4, 4)
    found = load_config(out / "config.yaml").data
    assert (found.kind, found.path) == ("folder", str(tmp_path / "data"))
    # So the run goes on without them.
    assert ss.train(out / "config.yaml", out=out, steps=3, resume=True, listener=Quiet()).step == 3


def test_classes_that_are_not_learned_are_remarked():
    heard = Interrupting()
    ss.train(mine(), (X, torch.arange(400) % 3), steps=2, batch=16, listener=heard)
    assert "the classes are not learned: the network takes no label" in heard.said


def test_a_run_of_ones_own_model_needs_it_to_go_on(tmp_path):
    ss.train(mine(), X, out=tmp_path, steps=2, batch=16, listener=Quiet())
    with pytest.raises(ValueError, match="one that a program made"):
        ss.train(tmp_path / "config.yaml", X, out=tmp_path, resume=True)
    other = ss.ScoreModel(Net(), ss.VP(), P.v)
    with pytest.raises(ValueError, match="another process or parameterization; give the same"):
        ss.train(other, X, out=tmp_path, resume=True)
    with pytest.raises(ValueError, match="model: need a ScoreModel, got Net"):
        ss.load(tmp_path, Net())


def test_a_folder_says_what_its_model_is(tmp_path):
    run = ss.train(mine(), X, out=tmp_path / "own", steps=2, batch=16, listener=Quiet())
    found = stored(run.folder)
    assert (found["sde"], found["parameterization"], found["network"]) == (None, None, None)
    assert "network           defined by a program" in page(found)
    for head in ("value", "levels"):
        network = {"kind": "unet", "width": 8, "multipliers": [1], "blocks": 1, "head": head}
        network["attention"] = []
        config = {"network": network, "parameterization": "x0", "train": {"dither": False}}
        out = tmp_path / head
        run = ss.train(config, out=out, steps=1, batch=8, listener=Quiet())
        # Trained numbers, without the frequencies of the noise features.
        assert stored(out)["parameters"] == sum(p.numel() for p in run.model.parameters())
