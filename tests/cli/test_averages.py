"""Averages of the weights: power-function ones, several decays, and commands that choose one."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch

import scoresde as ss
from scoresde.cli.main import main
from scoresde.config import override
from scoresde.data.foreign import RECORD
from scoresde.runs import train
from scoresde.runs.folder import RunFolder
from scoresde.runs.load import load_run, load_width
from scoresde.training import checkpoint as ck
from scoresde.training.snapshots import snapshots
from tests.cli.test_train import command, error_line, finished_run, stop_at, tiny, tree

# --- power-function averages ------------------------------------------------------------------

POSTHOC = {"train__posthoc": "0.05,0.1", "train__posthoc_every": "3"}


@pytest.fixture(scope="module")
def with_averages(tmp_path_factory) -> RunFolder:
    """An uninterrupted run with averages of two widths."""
    out = tmp_path_factory.mktemp("averages") / "whole"
    config = override(tiny(), {"train.posthoc": [0.05, 0.1], "train.posthoc_every": 3})
    return finished_run(config, out)


def test_averages_are_stored_beside_an_unchanged_run(with_averages, finished):
    found = snapshots(with_averages.averages)
    assert [(s.step, s.sigma_rel) for s in found] == [
        (step, width) for step in (3, 6, 9, 12) for width in (0.05, 0.1)
    ]
    a, b = (ck.load(f.checkpoints / ck.step_name(12)) for f in (finished, with_averages))
    assert all(torch.equal(a.ema[k], b.ema[k]) for k in a.ema)
    for width, average in b.averages.items():
        kept = ck.load_weights(found[-2 if width == "0.05" else -1].path).tensors
        assert all(torch.equal(average[k], kept[k]) for k in average)
    assert any(not torch.equal(b.averages["0.05"][k], b.averages["0.1"][k]) for k in b.ema)


def test_averages_resume_bit_exactly_and_later_ones_are_forgotten(
    with_averages, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    stop_at(monkeypatch, 7, signal.SIGTERM)
    assert main(command(out, **POSTHOC)) == 143
    monkeypatch.undo()
    stray = out / "averages/step-00000009-width-0.05.safetensors"
    stray.write_bytes(b"of a step that was lost")
    stray.with_name(f"{stray.name}.tmp").write_bytes(b"half")
    assert main(["train", "--out", str(out), "--device", "cpu", "--resume"]) == 0
    assert tree(out / "averages").keys() == tree(with_averages.averages).keys()
    for a, b in zip(snapshots(out / "averages"), snapshots(with_averages.averages), strict=True):
        one, other = ck.load_weights(a.path).tensors, ck.load_weights(b.path).tensors
        assert all(torch.equal(one[k], other[k]) for k in other)


def test_a_model_of_any_width(with_averages, tmp_path, capsys):
    stored = load_width(with_averages.path, 0.1)
    kept = ck.load(with_averages.checkpoints / ck.step_name(12)).averages["0.1"]
    assert all(torch.equal(v, kept[k]) for k, v in stored.model.state_dict().items())
    argv = ["sample", "--checkpoint", str(with_averages.path), "--num", "3", "--device", "cpu"]
    argv += ["--out", str(tmp_path / "samples"), "--sample.steps", "3", "--class", "0"]
    assert main([*argv, "--ema-width", "0.07"]) == 0
    assert "width 0.07 at step 12 from 8 of 8 snapshots of widths 0.05, 0.1" in (
        capsys.readouterr().err
    )
    for extra, words in (
        (["--ema-width", "0.5"], "sigma_rel=0.5"),
        (["--ema-width", "0.07", "--no-ema"], "exclude each other"),
    ):
        assert main([*argv, "--overwrite", *extra]) == 2
        assert words in error_line(capsys)


def test_a_run_without_averages_says_so(finished):
    with pytest.raises(ck.CheckpointError, match=r"averages: no averages stored"):
        load_width(finished.path, 0.07)


# --- several decays ---------------------------------------------------------------------------

DECAYS = {"train__ema": "0.5,0.9,0.999"}


@pytest.fixture(scope="module")
def with_decays(tmp_path_factory) -> RunFolder:
    """An uninterrupted run with averages of three decays."""
    out = tmp_path_factory.mktemp("decays") / "whole"
    assert main(command(out, **DECAYS)) == 0
    return RunFolder(out)


def test_every_decay_is_the_average_of_a_run_of_its_own(with_decays, finished, tmp_path):
    found = ck.load(with_decays.checkpoints / ck.step_name(12))
    assert list(found.decays) == ["0.9", "0.999"]
    alone = finished_run(tiny(train__ema="0.5"), tmp_path / "run")
    for average, folder in ((found.ema, alone), (found.decays["0.999"], finished)):
        expected = ck.load(folder.checkpoints / ck.step_name(12)).ema
        assert all(torch.equal(average[k], v) for k, v in expected.items())


def test_decays_resume_bit_exactly(with_decays, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stop_at(monkeypatch, 7, signal.SIGTERM)
    assert main(command(out, **DECAYS)) == 143
    monkeypatch.undo()
    assert main(["train", "--out", str(out), "--device", "cpu", "--resume"]) == 0
    one, other = (ck.load(p / "checkpoints" / ck.step_name(12)) for p in (with_decays.path, out))
    for decay, average in one.decays.items():
        assert all(torch.equal(v, other.decays[decay][k]) for k, v in average.items())


def test_a_decay_is_chosen_and_exported(with_decays, tmp_path, capsys):
    kept = ck.load(with_decays.best)
    for decay, expected in ((0.5, kept.ema), (0.9, kept.decays["0.9"])):
        state = load_run(with_decays.path, decay=decay).model.state_dict()
        assert all(torch.equal(state[k], v) for k, v in expected.items())
    exported = ck.load_weights(with_decays.weights_of("0.9")).tensors
    assert all(torch.equal(exported[k], v) for k, v in kept.decays["0.9"].items())
    argv = ["sample", "--checkpoint", str(with_decays.path), "--num", "2", "--device", "cpu"]
    argv += ["--sample.steps", "2", "--class", "0", "--out"]
    for decay in ("0.5", "0.9"):
        assert main([*argv, str(tmp_path / decay), "--ema-decay", decay]) == 0
        record = json.loads((tmp_path / decay / RECORD).read_text())
        assert (record["weights"], record["ema_decay"]) == ("ema", float(decay))
    capsys.readouterr()
    for extra, words in (
        (["--ema-decay", "0.99"], "no average of decay 0.99; stored are 0.5, 0.9, 0.999"),
        (["--ema-decay", "0.9", "--ema-width", "0.1"], "exclude each other"),
    ):
        assert main([*argv, str(tmp_path / "no"), *extra]) == 2
        assert words in error_line(capsys)
    argv[2] = str(with_decays.weights)
    assert main([*argv, str(tmp_path / "no"), "--ema-decay", "0.9"]) == 2
    assert "holds one average only; name a checkpoint" in error_line(capsys)


def test_overwrite_removes_exported_decays(with_decays, tmp_path):
    folder = RunFolder(Path(shutil.copytree(with_decays.path, tmp_path / "run")))
    mine = folder.path / "weights-ema-mine.safetensors"
    mine.write_text("mine")
    train.train_run(tiny(train__steps="2"), folder.path, overwrite=True, device="cpu")
    assert [p.name for p in folder.path.glob("weights-ema-*")] == [mine.name]


@pytest.mark.parametrize("name", ["likelihood", "evaluate", "edit", "compare"])
def test_every_command_takes_a_decay_or_a_width(
    with_decays, with_averages, tmp_path, capsys, name
):
    few = {
        "likelihood": ["--likelihood.method", "euler", "--likelihood.steps", "2", "--num", "2"],
        "evaluate": ["--num=20", "--features=pixels", "--resamples=0", "--metrics=kid"],
        "edit": ["--num=2", "--tolerance=0.1", f"--out={tmp_path / 'edited'}", "--overwrite"],
        "compare": ["--num=2", "--samplers=ddim", "--steps=2", "--tolerance=0.1"],
    }[name]
    common = [name, "--device", "cpu", *few, "--checkpoint"]
    assert main([*common, str(with_decays.path), "--ema-decay", "0.9"]) == 0
    assert main([*common, str(with_averages.path), "--ema-width", "0.07"]) == 0
    capsys.readouterr()
    assert main([*common, str(with_averages.path), "--ema-decay", "0.3"]) == 2
    assert "no average of decay 0.3; stored are 0.999" in error_line(capsys)


def test_info_says_what_is_stored(with_decays, with_averages, tmp_path, capsys):
    assert main(["info", str(with_decays.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["decays"] == [0.5, 0.9, 0.999]
    assert found["snapshots"] == found["widths"] == []
    model = ss.load(with_decays.path)
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert main(["info", str(with_averages.path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--ema-decay: 0.999 (by default)" in printed
    assert "8 snapshots of widths 0.05, 0.1 at 4 steps from 3 to 12" in printed
    assert main(["info", "--json", str(with_averages.path)]) == 0
    for low, high in json.loads(capsys.readouterr().out)["widths"]:
        for width in (low, high):
            note = load_width(with_averages.path, width).notes[-1]
            assert float(note.split()[-5].rstrip("%")) <= 2, note
    assert main(["info", str(with_decays.weights)]) == 0
    assert "a single average" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "nothing")]) == 2
    assert "no such file" in error_line(capsys)


def test_samples_that_are_drawn_have_their_weights(tmp_path, capsys):
    argv = ["evaluate", "--samples", str(tmp_path), "--ema-decay", "0.9"]
    assert main(argv) == 2
    assert "--ema-decay: the samples of --samples are drawn" in error_line(capsys)
