"""Models with conditions from data to samples: trained, resumed, loaded, drawn, scored."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import scoresde as ss
from scoresde import parameterization as P
from scoresde.cli.main import main
from scoresde.conditions import Label, Tokens, Vector, sizes
from scoresde.data import dataset_of
from scoresde.nn import MLP, UNet
from scoresde.runs.log import Quiet
from scoresde.runs.preview import save_preview
from scoresde.samplers import Heun, grids, per_sample_noise, starting_noise

N = 24
X = torch.randint(0, 256, (N, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
TEXTS = ["a red hat", "a blue hat", "no hat"] * 8
PLACES = torch.randn(N, 2, generator=torch.Generator().manual_seed(1))
COLUMNS = {"text": TEXTS, "place": PLACES, "label": ["cat", "dog", "eel"] * 8}
CONFIG = {
    "parameterization": "v",
    "network": {"kind": "unet", "width": 8, "multipliers": [1], "blocks": 1, "attention": [0],
                "heads": 2},
    "conditions": {
        "text": {"kind": "tokens", "width": 8, "heads": 2, "depth": 1},
        "place": "vector",
        "label": "label",
    },
    "train": {"steps": 4, "batch": 8, "checkpoint_every": 2, "sample_every": 9, "holdout": 0.25,
              "schedule": "constant"},
}  # fmt: skip
SAID = {"prompt": "a red hat", "cond": {"place": [0.3, -1.0]}, "label": "dog", "guidance": 2.0}


def state(model: ss.ScoreModel) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("told") / "run"
    return ss.train(CONFIG, (X, COLUMNS), out=out, device="cpu", listener=Quiet())


def test_a_configuration_is_trained_loaded_and_drawn(trained, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    in_memory = ss.train(file, (X, COLUMNS), device="cpu", listener=Quiet()).model
    loaded = ss.load(trained.folder)
    assert loaded.data.told["text"]["words"] == ["a", "blue", "hat", "no", "red"]
    assert in_memory.data.told == loaded.data.told
    assert loaded.conditions["label"].classes == ("cat", "dog", "eel")
    expected = ss.draw(trained.model, 2, nfe=3, **SAID)
    for model in (loaded, in_memory):
        assert torch.equal(ss.draw(model, 2, nfe=3, **SAID).x, expected.x)
    assert expected.label.tolist() == [1, 1]


def test_it_resumes_to_the_bit(trained, tmp_path):
    common = {"out": tmp_path / "run", "device": "cpu", "listener": Quiet()}
    ss.train(CONFIG, (X, COLUMNS), steps=2, **common)
    resumed = ss.train(CONFIG, (X, COLUMNS), resume=True, **common)
    for name, weight in state(trained.model).items():
        assert torch.equal(weight, state(resumed.model)[name]), name


def test_other_words_are_other_data(trained):
    other = {**COLUMNS, "text": ["a red hat", "a blue hat", "no cat"] * 8}
    with pytest.raises(ValueError, match="have changed"):
        ss.train(CONFIG, (X, other), out=trained.folder, steps=6, resume=True, listener=Quiet())


def mine(**conditions) -> ss.ScoreModel:
    torch.manual_seed(0)
    net = MLP(2, width=8, depth=1, embed=sizes(conditions)["embed"])
    return ss.ScoreModel(net, ss.EDM(), P.edm(1.0), conditions=conditions)


def test_a_model_of_ones_own_learns_its_conditions(tmp_path):
    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    told = {"place": PLACES.repeat(2, 1)[:40], "label": ["cat", "dog"] * 20}

    def fresh() -> ss.ScoreModel:
        return mine(place=Vector([0.0, 0.0], [1.0, 1.0]), label=Label(["cat", "dog"]))

    run = ss.train(fresh(), (points, told), out=tmp_path / "run", steps=2, batch=8,
                   device="cpu", listener=Quiet())  # fmt: skip
    loaded = ss.load(tmp_path / "run", fresh())
    said = {"cond": {"place": [1.0, 0.0]}, "label": "dog", "guidance": 2.0, "nfe": 3}
    assert torch.equal(ss.draw(loaded, 2, **said).x, ss.draw(run.model, 2, **said).x)
    with pytest.raises(ValueError, match="place: the data have no column of this name"):
        ss.train(fresh(), (points, told["label"]), steps=2, listener=Quiet())


class Ignores(nn.Module):
    """The exact denoiser of normal data whose mean is what is said, at unit variance."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, z, noise, *, embed):
        """x0_hat = m + alpha (x - alpha m), of unit variance, with m = 0 where it is not said."""
        alpha = torch.sigmoid(-8 * noise).sqrt()[:, None].to(z)
        mean = embed[:, :2].to(z)
        return self.one * (mean + alpha * (z - alpha * mean))


