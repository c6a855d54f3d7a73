"""Faults 15 to 19 and 26: signals, full disks, folders in use, bad losses, odd sizes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde.cli.main import main
from scoresde.runs.folder import RunFolder, records
from scoresde.training import checkpoint as ck
from scoresde.training import loop
from tests.cli.test_train import command, tree

LONG = {
    "train__steps": "200",
    "train__log_every": "1",
    "train__validate_every": "200",
    "train__sample_every": "200",
    "train__checkpoint_every": "200",
}


def resumed(out: Path, *flags: str) -> int:
    return main(["train", "--out", str(out), "--device", "cpu", "--resume", *flags])


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """200 steps that nobody disturbed."""
    out = tmp_path_factory.mktemp("long") / "run"
    assert main(command(out, **LONG)) == 0
    return out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_fault_15_a_signal_leaves_a_checkpoint_and_the_rest_is_exact(long, tmp_path, number, code):
    out = tmp_path / "run"
    late = []
    before = signal.signal(number, lambda *_: late.append("the training had ended"))

    def send() -> None:
        while len(records(RunFolder(out))) < 5:
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    found = main(command(out, **LONG))
    sender.join()
    signal.signal(number, before)
    assert (found, late) == (code, [])
    step = ck.newest(out / "checkpoints")[1].step
    assert 5 <= step < 200
    assert f"{number.name} at step {step}: checkpoint saved; resume the run to go on" in (
        (out / "log.txt").read_text()
    )
    assert resumed(out) == 0
    a, b = (ck.newest(run / "checkpoints")[1] for run in (long, out))
    assert (a.step, a.best) == (b.step, b.best)
    for one, other in ((a.model, b.model), (a.ema, b.ema)):
        assert all(torch.equal(one[k], other[k]) for k in one)
    for k, state in a.optimizer["state"].items():
        assert all(torch.equal(v, b.optimizer["state"][k][n]) for n, v in state.items())


# --- 16 ---------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(copied, forked):
    """Resume the run with no room for a checkpoint; the newest one stays, and no half files."""
    resource = pytest.importorskip("resource")
    newest = copied.checkpoints / ck.step_name(12)
    whole, most = newest.read_bytes(), newest.stat().st_size - 500

    def run(*options: str) -> str:
        def limited() -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            return resumed(copied.path, *options)

        code, errors = forked(limited)
        assert code == 1
        assert f"the last checkpoint is {newest}, go on with --resume" in errors
        assert newest.read_bytes() == whole
        assert not list(copied.path.rglob("*.tmp"))
        return errors

    return run


def test_fault_16_a_full_disk_leaves_the_old_checkpoint_and_no_rest(copied, full_disk):
    errors = full_disk("--train.steps", "20")
    assert len(errors.splitlines()) == 1
    assert "step 16: cannot save" in errors
    assert resumed(copied.path, "--train.steps", "20") == 0
    assert ck.newest(copied.checkpoints)[1].step == 20


def test_fault_16_a_run_told_to_goes_on_without_the_checkpoints_that_fail(copied, full_disk):
    # At the end there must be one.
    errors = full_disk("--train.steps", "24", "--train.on_failed_save", "go_on")
    assert "step 24: cannot save" in errors
    log = (copied.path / "log.txt").read_text()
    for step in (16, 20):
        assert f"step {step}: cannot save" in log
    assert log.count("going on all the same") >= 2


@pytest.mark.parametrize(
    ("argv", "most"),
    [
        (["sample", "--num", "500"], 1000),
        (["likelihood", "--device", "cpu"], 100),
        (["evaluate", "--num", "20"], 100),
        (["edit", "--num", "8"], 100),
    ],
)
def test_fault_16_results_on_a_full_disk(points, tmp_path, forked, argv, most):
    resource = pytest.importorskip("resource")
    out = tmp_path / "out"
    reading, writing = os.pipe()  # a file of errors would be limited too

    def limited() -> int:
        sys.stderr = os.fdopen(writing, "w", buffering=1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        return main([*argv, "--checkpoint", str(points), "--out", str(out)])

    code, _ = forked(limited)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        (line,) = [line for line in pipe if line.startswith("scoresde: ")]
    assert code == 1
    assert line.startswith(f"scoresde: error: {out}")
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".tmp", ".new", ".json")]


@pytest.mark.parametrize("number", [28, 30, 5])  # no space, read-only, input/output
def test_fault_16_what_the_disk_says_is_passed_on(copied, refused, monkeypatch, number):
    newest = copied.checkpoints / ck.step_name(12)
    whole, replace = newest.read_bytes(), os.replace

    def fail(source, target):
        if Path(target).suffix == ".pt":
            raise OSError(number, os.strerror(number))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    argv = ["train", "--out", copied.path, "--device", "cpu", "--resume", "--train.steps", "20"]
    line = refused(*argv, code=1)
    assert os.strerror(number) in line
    assert f"the last checkpoint is {newest}" in line
    assert newest.read_bytes() == whole
    assert not list(copied.path.rglob("*.tmp"))


def test_fault_16_a_place_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = refused(*command(tmp_path / "file" / "run"))
    assert str(tmp_path / "file" / "run") in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_fault_16_a_read_only_folder(refused, tmp_path):
    tmp_path.chmod(0o500)
    assert "choose a place you may write to" in refused(*command(tmp_path / "run"))


# --- 17 to 19 ---------------------------------------------------------------------------------


def test_fault_17_a_folder_in_use(copied, refused):
    before = tree(copied.path)
    line = refused(*command(copied.path))
    assert all(word in line for word in (str(copied.path), "--resume", "--overwrite"))
    assert tree(copied.path) == before


def test_fault_17_a_folder_where_another_trains(copied, refused, forked):
    from scoresde.runs.folder import locked

    with locked(copied):
        for flag in ("--resume", "--overwrite"):
            code, errors = forked(lambda flag=flag: main(command(copied.path, flag)))
            assert code == 2
            assert "another process trains there" in errors


def test_fault_18_a_loss_that_is_not_finite(refused, tmp_path):
    out = tmp_path / "run"
    # Without a bound on the gradient; and nothing but the loss stops it.
    wild = {"train__lr": "1e30", "train__clip": "null", "train__checkpoint_every": "1"}
    wild |= {"train__holdout": "0", "train__keep_best": "false"}
    line = refused(*command(out, **wild), code=1)
    for word in ("step ", "loss ", "gradient norm ", "learning rate 1e+30", "with --resume"):
        assert word in line
    kept = ck.step_files(out / "checkpoints")
    assert kept
    assert str(kept[0]) in line
    for file in kept:
        ck.load(file)  # which refuses what is not finite
    assert not list(out.rglob("*.tmp"))


def test_fault_18_a_poisoned_batch(refused, tmp_path):
    """Finite numbers, whose squares are not: the loss of a batch with one of them is infinite."""
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    x[40] = 3e38
    np.save(tmp_path / "x.npy", x)
    out, changed = tmp_path / "run", {"data.kind": "arrays", "data.path": str(tmp_path / "x.npy")}
    changed |= {"data.standardise": "false", "conditional": "false", "train.holdout": "0"}
    changed |= {"train.label_dropout": "0"}
    changed |= {"train.keep_best": "false", "train.checkpoint_every": "1", "train.batch": "4"}
    argv = command(out, **changed)
    argv = [part for i, part in enumerate(argv) if not _of_moons(argv, i)]
    line = refused(*argv, code=1)
    assert "loss inf" in line or "loss nan" in line
    assert "look at the data" in line


def _of_moons(argv: list[str], i: int) -> bool:
    """Whether a part is a flag of the moons, or its value."""
    flags = ("--data.train", "--data.test")
    return argv[i] in flags or (i > 0 and argv[i - 1] in flags)


FP16 = {"train__precision": "fp16", "parameterization.kind": "x0", "train__log_every": "1"}
FP16 |= {"train__holdout": "0", "train__keep_best": "false"}


def large(folder: Path, **changes: str) -> list[str]:
    """A training on numbers so large that scaled gradients overflow in half precision."""
    x = 300 * np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    np.save(folder / "x.npy", x)
    data = {"data.kind": "arrays", "data.path": str(folder / "x.npy"), "conditional": "false"}
    data |= {"data.standardise": "false"}
    argv = command(folder / "run", **(FP16 | data | changes))
    return [part for i, part in enumerate(argv) if not _of_moons(argv, i)]


def test_fault_19_updates_that_overflow_are_skipped_and_counted(tmp_path, capsys):
    assert main(large(tmp_path)) == 0
    found = [record["skipped"] for record in records(RunFolder(tmp_path / "run"))]
    assert 1 <= found[0] <= found[-1] < 12
    assert found == sorted(found)
    scale = ck.newest(tmp_path / "run" / "checkpoints")[1].scale
    assert scale.skipped == found[-1]
    assert scale.value == 2.0 ** (16 - found[-1])


def test_fault_19_too_many_in_a_row_stop_it(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(loop, "MOST_SKIPPED", 2)
    line = refused(*large(tmp_path), code=1)
    assert "step 2: " in line
    assert "2 overflows in a row; take precision=bf16" in line


# --- 26 ---------------------------------------------------------------------------------------


def test_fault_26_a_batch_larger_than_the_data_wraps_around(tmp_path, capsys):
    small = {"data.train": "8", "train__steps": "3", "train__batch": "32"}
    small |= {"train__holdout": "0", "train__keep_best": "false"}
    assert main(command(tmp_path / "run", **small)) == 0
    assert records(RunFolder(tmp_path / "run"))[-1]["images"] == 96


def test_fault_26_a_batch_that_processes_cannot_share(tmp_path, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    line = refused(*command(tmp_path / "run", "--dry-run"))
    assert "batch=16 cannot be split into accumulate=1 equal parts on each of 3 processes" in line


@pytest.mark.parametrize("name", ["train__steps", "train__batch", "train__log_every"])
def test_fault_26_nothing_to_do(tmp_path, refused, name):
    line = refused(*command(tmp_path / "run", **{name: "0"}))
    flag = name.replace("__", ".").replace("_", "-")
    assert f"--{flag}: must be greater than or equal to 1, got '0'" in line
    assert not (tmp_path / "run").exists()


def test_records_nested_without_end_are_no_records(copied, refused, capsys):
    endless = "[" * 100_000
    (copied.checkpoints / "latest.json").write_text(endless)
    with copied.metrics.open("a") as file:
        file.write(endless + "\n")
    assert resumed(copied.path, "--train.steps", "13") == 0
    assert [r["step"] for r in records(copied)][-1] == 13
    copied.env.write_text(endless)
    assert "no run to resume" in refused("train", "--out", copied.path, "--resume")
