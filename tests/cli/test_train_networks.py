"""Every image network from the command line: trained, resumed, sampled."""

from __future__ import annotations

import pytest
import torch

from scoresde.cli.main import main
from scoresde.config import build_model
from scoresde.runs.load import load_run
from tests.cli.test_train import taken_back

TINY = {
    "network.width": 8,
    "network.multipliers": "1 2",
    "network.blocks": 1,
    "network.attention": "1",
    "network.recompute": "true",
    "conditional": "true",
    "train.steps": 4,
    "train.batch": 8,
    "train.log_every": 2,
    "train.validate_every": 4,
    "train.sample_every": 4,
    "train.checkpoint_every": 2,
    "train.keep_best": "false",
    "train.holdout": 0,
    "sample.steps": 3,
}
HEADS = {"network.head_channels": 8}


def flags(options):
    return [part for key, value in options.items() for part in (f"--{key}", *str(value).split())]


def train(out, kind, *extra, **changes):
    options = flags({"network.kind": kind, **TINY, **changes})
    return main(["train", "--out", str(out), "--device", "cpu", *options, *extra])


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp", "adm"])
def test_a_published_network_trains_and_samples(tmp_path, kind):
    assert train(tmp_path, kind, **HEADS) == 0
    run = load_run(tmp_path, ema=False)
    fresh = build_model(run.config, run.data).state_dict()
    assert not all(torch.equal(fresh[k], v) for k, v in run.model.state_dict().items())
    sampled = ["sample", "--checkpoint", str(tmp_path), "--out", str(tmp_path / "samples")]
    assert main([*sampled, "--num", "4", "--device", "cpu"]) == 0


def test_a_published_network_resumes_exactly_with_dropout_and_recomputed_blocks(tmp_path):
    assert train(tmp_path / "whole", "ncsnpp", **HEADS) == 0
    taken_back(tmp_path / "whole", tmp_path / "parts", 2)
    assert train(tmp_path / "parts", "ncsnpp", "--resume", **HEADS) == 0
    whole, parts = (load_run(tmp_path / out, ema=False) for out in ("whole", "parts"))
    weights = parts.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in whole.model.state_dict().items())


def test_a_published_network_gives_logits_of_levels(tmp_path):
    levels = {"network.head": "levels", "parameterization.kind": "x0", "train.dither": "false"}
    assert train(tmp_path, "ncsnpp", **levels) == 0
