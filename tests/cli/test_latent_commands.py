"""A codec and the model of its latents through the commands."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.cli.main import main
from scoresde.latent import KLAutoencoder
from scoresde.latent.files import save_codec

NETWORK = ["width=8", "multipliers=1", "blocks=1", "attention=[]"]
TRAIN = ["steps=2", "batch=8", "checkpoint_every=2", "validate_every=2", "sample_every=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a model of latents of 8 x 8 digits, 2 x 4 x 4."""
    folder = tmp_path_factory.mktemp("latents")
    torch.manual_seed(0)
    codec = KLAutoencoder(1, 2, patch=1, widths=(8, 8), groups=4)
    save_codec(folder / "codec.safetensors", codec)
    keys = [f"--network.{key}" for key in NETWORK] + [f"--train.{key}" for key in TRAIN]
    out, file = str(folder / "run"), str(folder / "codec.safetensors")
    assert main(["train", "--codec", file, "--out", out, "--device", "cpu", *keys]) == 0
    return folder / "run"


def frames_of(file):
    with Image.open(file) as picture:
        return picture.size, getattr(picture, "n_frames", 1)


def test_the_log_and_the_picture_of_training_are_of_pictures(run):
    log = (run / "log.txt").read_text()
    assert "digits (1, 8, 8) as latents (2, 4, 4)" in log
    assert f"cache {run.parent / 'latents'}" in log
    assert (run / "samples" / "step-00000002.png").is_file()


def test_samples_previews_and_arrays_are_pictures(run, tmp_path):
    common = ["--checkpoint", str(run), "--out", str(tmp_path), "--device", "cpu"]
    flags = ["--num", "3", "--sample.steps", "3", "--npz", "--trajectory", "--preview-every", "2"]
    assert main(["sample", *common, *flags]) == 0
    assert frames_of(tmp_path / "000002.png") == ((8, 8), 1)
    assert np.load(tmp_path / "samples.npz")["arr_0"].shape == (3, 8, 8, 1)
    assert np.load(tmp_path / "trajectory.npz")["x0"].shape[1:] == (3, 2, 4, 4)
    assert frames_of(tmp_path / "trajectory.gif")[1] > 1
    assert list((tmp_path / "previews").iterdir())


def test_a_comparison_says_that_its_errors_are_of_latents(run, capsys):
    common = ["--checkpoint", str(run), "--device", "cpu", "--num", "2"]
    assert main(["compare", *common, "--samplers", "ddim", "--steps", "3"]) == 0
    assert "Distance, of latents," in capsys.readouterr().out


def test_pictures_are_edited_and_the_model_is_described(run, tmp_path, capsys):
    common = ["--checkpoint", str(run), "--out", str(tmp_path), "--device", "cpu"]
    flags = ["--operation", "inpaint", "--box", "2,2,6,6", "--nfe", "3", "--examples", "1-2"]
    assert main(["edit", *common, *flags]) == 0
    assert json.loads((tmp_path / "edit.json").read_text())["method"] == "dps"
    assert frames_of(tmp_path / "000001.png") == ((8, 8), 1)
    capsys.readouterr()
    assert main(["info", str(run)]) == 0
    assert "latents of shape (2, 4, 4)" in capsys.readouterr().out
    assert main(["train", "--config", str(run / "config.yaml"), "--dry-run"]) == 0
    assert "as latents (2, 4, 4)" in capsys.readouterr().out
