"""``scoresde train-autoencoder``: its flags, its configuration files and its errors."""

from __future__ import annotations

import json

import pytest
import yaml

import scoresde as ss
from scoresde.cli.main import main

# The digits are grey, of 8 x 8 pixels.
CPU = ["--device", "cpu"]
TINY = ["--autoencoder.widths", "8,8", "--autoencoder.groups", "4", "--train.batch", "8"]


def test_it_trains_resumes_and_keeps_what_the_flags_say(tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--out", str(out), *TINY, *CPU, "--loss.kl", "1e-4", "--train.validate-every", "2"]
    assert main(["train-autoencoder", *flags, "--train.steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "latents (4, 2, 2), 4 times fewer numbers than a picture" in printed
    assert " dB" in printed
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["loss"]["kl"] == 1e-4
    assert config["autoencoder"]["widths"] == [8, 8]
    argv = ["train-autoencoder", "--out", str(out), "--resume", "--train.steps", "3"]
    assert main([*argv, *CPU]) == 0
    assert "resumed from" in capsys.readouterr().out
    codec = ss.load_codec(out)
    assert codec.latent_shape((1, 8, 8)) == (4, 2, 2)
    for path in (out, out / "codec.safetensors"):
        assert main(["info", str(path), "--json"]) == 0
        about = json.loads(capsys.readouterr().out)
        assert (about["latents"], about["autoencoder"]["widths"]) == ([4, 2, 2], [8, 8])
        assert about["latents_std"] == pytest.approx(codec.latents_std.tolist())
    assert main(["info", str(out)]) == 0
    assert "round_trip" in capsys.readouterr().out
    again = tmp_path / "again"
    file = ["--config", str(out / "config.yaml"), "--train.steps", "1", *CPU]
    assert main(["train-autoencoder", *file, "--out", str(again)]) == 0


def test_a_dry_run_writes_nothing_and_says_the_size(tmp_path, capsys):
    out = tmp_path / "run"
    argv = ["train-autoencoder", "--dry-run", "--out", str(out), *TINY, *CPU]
    assert main([*argv, "--train.accumulate", "2"]) == 0
    printed = capsys.readouterr().out
    assert "parameters; data digits (1, 8, 8), latents (4, 2, 2)" in printed
    assert "# batch 8: 2 x 4 on each of 1 process" in printed
    assert yaml.safe_load(printed)["train"]["accumulate"] == 2
    assert not out.exists()


def test_help_shows_its_own_keys_only(capsys):
    assert main(["train-autoencoder", "--help", "--loss.l1", "0.5"]) == 0
    printed = capsys.readouterr().out
    assert "(l1 >= 0; now: 0.5)" in " ".join(printed.split())
    assert "--autoencoder.latent-channels" in printed
    assert "--train.weighting" not in printed
    assert main(["train", "--help"]) == 0
    assert "--loss.l1" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "--out is missing"),
        ("--out OUT --data moons", "data: moons has examples of shape (2,)"),
        ("--out OUT --autoencoder.patch 3", "pictures of 8 x 8 pixels do not divide"),
        ("--out OUT --autoencoder.groups 5", "groups=5 does not divide the width 48"),
        ("--out OUT --loss.l1 0 --loss.l2 0", "loss: l1=0 and l2=0 reconstruct nothing"),
        ("--out OUT --loss.kl -1", "loss.kl"),
        ("--out OUT --train.augment edm", "augment=edm tells the network"),
        ("--out OUT --train.batch 7 --train.accumulate 2", "batch=7 cannot be split"),
        ("--out OUT --sde vp", "--sde: unknown option"),
        ("--out OUT --autoencoder vae", "unknown kind 'vae'"),
    ],
)
def test_bad_flags_are_one_line(tmp_path, capsys, flags, words):
    argv = [part.replace("OUT", str(tmp_path / "run")) for part in flags.split()]
    assert main(["train-autoencoder", *argv, *CPU]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert not (tmp_path / "run").exists()
