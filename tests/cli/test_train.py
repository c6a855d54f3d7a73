"""``scoresde train``: the run folder, stopping and resuming, and bad input."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import scoresde as ss
from scoresde.cli.main import main
from scoresde.config import Config, build_dataset, build_model, load_config, to_yaml
from scoresde.data import Dataset, Scaling, Split
from scoresde.runs import folder as folders
from scoresde.runs import train, train_setup
from scoresde.runs.folder import RunFolder
from scoresde.runs.load import load_run
from scoresde.runs.preview import draw, save_preview
from scoresde.runs.run import splits
from scoresde.training import checkpoint as ck
from scoresde.training import fit
from scoresde.training.batches import THREAD
from scoresde.training.precision import is_slow

TINY = {
    "seed": "1",
    "data.kind": "moons",
    "data.train": "200",
    "data.test": "20",
    "network.kind": "mlp",
    "network.width": "16",
    "network.depth": "1",
    "network.embedding": "8",
    "network.dropout": "0.3",
    "conditional": "true",
    "train.steps": "12",
    "train.holdout": "0.5",
    "train.batch": "16",
    "train.lr": "1e-2",
    "train.log_every": "3",
    "train.validate_every": "4",
    "train.sample_every": "6",
    "train.checkpoint_every": "4",
    "train.keep": "2",
}


def finished_run(config, out) -> RunFolder:
    """The folder of a training that came to its end."""
    assert train.train_run(config, out, device="cpu") == 0
    return RunFolder(out)


def tiny(**changes: str) -> Config:
    return load_config(None, TINY | {k.replace("__", "."): v for k, v in changes.items()})


def flags(**changes: str) -> list[str]:
    found = TINY | {k.replace("__", "."): v for k, v in changes.items()}
    return [part for key, value in found.items() for part in (f"--{key}", value)]


def command(out: Path, *extra: str, **changes: str) -> list[str]:
    return ["train", "--out", str(out), "--device", "cpu", *extra, *flags(**changes)]


def error_line(capsys) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("scoresde: error: ")
    return lines[0]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def copied(finished, tmp_path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(finished.path, tmp_path / "run")))


def taken_back(run: Path, copy: Path, step: int) -> Path:
    """A copy of a run as it was at the checkpoint of a step, killed before the next one."""
    shutil.copytree(run, copy)
    for path in ck.step_files(copy / "checkpoints"):
        if path.name > ck.step_name(step):
            path.unlink()
    assert ck.newest(copy / "checkpoints")[1].step == step
    return copy


def stop_at(monkeypatch, step: int, number: signal.Signals) -> None:
    """Have a signal arrive in the middle of training."""

    def interrupted(*args):
        for metrics in fit(*args):
            if metrics.step == step:
                signal.raise_signal(number)
            yield metrics

    monkeypatch.setattr(train_setup, "fit", interrupted)


# --- the folder of a run ----------------------------------------------------------------------


def test_a_run_leaves_its_files(finished):
    expected = {
        "config.yaml", "env.json", "metrics.jsonl", "log.txt", "loss.png",
        "loss-levels.png",
        "weights-ema.safetensors", "checkpoints/latest.json", "checkpoints/best.pt",
        "checkpoints/step-00000008.pt", "checkpoints/step-00000012.pt",
        "samples/step-00000006.png", "samples/step-00000012.png", ".lock",
    }  # fmt: skip
    assert set(tree(finished.path)) == expected


def test_the_stored_configuration_is_the_resolved_one(finished):
    assert load_config(finished.config) == tiny()


def test_the_environment_is_recorded(finished):
    found = json.loads(finished.env.read_text())
    assert found["packages"]["torch"] == torch.__version__
    assert found["device"] == "cpu"
    assert {"scoresde", "python", "git_commit", "command", "started"} <= found.keys()


def test_metrics_have_every_number(finished):
    lines = folders.records(finished)
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12]
    assert [line["step"] for line in lines if "held_out" in line] == [4, 8, 12]
    for line in lines:
        assert line["images"] == 16 * line["step"]
        keys = ("loss", "lr", "grad_norm", "images_per_second", "flops_per_second", "memory")
        assert all(line[key] > 0 for key in keys)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_the_best_step_is_kept_and_exported(finished):
    held_out = {r["step"]: r["held_out"] for r in folders.records(finished) if "held_out" in r}
    best = min(held_out, key=held_out.get)
    kept, weights = ck.load(finished.best), ck.load_weights(finished.weights)
    assert (kept.step, kept.best) == (best, ck.Best(best, held_out[best]))
    assert weights.step == best
    assert all(torch.equal(weights.tensors[k], v) for k, v in kept.ema.items())


def test_without_held_out_data_the_last_step_is_exported(tmp_path):
    config = tiny(train__holdout="0", train__keep_best="false", train__steps="3")
    folder = finished_run(config, tmp_path / "run")
    assert ck.load_weights(folder.weights).step == 3
    assert not folder.best.exists()
    assert all("held_out" not in record for record in folders.records(folder))


def test_what_was_trained_loads(finished):
    loaded = load_run(finished.path)
    assert loaded.config == tiny()
    assert loaded.data.classes == ("upper", "lower")


# --- stopping and going on --------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_rest_is_bit_exact(finished, tmp_path, monkeypatch, number, code):
    out = tmp_path / "run"
    before = signal.getsignal(number)
    stop_at(monkeypatch, 7, number)
    assert main(command(out)) == code
    assert signal.getsignal(number) is before
    assert ck.step_files(out / "checkpoints")[0].name == "step-00000007.pt"
    assert f"{number.name} at step 7" in (out / "log.txt").read_text()
    monkeypatch.undo()
    assert main(["train", "--out", str(out), "--device", "cpu", "--resume"]) == 0

    whole, resumed = (ck.load(p / "checkpoints" / ck.step_name(12)) for p in (finished.path, out))
    assert whole.best == resumed.best
    for a, b in ((whole.model, resumed.model), (whole.ema, resumed.ema)):
        assert all(torch.equal(a[k], b[k]) for k in a)
    for k, state in whole.optimizer["state"].items():
        assert all(torch.equal(v, resumed.optimizer["state"][k][n]) for n, v in state.items())
    pictures = [(p / "samples/step-00000012.png").read_bytes() for p in (finished.path, out)]
    assert pictures[0] == pictures[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"train__precision": "fp16", "train__accumulate": "4"},
        pytest.param({"train__compile": "true"}, marks=pytest.mark.slow),
    ],
)
def test_every_mode_resumes_bit_exactly(tmp_path, changes):
    whole = tmp_path / "whole"
    assert main(command(whole, **changes)) == 0
    out = taken_back(whole, tmp_path / "run", 8)
    assert main(["train", "--out", str(out), "--device", "cpu", "--resume"]) == 0
    a, b = (ck.load(p / "checkpoints" / ck.step_name(12)) for p in (whole, out))
    assert a.scale == b.scale
    for one, other in ((a.model, b.model), (a.ema, b.ema)):
        assert all(torch.equal(one[k], other[k]) for k in one)


def test_skipped_updates_are_counted_in_the_records(tmp_path, monkeypatch):
    def overflowing(state, *args):
        weight = next(state.model.parameters())
        weight.register_hook(lambda grad: grad * math.inf if state.step < 5 else grad)
        return fit(state, *args)

    monkeypatch.setattr(train_setup, "fit", overflowing)
    out = finished_run(tiny(train__precision="fp16"), tmp_path / "run")
    lines = folders.records(out)
    assert [(line["step"], line["skipped"]) for line in lines][:3] == [(3, 3), (4, 4), (6, 5)]
    assert all(math.isfinite(line["grad_norm"]) for line in lines)
    assert lines[2]["grad_norm"] > 0


def test_resume_goes_back_to_the_newest_good_checkpoint_and_says_so(copied, finished):
    newest = copied.checkpoints / ck.step_name(12)
    newest.write_bytes(newest.read_bytes()[:1000])
    (copied.checkpoints / "step-00000016.pt.tmp").write_bytes(b"half")
    with copied.metrics.open("a") as file:
        file.write('{"step": 13, "lo')
    train.train_run(tiny(), copied.path, resume=True, device="cpu")
    log = copied.log.read_text()
    assert f"passed over {newest}: truncated or damaged" in log
    assert f"resumed from {copied.checkpoints / ck.step_name(8)}" in log
    assert not list(copied.checkpoints.glob("*.tmp"))
    assert [line["step"] for line in folders.records(copied)] == [3, 4, 6, 8, 9, 12]
    a, b = (ck.load(f.checkpoints / ck.step_name(12)) for f in (finished, copied))
    assert all(torch.equal(a.model[k], b.model[k]) for k in a.model)


def test_resume_can_train_longer_and_report_otherwise(copied):
    config = tiny(train__steps="14", train__log_every="7", sample__steps="5")
    train.train_run(config, copied.path, resume=True, device="cpu")
    assert ck.newest(copied.checkpoints)[1].step == 14
    assert load_config(copied.config) == config


def test_a_lost_best_checkpoint_is_replaced(copied):
    copied.best.write_bytes(b"lost")
    train.train_run(tiny(train__steps="16"), copied.path, resume=True, device="cpu")
    assert f"passed over {copied.best}" in copied.log.read_text()
    assert ck.load(copied.best).step == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train__ema": "0.5"}, "train.ema=[0.5] was [0.999]"),
        ({"seed": "2"}, "seed=2 was 1"),
        ({"network__width": "32"}, "network.width=32 was 16"),
        ({"sde.kind": "cosine"}, "sde.kind=cosine was vp"),
    ],
)
def test_another_configuration_is_not_resumed(copied, capsys, change, words):
    before = tree(copied.path)
    assert main(command(copied.path, "--resume", **change)) == 2
    line = error_line(capsys)
    assert words in line
    assert str(copied.checkpoints) in line
    assert tree(copied.path) == before


# --- data that change -------------------------------------------------------------------------


def test_data_that_have_changed_are_not_resumed(tmp_path, capsys):
    rng = np.random.default_rng(0)
    x, file = rng.normal(size=(60, 2)).astype(np.float32), tmp_path / "points.npz"
    np.savez(file, x=x)
    plain = {k: v for k, v in TINY.items() if k not in ("data.train", "data.test")}
    plain |= {"data.kind": "arrays", "data.path": str(file), "conditional": "false"}
    out = RunFolder(tmp_path / "run")
    train.train_run(load_config(None, plain), out.path, device="cpu")
    before = tree(out.path)
    changed = x.copy()
    changed[:, 0] += 1e-3
    np.savez(file, x=changed)
    again = ["train", "--out", str(out.path), "--device", "cpu", "--resume", "--train.steps"]
    assert main([*again, "14"]) == 2
    line = error_line(capsys)
    assert f"the examples of points in {file} have changed" in line
    assert tree(out.path) == before
    # The checkpoints of older versions do not say.
    for path in ck.step_files(out.checkpoints):
        ck.save(path, replace(ck.load(path), contents=""))
    (out.checkpoints / "latest.json").unlink()
    assert main([*again, "14"]) == 0
    # The same values elsewhere are the same data.
    moved = tmp_path / "elsewhere" / "points.npz"
    moved.parent.mkdir()
    np.savez(moved, x=changed)
    assert main([*again, "16", "--data.path", str(moved)]) == 0


# --- folders in use ---------------------------------------------------------------------------


def test_a_folder_in_use_is_refused(copied, capsys):
    before = tree(copied.path)
    assert main(command(copied.path)) == 2
    line = error_line(capsys)
    assert all(word in line for word in (str(copied.path), "--resume", "--overwrite"))
    assert tree(copied.path) == before


def test_nothing_to_resume(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "missing", tmp_path / "empty"):
        assert main(command(out, "--resume")) == 2
        assert "no run to resume" in error_line(capsys)
    assert not (tmp_path / "missing").exists()


def test_a_finished_run_without_checkpoints_cannot_be_resumed(copied, capsys):
    shutil.rmtree(copied.checkpoints)
    before = tree(copied.path)
    assert main(command(copied.path, "--resume")) == 2
    assert "no checkpoint is left of this finished run" in error_line(capsys)
    assert tree(copied.path) == before


def test_a_run_killed_before_its_first_checkpoint_starts_anew(finished, tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    folders.write_start(folder, to_yaml(tiny()), folders.environment("cpu"))
    folder.metrics.write_text('{"step": 3, "loss": 1.0}\n')
    for name in ("sample", "likelihood"):
        extra = ["--out", str(tmp_path / "samples")] if name == "sample" else []
        assert main([name, "--checkpoint", str(folder.path), *extra]) == 2
        assert "no checkpoint yet; train it first" in error_line(capsys)
    assert main(["train", "--out", str(folder.path), "--device", "cpu", "--resume"]) == 0
    assert "no checkpoint yet, starting at step 0" in folder.log.read_text()
    assert [line["step"] for line in folders.records(folder)] == [3, 4, 6, 8, 9, 12]
    a, b = (ck.load(f.checkpoints / ck.step_name(12)) for f in (finished, folder))
    assert all(torch.equal(a.model[k], b.model[k]) for k in a.model)


def test_resume_without_its_configuration_takes_that_of_the_checkpoint(copied):
    copied.config.unlink()
    argv = ["train", "--out", str(copied.path), "--device", "cpu", "--resume"]
    assert main([*argv, "--train.steps", "13"]) == 0
    assert load_config(copied.config) == tiny(train__steps="13")


def test_resume_without_configuration_and_checkpoint_asks_for_one(copied, capsys):
    copied.config.unlink()
    shutil.rmtree(copied.checkpoints)
    assert main(["train", "--out", str(copied.path), "--resume"]) == 2
    assert "config.yaml: missing, and no checkpoint has it" in error_line(capsys)


def test_a_run_is_not_resumed_to_an_earlier_step(copied, capsys):
    before = tree(copied.path)
    assert main(command(copied.path, "--resume", train__steps="6")) == 2
    assert "--train.steps: 6, but the run is at step 12" in error_line(capsys)
    assert tree(copied.path) == before


def test_the_remedies_of_a_bad_loss_may_change_and_are_noted(copied):
    changes = {"train__lr": "1e-3", "train__clip": "0.5", "train__steps": "13"}
    assert main(command(copied.path, "--resume", **changes)) == 0
    log = copied.log.read_text()
    for words in ("train.lr=0.001 was 0.01", "train.clip=0.5 was 1.0"):
        assert words in log
    assert folders.records(copied)[-1]["lr"] == pytest.approx(1e-3)


# --- one training at a time -------------------------------------------------------------------

HOLD = """
import sys, time
from scoresde.runs.folder import RunFolder, locked
from pathlib import Path
with locked(RunFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_where_another_process_trains_is_refused(copied, capsys):
    argv = [sys.executable, "-c", HOLD, str(copied.path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        before = tree(copied.path)
        for flag in ("--resume", "--overwrite"):
            assert main(command(copied.path, flag)) == 2
            assert "another process trains there" in error_line(capsys)
            assert tree(copied.path) == before
        other.kill()
    with folders.locked(copied):
        pass  # the lock went with the process


def test_resume_and_overwrite_exclude_each_other(copied, capsys):
    assert main(command(copied.path, "--resume", "--overwrite")) == 2
    assert "--resume and --overwrite" in error_line(capsys)


def test_overwrite_removes_a_runs_own_files_only(copied):
    mine = ["notes.txt", "checkpoints/mine.pt", "checkpoints/step-1.pt", "samples/cat.png"]
    for name in mine:
        (copied.path / name).write_text("mine")
    (copied.path / "sub").mkdir()
    (copied.path / "sub/config.yaml").write_text("mine")
    train.train_run(tiny(train__steps="2"), copied.path, overwrite=True, device="cpu")
    assert all((copied.path / name).read_text() == "mine" for name in [*mine, "sub/config.yaml"])
    assert [p.name for p in ck.step_files(copied.checkpoints)] == ["step-00000002.pt"]
    assert [line["step"] for line in folders.records(copied)] == [2]
    assert sorted(p.name for p in copied.samples.iterdir()) == ["cat.png", "step-00000002.png"]


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_bad_input_loses_nothing(copied, capsys, flag):
    before = tree(copied.path)
    assert main(command(copied.path, flag, **{"data.kind": "checkerboard"})) == 2
    assert "conditional=true needs labels" in error_line(capsys)
    assert tree(copied.path) == before


@pytest.mark.parametrize("name", ["config.yaml", "env.json", "checkpoints/step-00000100.pt"])
@pytest.mark.parametrize("extra", [[], ["--overwrite"]])
def test_files_that_no_run_wrote_are_not_touched(tmp_path, capsys, name, extra):
    file = tmp_path / "project" / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert main(command(tmp_path / "project", *extra)) == 2
    assert name in error_line(capsys)
    assert tree(tmp_path / "project") == {name: b"{}"}


def test_a_run_killed_while_it_wrote_its_first_file_is_started_again(tmp_path):
    (tmp_path / "env.json.tmp").write_text('{"scores')
    assert not folders.claim(tmp_path).is_run()
    folders.write_start(RunFolder(tmp_path), "seed: 0\n", {"scoresde": "0"})
    assert [p.name for p in sorted(tmp_path.iterdir()) if p.is_file()] == [
        "config.yaml",
        "env.json",
    ]


def test_a_file_is_no_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(command(tmp_path / "file")) == 2
    assert "a file; give a folder" in error_line(capsys)


def test_a_half_written_record_is_passed_over(tmp_path):
    folder = RunFolder(tmp_path)
    assert folders.records(folder) == []
    folder.metrics.write_text('{"step": 1}\n[2]\n{"loss": 3}\n{"step": 4}\n{"step": 5, "lo')
    assert [record["step"] for record in folders.records(folder)] == [1, 4]
    folders.rewind(folder, 3)
    assert folder.metrics.read_text() == '{"step": 1}\n'


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_that_of_the_tracked_source(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "folder.py").write_text("")
    assert folders.git_commit(tmp_path) is None
    subprocess.run([*git, "add", "folder.py"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert folders.git_commit(tmp_path) == head.stdout.strip()


# --- failures on the way ----------------------------------------------------------------------


def test_a_loss_that_blows_up_stops_with_the_last_checkpoint(tmp_path, capsys):
    config = {"train__lr": "1e30", "train__clip": "null", "train__checkpoint_every": "1"}
    out = tmp_path / "run"
    assert main(command(out, **config)) == 1
    line = error_line(capsys)
    assert all(word in line for word in ("step ", "loss", "gradient norm", "learning rate 1e+30"))
    log = (out / "log.txt").read_text().splitlines()
    assert line == f"scoresde: {log[-1]}".replace("resume=True", "--resume")
    assert list(out.glob("checkpoints/*.tmp")) == []
    for path in ck.step_files(out / "checkpoints"):
        ck.load(path)  # nothing that is not finite was saved


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, capsys, monkeypatch):
    written = torch.save

    def fail(entries, path):
        if entries["step"] == 8:
            raise OSError(28, "No space left on device")
        written(entries, path)

    monkeypatch.setattr(torch, "save", fail)
    assert main(command(tmp_path / "run", train__keep="1")) == 1
    line = error_line(capsys)
    assert "step 8: cannot save" in line
    assert "No space left on device; free some space" in line
    assert "step-00000004.pt, go on with --resume" in line
    assert ck.newest(tmp_path / "run/checkpoints")[1].step == 4


def test_a_file_cut_off_by_the_system_is_said_to_be_one(tmp_path, capsys, monkeypatch):
    def fail(entries, path):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    assert main(command(tmp_path / "run")) == 1
    assert "step 4: cannot save" in (line := error_line(capsys))
    assert "is the disk full?" in line


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
def test_a_limit_on_the_size_of_files_leaves_the_last_checkpoint(tmp_path, capsys):
    import resource

    out, wide = tmp_path / "run", {"network.width": "64"}
    assert main(command(out, train__steps="8", **wide)) == 0
    size = max(path.stat().st_size for path in ck.step_files(out / "checkpoints"))
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
    try:
        code = main(["train", "--out", str(out), "--device=cpu", "--resume", "--train.steps=12"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    line = error_line(capsys)
    assert "step 12: cannot save" in line
    assert "step-00000008.pt, go on with --resume" in line
    assert ck.newest(out / "checkpoints")[1].step == 8
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "samples"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, capsys, monkeypatch, name):
    refused = tmp_path / "run" / name
    write_start = folders.write_start

    def then_in_the_way(folder, *args):
        write_start(folder, *args)
        refused.mkdir() if name != "samples" else refused.write_text("")

    monkeypatch.setattr(folders, "write_start", then_in_the_way)
    code = main(command(tmp_path / "run", train__checkpoint_every="1"))
    line = error_line(capsys)
    assert str(refused) in line
    if name == "log.txt":
        assert code == 2
    else:
        assert code == 1
        assert "with --resume" in line


def test_training_goes_on_when_nobody_reads(tmp_path):
    start = "import sys; from scoresde.cli.main import main; raise SystemExit(main(sys.argv[1:]))"
    short = {"train__steps": "4", "train__log_every": "1"}
    argv = [sys.executable, "-c", start, *command(tmp_path / "run", **short)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as training:
        training.stdout.close()
        assert training.stderr.read() == b""
    assert training.returncode == 0
    assert ck.newest(tmp_path / "run/checkpoints")[1].step == 4
    assert "step 4/4" in (tmp_path / "run/log.txt").read_text()


def test_weights_that_overflow_are_not_saved(tmp_path, capsys, monkeypatch):
    def overflowing(state, *args):
        for metrics in fit(state, *args):
            if metrics.step == 8:
                next(iter(state.ema.parameters())).fill_(float("inf"))
            yield metrics

    monkeypatch.setattr(train_setup, "fit", overflowing)
    unchecked = {"train__holdout": "0", "train__keep_best": "false"}
    assert main(command(tmp_path / "run", **unchecked)) == 1
    assert "NaN or infinity" in error_line(capsys)
    assert ck.newest(tmp_path / "run/checkpoints")[1].step == 4


def test_a_held_out_loss_that_is_not_finite_stops(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_setup, "held_out_loss", lambda *args, **kwargs: float("nan"))
    assert main(command(tmp_path / "run")) == 1
    assert "step 4: held-out loss nan" in error_line(capsys)
    assert not (tmp_path / "run/checkpoints/best.pt").exists()


# --- what the user sees -----------------------------------------------------------------------


def test_dry_run_writes_nothing(tmp_path, capsys):
    assert main(command(tmp_path / "run", "--dry-run")) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    assert load_config(tmp_path / "printed.yaml") == tiny()
    model = build_model(tiny(), build_dataset(tiny().data))
    count = sum(p.numel() for p in model.parameters())
    assert f"# {count:,} parameters" in printed
    assert "# batch 16: 1 x 16 on each of 1 process" in printed
    assert re.search(r"# [\d.]+ kFLOP per example, forward and backward", printed)
    assert not (tmp_path / "run").exists()


def test_too_little_data_to_hold_out_names_the_option(tmp_path, capsys):
    assert main(command(tmp_path / "run", **{"data.train": "1"}, train__holdout="0.1")) == 2
    line = error_line(capsys)
    assert "train.holdout: cannot hold out 0.1 of 1 examples; give more examples" in line


@pytest.mark.parametrize("flag", ["--out=", "--config=", "--data.path="])
def test_empty_paths_are_refused(tmp_path, capsys, flag):
    assert main(command(tmp_path / "run", flag)) == 2
    assert f"{flag[:-1]}: empty" in error_line(capsys)


def test_out_is_needed(capsys):
    assert main(["train", *flags()]) == 2
    assert "--out is missing" in error_line(capsys)


def test_plain_lines_when_piped(tmp_path, capsys):
    assert main(command(tmp_path / "run", train__steps="3")) == 0
    printed = capsys.readouterr().out
    assert re.search(r"step 3/3  0:00 left  loss \d\.\d{4}  held-out \d", printed)
    assert printed == (tmp_path / "run/log.txt").read_text()


def test_a_bar_on_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    assert main(command(tmp_path / "run", train__steps="3")) == 0
    printed = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert re.search(r"step 3/3 .* left +loss \d\.\d{4}  held-out \d", printed)
    assert "images/s" not in printed
    assert "images/s" in (tmp_path / "run/log.txt").read_text()


# --- previews ---------------------------------------------------------------------------------


def test_previews_follow_the_weights_alone(tmp_path, finished):
    model, data = ss.load(finished.path), build_dataset(tiny().data)
    for name in ("a.png", "b.png"):
        torch.manual_seed(len(name))
        torch.rand(3)
        assert save_preview(tmp_path / name, model, data, 2)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    few, more = (draw(model, n, (2,), {}) for n in (3, 5))
    torch.testing.assert_close(few, more[:3])


@pytest.mark.parametrize("conditional", ["true", "false"])
def test_previews_of_pictures(tmp_path, conditional):
    from PIL import Image

    config = load_config(
        None,
        {"network.width": "8", "network.multipliers": ["1"], "network.blocks": "1"}
        | {"network.attention": [], "conditional": conditional},
    )
    data = build_dataset(config.data)
    model = build_model(config, data).eval()
    assert save_preview(tmp_path / "a.png", model, data, 10 if conditional == "true" else None)
    with Image.open(tmp_path / "a.png") as picture:
        columns, rows = ((side - 4) // 52 for side in picture.size)
    assert (columns, rows) == (8, 10 if conditional == "true" else 8)


def test_other_shapes_have_no_preview(tmp_path):
    config = tiny(conditional="false")
    data = build_dataset(config.data)
    wide = type(data)(
        "wide",
        type(data.train)(data.train.x.repeat(1, 2)),
        type(data.test)(data.test.x.repeat(1, 2)),
        data.scaling,
    )
    assert not save_preview(tmp_path / "a.png", build_model(config, wide), wide, None)
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(("capability", "lines"), [("AVX2", 1), ("AVX512", 0)])
def test_half_precision_that_a_cpu_emulates_is_said_to_be_slow(capability, lines, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert is_slow("bf16", torch.device("cpu")) == bool(lines)
    assert not is_slow("float32", torch.device("cpu"))
    assert not is_slow("bf16", torch.device("meta"))


def test_a_network_that_cannot_be_compiled_is_a_line(monkeypatch, tmp_path, capsys):
    def failing(graph, inputs):
        raise OSError("no such compiler")

    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net: whole(net, backend=failing))
    flags = [f"--{key}={value}" for key, value in TINY.items()]
    flags = [flag for flag in flags if "conditional" not in flag]
    assert main(["train", *flags, "--train.compile", "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "train.compile: compilation failed" in said
    assert "no such compiler" in said
    assert "set it to false" in said


def test_stopping_with_batches_drawn_ahead_leaves_no_thread(finished, monkeypatch, tmp_path):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 5, signal.SIGINT)
        assert main(command(out, train__prefetch="3")) == 130
    assert not [t for t in threading.enumerate() if t.name.startswith(THREAD)]
    train.train_run(tiny(), out, resume=True, device="cpu")  # it may change on the way
    same = [ck.newest(folder / "checkpoints")[1].model for folder in (out, finished.path)]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[1])


def test_held_out_examples_of_a_set_sorted_by_class_have_all_classes():
    """As folders of pictures are: the first 2048 of the held-out 5000 would lack half of them."""
    label = torch.arange(10).repeat_interleave(5000)
    train = Split(torch.zeros(len(label), 1, 1, 1, dtype=torch.uint8), label)
    test = Split(train.x[:10], torch.arange(10))
    data = Dataset("sorted", train, test, Scaling(256), tuple("0123456789"))
    _, held_out = splits(data.train, 0.1, 0, train_setup.HELD_OUT_EVALUATIONS)
    assert held_out is not None
    assert len(held_out) == 2048
    assert (held_out.label.bincount(minlength=10) - 204.8).abs().max() < 5 * 204.8**0.5
