"""TensorBoard scalars of a run: those of its records, each once after a resume too."""

from __future__ import annotations

import signal
import sys
import warnings
from pathlib import Path

import pytest

from scoresde.cli.main import main
from scoresde.runs import folder as folders
from scoresde.runs import scalars
from scoresde.runs.folder import RunFolder
from tests.cli.test_train import command, error_line, stop_at, tree

ON = {"train__tensorboard": "true"}


@pytest.fixture
def installed():
    """Skip without TensorBoard, whose own imports warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch.utils.tensorboard")
        yield


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags}


def test_the_numbers_of_a_record():
    record = {"step": 3, "loss": 0.5, "images": 7, "loss_by_lam": [(-1.25, 2.0), (0.5, 1.0)]}
    assert scalars.scalars(record) == {
        "loss": 0.5, "images": 7.0, "loss_by_lam/-1.25": 2.0, "loss_by_lam/+0.50": 1.0,
    }  # fmt: skip


def test_without_tensorboard_the_extra_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(command(tmp_path / "run", **ON)) == 2
    assert "pip install 'scoresde[tensorboard]'" in error_line(capsys)
    assert not (tmp_path / "run").exists()


def test_what_is_purged_and_written(tmp_path, monkeypatch):
    """With a writer that only notes what it is asked."""
    asked = []

    class Writer:
        def __init__(self, folder, purge_step):
            asked.append((Path(folder).name, purge_step))

        def add_scalar(self, tag, value, step):
            asked.append((tag, value, step))

        def flush(self):
            asked.append("flush")

        def close(self):
            asked.append("close")

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    for step, purged in ((0, None), (8, 9)):
        asked.clear()
        with scalars.writing_scalars(tmp_path / "tensorboard", step) as add:
            add({"step": 9, "loss": 0.5})
        assert asked == [("tensorboard", purged), ("loss", 0.5, 9), "flush", "close"]


def test_scalars_are_the_records_once_each(installed, tmp_path, monkeypatch):
    out = RunFolder(tmp_path / "run")
    stop_at(monkeypatch, 7, signal.SIGTERM)
    assert main(command(out.path, **ON)) == 143
    monkeypatch.undo()
    # A checkpoint is lost, and with it the steps since the one before.
    (out.checkpoints / "step-00000007.pt").write_bytes(b"lost")
    assert main(["train", "--out", str(out.path), "--device", "cpu", "--resume"]) == 0
    found = read(out.tensorboard)
    records = folders.records(out)
    for tag in ("loss", "lr", "grad_norm", "images_per_second", "held_out"):
        expected = [(r["step"], r[tag]) for r in records if tag in r]
        assert [step for step, _ in found[tag]] == [step for step, _ in expected]
        for (_, value), (_, number) in zip(found[tag], expected, strict=True):
            assert value == pytest.approx(number, rel=1e-6)
    assert any(tag.startswith("loss_by_lam/") for tag in found)
    mine = out.tensorboard / "mine.txt"
    mine.write_text("mine")
    assert main(command(out.path, "--overwrite", train__steps="2")) == 0
    assert tree(out.tensorboard) == {"mine.txt": b"mine"}
