"""Training in two processes: the run of one, and failures of one that end both."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scoresde.cli.main import main
from scoresde.runs import folder as folders
from scoresde.runs.folder import RunFolder
from scoresde.training import checkpoint as ck
from tests.cli.test_train import command

SMOOTH = {"network__dropout": "0"}
SECONDS = 200


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def started(*commands: list[str], folders: list[Path] | None = None) -> list[subprocess.Popen]:
    """A process for each command line, in a folder of its own, as torchrun would start them."""
    port = str(free_port())
    every = {"WORLD_SIZE": str(len(commands)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    every |= {"OMP_NUM_THREADS": "1"}  # as torchrun sets it
    found = []
    for rank, argv in enumerate(commands):
        env = os.environ | every | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        line = [sys.executable, "-m", "scoresde", *argv]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        where = None if folders is None else folders[rank]
        found.append(subprocess.Popen(line, env=env, text=True, cwd=where, **pipes))
    return found


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and errors of each; they are killed when it takes too long."""
    late = threading.Timer(SECONDS, lambda: [process.kill() for process in processes])
    late.start()
    texts = [process.communicate() for process in processes]
    late.cancel()
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def waited_for(what, processes: list[subprocess.Popen]) -> None:
    """Wait until something is there while all processes go on; else end them and say why."""
    end = time.monotonic() + SECONDS
    while not what():
        if time.monotonic() > end or any(process.poll() is not None for process in processes):
            for process in processes:
                process.kill()
            pytest.fail(str(ended(processes)))
        time.sleep(0.02)


def errors(found: list[tuple[int, str, str]]) -> list[str]:
    lines = [line for _, _, err in found for line in err.splitlines()]
    return [line for line in lines if line.startswith("scoresde: error")]