def test_a_sentence_that_makes_all_others_long_is_remarked():
    heard: list[str] = []
    listener = Quiet()
    listener.say = heard.append
    columns = {**COLUMNS, "text": [*TEXTS[1:], "a " * 300]}
    ss.train(CONFIG, (X, columns), steps=1, device="cpu", listener=listener)
    assert any("text: the longest sentence has 300 tokens" in line for line in heard)


def test_what_the_data_say_is_scored():
    """log p(x | m) of normal data around m, and log p(x) of those around 0."""
    conditions = {"mean": Vector([0.0, 0.0], [1.0, 1.0])}
    model = ss.ScoreModel(Ignores(), ss.VP(), P.x0, conditions=conditions)
    x, means = torch.randn(6, 2) + 1, torch.randn(6, 2)
    normal = torch.distributions.Normal(0.0, 1.0)
    # alpha is 0.007 at t_max, where the prior stands for the law of x.
    told = ss.score(model, (x, {"mean": means}), steps=40)
    torch.testing.assert_close(
        told.log_prob, normal.log_prob(x - means).sum(1).double(), atol=0.03, rtol=0
    )
    untold = ss.score(model, x, steps=40)
    torch.testing.assert_close(
        untold.log_prob, normal.log_prob(x).sum(1).double(), atol=0.03, rtol=0
    )
    both = ss.score(model, (x, {"mean": means}), conditional=False, steps=40)
    assert torch.equal(both.log_prob, untold.log_prob)
    with pytest.raises(ValueError, match="conditional: mean: the data have no column"):
        ss.score(model, x, conditional=True)
    conditions["mean"].dropout = 0.0
    with pytest.raises(ValueError, match="mean is missing: this model never learned"):
        ss.score(model, x)


def test_the_command_line_scores_and_describes(trained, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=X.numpy())
    argv = ["--checkpoint", str(trained.folder), "--images", str(tmp_path / "x.npz")]
    argv += ["--device", "cpu", "--num", "2", "--likelihood.steps", "12", "--json"]
    assert main(["likelihood", *argv]) == 0
    capsys.readouterr()
    assert main(["likelihood", *argv, "--conditional"]) == 2
    assert "--conditional: text: the data have no column" in capsys.readouterr().err
    assert main(["info", str(trained.folder)]) == 0
    page = " ".join(capsys.readouterr().out.split())
    assert "a sentence of at most 3 of 5 words (a, blue, hat, no, red, ...) (tokens)" in page
    assert "condition place 2 numbers, in the training data" in page
    assert "condition label one of 3 classes: cat, dog, eel (label)" in page
    count = sum(p.numel() for p in trained.model.parameters())
    assert f"parameters {count:,}" in page
    assert main(["info", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["conditions"]
    assert {"tokens", "vector", "frozen_text"} <= listed.keys()


def test_a_preview_is_drawn_under_the_conditions_of_test_examples(tmp_path):
    told = {k: v for k, v in COLUMNS.items() if k != "label"}
    data = dataset_of((X, told), holdout=0)
    conditions = {"text": Tokens(["a", "blue", "hat", "no", "red"], 3, width=8, heads=2),
                  "place": Vector([0.0, 0.0], [1.0, 1.0])}  # fmt: skip
    torch.manual_seed(0)
    net = UNet(1, width=8, multipliers=(1,), blocks=1, attention=(), heads=2, **sizes(conditions))
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.2)
    model = ss.ScoreModel(net, ss.VP(), P.v, conditions=conditions).requires_grad_(False).eval()
    save_preview(tmp_path / "a.png", model, data, None)
    noise = per_sample_noise(range(64))
    x = starting_noise(model.sde, torch.empty(64, 1, 4, 4), noise)
    rows = list(itertools.chain.from_iterable([k] * 8 for k in range(8)))
    denoiser = model.denoiser(text=[TEXTS[k] for k in rows], place=PLACES[rows])
    expected = ss.sample(denoiser, x, grids.karras()(model.sde, 12), Heun(), noise)
    shades = data.scaling.to_uint8(expected)
    with Image.open(tmp_path / "a.png") as picture:
        grid = np.asarray(picture.convert("L"))
    tile = grid[-52 * 8 :, -52 * 8 :]  # 8 x 8 tiles of 48 pixels, each with a margin of 4
    found = tile[24::52, 24::52]
    assert np.array_equal(found, shades[:, 0, 2, 2].reshape(8, 8).numpy())
