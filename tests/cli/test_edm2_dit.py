"""Whole runs of the image networks, and of a learned weight, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scoresde.cli.main import main
from scoresde.config import load_config
from scoresde.data import digits
from scoresde.training import checkpoint as ck
from tests.cli.test_processes import ended, started
from tests.cli.test_train import taken_back

TINY = {
    "edm2": {
        "width": "8",
        "multipliers": "1,2",
        "blocks": "1",
        "attention": "1",
        "head_channels": "8",
    },
    "dit": {"width": "16", "depth": "2", "heads": "2", "patch": "3"},
}
RUN = {
    "steps": "4",
    "batch": "8",
    "log_every": "2",
    "holdout": "0",
    "keep_best": "false",
    "checkpoint_every": "2",
    "ema": "0.5",
}


def command(out: Path, kind: str, *extra: str, **train: str) -> list[str]:
    found = ["train", "--out", str(out), "--device", "cpu", "--network.kind", kind]
    found += [part for k, v in TINY[kind].items() for part in (f"--network.{k}", v)]
    return [*found, *(p for k, v in (RUN | train).items() for p in (f"--train.{k}", v)), *extra]


@pytest.mark.parametrize("kind", TINY)
def test_a_run_is_trained_resumed_and_sampled(tmp_path, kind):
    whole = tmp_path / "whole"
    extra = ("--conditional", "true", "--network.recompute", "true", "--network.dropout", "0.1")
    assert main(command(whole, kind, *extra)) == 0
    out = taken_back(whole, tmp_path / "run", 2)
    assert main(command(out, kind, "--resume", *extra)) == 0
    a, b = (ck.newest(folder / "checkpoints")[1] for folder in (whole, out))
    assert a.step == b.step == 4
    for one, other in ((a.model, b.model), (a.ema, b.ema)):
        assert all(torch.equal(one[k], other[k]) for k in one)
    images = tmp_path / "images"
    line = [
        "sample",
        "--checkpoint",
        str(out),
        "--out",
        str(images),
        "--num",
        "2",
        "--sample.steps",
        "2",
    ]
    assert main([*line, "--device", "cpu"]) == 0
    assert list(images.rglob("*.png"))


@pytest.mark.parametrize("kind", TINY)
def test_a_head_over_levels_fits(tmp_path, kind):
    levels = (
        "--network.head",
        "levels",
        "--parameterization.kind",
        "x0",
        "--train.dither",
        "false",
    )
    assert main(command(tmp_path / "run", kind, *levels)) == 0
    found = ck.newest(tmp_path / "run" / "checkpoints")[1]
    head = next(v for k, v in found.model.items() if k.endswith("head.weight"))
    per_pixel = 9 if kind == "dit" else 1
    assert len(head) == per_pixel * digits().scaling.levels


def test_a_learned_weight_is_trained_saved_and_resumed(tmp_path):
    kind = "dit"
    whole = tmp_path / "whole"
    learned = ("--train.learned_weight", "true")
    assert main(command(whole, kind, *learned)) == 0
    out = taken_back(whole, tmp_path / "run", 2)
    assert main(command(out, kind, "--resume", *learned)) == 0
    a, b = (ck.newest(folder / "checkpoints")[1] for folder in (whole, out))
    assert a.learned["u"]["linear.weight"].any()
    assert all(torch.equal(a.learned["u"][k], b.learned["u"][k]) for k in a.learned["u"])
    for k, state in a.learned["optimizer"]["state"].items():
        other = b.learned["optimizer"]["state"][k]
        assert all(torch.equal(v, other[name]) for name, v in state.items())
    assert all(torch.equal(a.model[k], b.model[k]) for k in a.model)
    assert not any("linear" in name for name in a.model)
    line = ["sample", "--checkpoint", str(out), "--out", str(tmp_path / "images"), "--num", "1"]
    assert main([*line, "--sample.steps", "2"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", TINY)
@pytest.mark.parametrize("shard", ["false", "true"])
def test_two_processes_make_the_run_of_one(tmp_path, kind, shard):
    """Unit weights and a learned weight too, but for rounding, which Adam amplifies at first."""
    alone, out = tmp_path / "alone", tmp_path / "run"
    learned = ("--train.learned_weight", "true", "--network.dropout", "0")
    assert main(command(alone, kind, *learned)) == 0
    found = ended(started(*[command(out, kind, *learned, "--train.shard", shard)] * 2))
    assert [code for code, *_ in found] == [0, 0], found
    a, b = (ck.newest(folder / "checkpoints")[1] for folder in (alone, out))
    for one, other in ((a.model, b.model), (a.ema, b.ema), (a.learned["u"], b.learned["u"])):
        for name, value in one.items():
            torch.testing.assert_close(other[name], value, rtol=0, atol=1e-4)


def test_a_run_without_one_is_not_resumed_with_one(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(command(out, "dit", steps="2")) == 0
    assert main(command(out, "dit", "--resume", "--train.learned_weight", "true")) == 2
    assert "train.learned_weight=True was False" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("network", {"kind": "dit", "width": 18}, "multiple of 4"),
        ("network", {"kind": "dit", "heads": 5}, "heads=5 does not divide the 384"),
        ("network", {"kind": "edm2", "width": 24}, "head_channels=64 does not divide the 72"),
        ("network", {"kind": "edm2", "attention": [4]}, "attention=4 is no resolution"),
        ("train", {"channels_last": True}, "channels_last=true is for convolutions"),
    ],
)
def test_what_does_not_fit_is_refused(key, value, words):
    flags = {f"{key}.{k}": v for k, v in value.items()}
    if key == "train":
        flags["network.kind"] = "dit"
    with pytest.raises(ValueError, match=words):
        load_config(None, flags)