def last(out: Path) -> ck.Checkpoint:
    return ck.newest(out / "checkpoints")[1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert main(command(out, **SMOOTH)) == 0
    return out


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(alone, tmp_path):
    out = tmp_path / "run"
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv += ["-m", "scoresde", *command(out, **SMOOTH)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 12/12") == 1
    one, two = last(alone), last(out)
    # Sums in another order. A step of Adam is lr=1e-2 times a quotient, whose rounding is relative
    # to a gradient that may nearly cancel.
    for a, b in ((one.model, two.model), (one.ema, two.ema)):
        for k in a:
            torch.testing.assert_close(a[k], b[k], rtol=0, atol=1e-5)
    lines = [folders.records(RunFolder(path)) for path in (alone, out)]
    for a, b in zip(*lines, strict=True):
        assert (a["step"], a["images"]) == (b["step"], b["images"])
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert a["loss_by_lam"] == [pytest.approx(pair, abs=1e-5) for pair in b["loss_by_lam"]]
    assert sum(1 for path in out.rglob("*") if path.is_file()) == sum(
        1 for path in alone.rglob("*") if path.is_file()
    )


@pytest.mark.slow
def test_two_processes_resume_bit_exactly_after_a_signal_to_one(tmp_path):
    # With dropout. Long enough for the signal to arrive on the way.
    whole, out = tmp_path / "whole", tmp_path / "run"
    long = {"train__steps": "80", "train__log_every": "5"}
    long |= {f"train__{name}_every": "40" for name in ("sample", "validate", "checkpoint")}
    argv = command(whole, **long)
    assert [code for code, _, _ in ended(started(argv, argv))] == [0, 0]
    argv = command(out, **long)
    processes = started(argv, argv)
    waited_for(lambda: folders.records(RunFolder(out)), processes)
    processes[1].terminate()
    assert [code for code, _, _ in ended(processes)] == [143, 143]
    assert 5 <= last(out).step < 80
    again = ["train", "--out", str(out), "--device", "cpu", "--resume"]
    assert [code for code, _, _ in ended(started(again, again))] == [0, 0]
    one, two = last(whole), last(out)
    for a, b in ((one.model, two.model), (one.ema, two.ema)):
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_two_processes_train_the_autoencoder_of_one(tmp_path):
    # With a channel a group, biases before it have no gradient but rounding, which Adam enlarges.
    flags = ["--autoencoder.widths", "8,8", "--autoencoder.groups", "2", "--train.batch", "8"]
    flags += ["--train.steps", "5", "--train.log-every", "2", "--device", "cpu"]
    outs = [tmp_path / "one", tmp_path / "two"]
    one, two = (["train-autoencoder", "--out", str(out), *flags] for out in outs)
    assert main(one) == 0
    assert [code for code, _, _ in ended(started(two, two))] == [0, 0]
    kind = ck.KINDS["autoencoder"]
    a, b = (ck.newest(out / "checkpoints", kind)[1] for out in outs)
    for name in a.ema:
        torch.testing.assert_close(a.ema[name], b.ema[name], rtol=0, atol=1e-5)
    lines = [folders.records(RunFolder(out)) for out in outs]
    for one_line, other in zip(*lines, strict=True):
        for name in ("loss", "loss_l1", "loss_kl"):
            assert one_line[name] == pytest.approx(other[name], rel=1e-4)


SHARDED = {"train__shard": "true", "train__posthoc": "0.1", "train__ema": "0.9,0.999"}


def averages(checkpoint: ck.Checkpoint) -> list[dict[str, torch.Tensor]]:
    found = [checkpoint.model, checkpoint.ema]
    return [*found, *checkpoint.decays.values(), *checkpoint.averages.values()]


@pytest.mark.slow
def test_split_weights_make_the_run_of_whole_ones_and_go_on_as_them(tmp_path):
    alone, out = tmp_path / "alone", tmp_path / "run"
    whole = SHARDED | SMOOTH | {"train__shard": "false", "train__posthoc_every": "4"}
    assert main(command(alone, **whole)) == 0
    split = whole | {"train__shard": "true"}
    argv = command(out, **split, train__steps="8")
    assert [code for code, _, _ in ended(started(argv, argv))] == [0, 0]
    assert last(out).step == 8
    expected = ck.load(alone / "checkpoints" / ck.step_name(8))
    for a, b in zip(averages(expected), averages(last(out)), strict=True):
        for k in a:
            torch.testing.assert_close(a[k], b[k], rtol=0, atol=1e-5)
    # One process goes on with whole weights, and two from there with split ones.
    again = ["train", "--out", str(out), "--device", "cpu", "--resume", "--train.steps"]
    assert main([*again, "10", "--train.no-shard"]) == 0
    argv = [*again, "12", "--train.shard"]
    assert [code for code, _, _ in ended(started(argv, argv))] == [0, 0]
    for a, b in zip(averages(last(alone)), averages(last(out)), strict=True):
        for k in a:
            torch.testing.assert_close(a[k], b[k], rtol=0, atol=1e-5)
    names = [{p.name for p in (path / "averages").iterdir()} for path in (alone, out)]
    assert names[0] <= names[1]
    assert (out / "samples/step-00000006.png").exists()


@pytest.mark.slow
def test_split_weights_resume_bit_exactly(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    argv = command(whole, **SHARDED)
    assert [code for code, _, _ in ended(started(argv, argv))] == [0, 0]
    argv = command(out, **SHARDED, train__steps="7")
    assert [code for code, _, _ in ended(started(argv, argv))] == [0, 0]
    again = ["train", "--out", str(out), "--device", "cpu", "--resume", "--train.steps", "12"]
    assert [code for code, _, _ in ended(started(again, again))] == [0, 0]
    for a, b in zip(averages(last(whole)), averages(last(out)), strict=True):
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_one_process_has_nothing_to_split(tmp_path, capsys):
    for extra in ([], ["--dry-run"]):
        assert main(command(tmp_path / "run", "--train.shard", *extra)) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "train.shard=true splits the weights between processes" in lines[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({}, {"train__lr": "0.1"}, "train.lr=0.1 in process 1, but 0.01 in process 0"),
        ({"train__batch": "15"}, {"train__batch": "15"}, "batch=15 cannot be split"),
        ({"train__shard": "true"}, {}, "train.shard=False in process 1, but True in process 0"),
    ],
)
def test_what_processes_cannot_share_is_refused_once(tmp_path, first, second, words):
    out = tmp_path / "run"
    found = ended(started(command(out, **first), command(out, **second)))
    assert [code for code, _, _ in found] == [2, 1]
    assert len(errors(found)) == 1
    assert words in errors(found)[0]
    assert not out.exists()


@pytest.mark.slow
def test_processes_that_do_not_all_resume_are_refused_once(alone):
    found = ended(started(command(alone, "--resume", **SMOOTH), command(alone, **SMOOTH)))
    assert [code for code, _, _ in found] == [2, 1]
    assert len(errors(found)) == 1
    assert "resume=False in process 1, but True in process 0" in errors(found)[0]
    assert last(alone).step == 12


@pytest.mark.slow
def test_processes_with_other_data_are_refused_once(tmp_path):
    places = [tmp_path / name for name in ("first", "second")]
    for number, place in enumerate(places):
        place.mkdir()
        x = np.zeros((40, 2), np.float32)
        x[-1, -1] = number
        np.savez(place / "points.npz", x=x)
    data = {"data.kind": "arrays", "data.path": "points.npz", "conditional": "false"}
    argv = command(tmp_path / "run", **data)
    for unknown in ("--data.train", "--data.test"):
        del argv[argv.index(unknown) : argv.index(unknown) + 2]
    found = ended(started(argv, argv, folders=places))
    assert [code for code, _, _ in found] == [2, 1]
    assert len(errors(found)) == 1
    assert "sha256 of the examples=" in errors(found)[0]
    assert "in process 1" in errors(found)[0]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_other(tmp_path):
    out = tmp_path / "run"
    argv = command(out, train__steps="100000")
    processes = started(argv, argv)
    waited_for(lambda: list(out.glob("checkpoints/step-*.pt")), processes)
    processes[1].kill()
    found = ended(processes)
    assert [code for code, _, _ in found] == [1, -9]
    assert "another process has ended" in errors(found)[0]
    assert last(out).step >= 4


def test_a_dry_run_says_how_processes_split_the_batch(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(command(tmp_path / "run", "--dry-run", train__accumulate="2")) == 0
    assert "# batch 16: 2 x 2 on each of 4 processes" in capsys.readouterr().out
    assert main(command(tmp_path / "run", "--dry-run", train__batch="18")) == 2
    assert "on each of 4 processes" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert main(command(tmp_path / "run", "--dry-run")) == 0
    assert capsys.readouterr().out == ""
