"""Fault 28: several processes, one of which fails: all end in time, the reason said once."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scoresde.cli.main import main
from scoresde.training import checkpoint as ck
from scoresde.training import loop
from tests.cli.test_train import command

SECONDS = 120
SMOOTH = {"network__dropout": "0"}
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def taken_port() -> socket.socket:
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    found.listen()
    return found


def free_port() -> int:
    with taken_port() as found:
        return int(found.getsockname()[1])


def team(
    folder: Path, port: int, *actions: Callable[[], int], world: int | None = None
) -> list[int]:
    """Start a process for each action, as torchrun would, each with a file for its errors."""
    found = []
    for rank, action in enumerate(actions):
        child = os.fork()
        if child == 0:
            code = 70
            try:
                sys.stdout = io.StringIO()
                sys.stderr = (folder / f"errors-{rank}.txt").open("w", buffering=1)
                os.dup2(sys.stderr.fileno(), 2)
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                os.environ |= {"WORLD_SIZE": str(world or len(actions)), "MASTER_PORT": str(port)}
                os.environ["MASTER_ADDR"] = "127.0.0.1"
                code = action()
            finally:
                os._exit(code)
        found.append(child)
    return found


def ended(children: list[int]) -> list[int]:
    """The exit codes; fails where a process is left after so many seconds."""
    codes: dict[int, int] = {}
    end = time.monotonic() + SECONDS
    while len(codes) < len(children) and time.monotonic() < end:
        for child in children:
            if child not in codes and (found := os.waitpid(child, os.WNOHANG)) != (0, 0):
                codes[child] = os.waitstatus_to_exitcode(found[1])
        time.sleep(0.01)
    late = [child for child in children if child not in codes]
    for child in late:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not late, f"{len(late)} processes went on for {SECONDS} s"
    return [codes[child] for child in children]


def errors(folder: Path, n: int = 2) -> list[str]:
    lines = [(folder / f"errors-{rank}.txt").read_text().splitlines() for rank in range(n)]
    return [line for found in lines for line in found if line.startswith("scoresde: error: ")]


def training(out: Path, **changes: str) -> Callable[[], int]:
    return lambda: main(command(out, **(SMOOTH | changes)))


def test_fault_28_different_configurations(tmp_path):
    out = tmp_path / "run"
    actions = (training(out), training(out, train__lr="0.1"))
    assert ended(team(tmp_path, free_port(), *actions)) == [2, 1]
    (line,) = errors(tmp_path)
    assert "train.lr=0.1 in process 1, but 0.01 in process 0" in line
    assert not out.exists()


def test_fault_28_one_raises(tmp_path):
    out = tmp_path / "run"

    def raising() -> int:
        backward = loop._backward

        def fail(state, *rest):
            if state.step == 6:
                raise RuntimeError("no memory is left")
            return backward(state, *rest)

        loop._backward = fail
        return training(out)()

    assert ended(team(tmp_path, free_port(), training(out), raising)) == [1, 1]
    first, other = sorted(errors(tmp_path), key=lambda line: "another process" in line)
    assert "no memory is left" in first
    assert "no memory" not in other
    assert ck.newest(out / "checkpoints")[1].step == 4


def test_fault_28_one_is_killed(tmp_path):
    out = tmp_path / "run"
    children = team(tmp_path, free_port(), *[training(out, train__steps="100000")] * 2)
    end = time.monotonic() + SECONDS
    while not list(out.glob("checkpoints/step-*.pt")) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(children[1], signal.SIGKILL)
    assert ended(children) == [1, -signal.SIGKILL]
    (line,) = errors(tmp_path)
    assert "another process has ended" in line
    assert ck.newest(out / "checkpoints")[1].step >= 4


def test_fault_28_the_port_is_taken(tmp_path):
    """The first process, which listens there; torchrun ends the others (below)."""
    out = tmp_path / "run"
    with taken_port() as taken:
        port = taken.getsockname()[1]
        assert ended(team(tmp_path, port, training(out), world=2)) == [1]
    (line,) = errors(tmp_path, 1)
    assert str(port) in line
    assert "already in use" in line
    assert not out.exists()


@pytest.mark.slow
def test_fault_28_torchrun_ends_all_where_one_fails(tmp_path):
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    argv = command(tmp_path / "run", train__batch="15")
    for taken in (False, True):
        with taken_port() as port:
            place = ["--master-port", str(port.getsockname()[1])] if taken else ["--standalone"]
            done = subprocess.run(
                [*run, *place, "-m", "scoresde", *argv],
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        assert done.returncode != 0
        said = [line for line in done.stderr.splitlines() if line.startswith("scoresde: error: ")]
        assert len(said) == (0 if taken else 1), done.stderr
        assert taken or "batch=15 cannot be split" in said[0]
    assert not (tmp_path / "run").exists()
