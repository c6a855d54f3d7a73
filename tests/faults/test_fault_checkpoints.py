"""Faults 7 to 14: checkpoints that are missing, damaged, foreign, or cut off by a kill."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
import torch

from scoresde.cli.main import main
from scoresde.runs.folder import records
from scoresde.training import checkpoint as ck
from scoresde.training import safe_files
from tests.cli.test_train import command, tree

RESUME = ("--device", "cpu", "--resume")


@pytest.fixture
def refusal(refused, tmp_path):
    """The line that ``sample`` and ``likelihood`` refuse a checkpoint with; it names the file."""

    def of(file: Path) -> str:
        out = tmp_path / "samples"
        lines = [
            refused("sample", "--checkpoint", file, "--out", out, "--num", "2"),
            refused("likelihood", "--checkpoint", file, "--num", "2"),
        ]
        assert lines[0] == lines[1]
        assert str(file) in lines[0]
        assert not out.exists()
        return lines[0]

    return of


@pytest.fixture
def model(points, tmp_path) -> Path:
    return Path(shutil.copy(points, tmp_path / "model.pt"))


def rewritten(file: Path, **changes: object) -> Path:
    """The checkpoint with other entries."""
    torch.save(torch.load(file, weights_only=True) | changes, file)
    return file


def same_end(one: Path, other: Path) -> None:
    """Two runs ended with the same weights and averages, bit for bit."""
    a, b = (ck.load(run / "checkpoints" / ck.step_name(12)) for run in (one, other))
    for x, y in ((a.model, b.model), (a.ema, b.ema)):
        assert all(torch.equal(x[k], y[k]) for k in x)


def test_fault_07_nothing_to_load_and_nothing_to_resume(refusal, refused, tmp_path):
    assert "no such file" in refusal(tmp_path / "none.pt")
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "missing", tmp_path / "empty"):
        assert f"{out}: no run to resume" in refused(*command(out, "--resume"))
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]
    assert tree(tmp_path / "empty") == {}


@pytest.mark.parametrize("content", ["empty", "cut", "short", "html", "zip", "noise"])
def test_fault_08_what_is_no_checkpoint(refusal, model, content):
    whole, other = model.read_bytes(), io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a.txt", "hello")
    changed = {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "short": whole[:3],
        "html": b"<html><body>404 Not Found</body></html>",
        "zip": other.getvalue(),
        "noise": os.urandom(3000),
    }[content]
    model.write_bytes(changed)
    line = refusal(model)
    assert "damaged" in line or "not a checkpoint" in line


def test_fault_08_resume_falls_back_to_the_good_one_before_and_says_so(copied, finished, capsys):
    newest = copied.checkpoints / ck.step_name(12)
    newest.write_bytes(newest.read_bytes()[:1000])
    assert main(["train", "--out", str(copied.path), *RESUME]) == 0
    printed = capsys.readouterr().out
    assert f"passed over {newest}: truncated or damaged" in printed
    assert f"resumed from {copied.checkpoints / ck.step_name(8)}" in printed
    same_end(copied.path, finished.path)


def test_fault_09_a_flipped_byte(refusal, model):
    whole = model.read_bytes()
    with zipfile.ZipFile(model) as archive:
        held = [archive.read(name) for name in archive.namelist()]
    held.sort(key=len)
    for content in (held[-1], held[-2], held[-5]):
        changed = bytearray(whole)
        changed[whole.index(content) + len(content) // 2] ^= 0x10
        model.write_bytes(changed)
        assert "damaged (wrong CRC in " in refusal(model)


def test_fault_09_in_a_run_not_even_a_byte_of_padding(copied):
    newest = copied.checkpoints / ck.step_name(12)
    whole = newest.read_bytes()
    for position in range(0, len(whole), len(whole) // 20):
        changed = bytearray(whole)
        changed[position] ^= 1
        newest.write_bytes(changed)
        path, _, passed_over = ck.newest(copied.checkpoints)
        assert path.name == ck.step_name(8)
        assert "damaged" in passed_over[0]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_fault_10_a_payload_is_never_run(refusal, model, tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(marker)))  # it works where pickle runs it
    marker.unlink()
    assert "nothing was run" in refusal(rewritten(model, extra=Payload(marker)))
    model.write_bytes(pickle.dumps(Payload(marker)))
    assert "not a checkpoint" in refusal(model)
    for name in ("w.safetensors", "latest.json"):
        (tmp_path / name).write_bytes(pickle.dumps(Payload(marker)))
    assert "damaged or not safetensors" in refusal(tmp_path / "w.safetensors")
    assert not marker.exists()


def test_fault_11_tensors_of_another_architecture(refusal, model):
    ema = torch.load(model, weights_only=True)["ema"]
    first, *others = [name for name in ema if ema[name].ndim == 2]
    del ema[others[0]]
    line = refusal(rewritten(model, ema=ema | {first: torch.zeros(3, 5), "new": torch.zeros(1)}))
    assert f"1 missing: {others[0]}" in line
    assert "1 unexpected: new" in line
    assert f"1 misshaped: {first} (3, 5) for (8, " in line


def test_fault_12_a_newer_format_says_which_is_known(refusal, model):
    newer = safe_files.FORMAT + 1
    assert (
        f"format version {newer}, but {safe_files.FORMAT} is the newest known; upgrade"
        in refusal(rewritten(model, version=newer))
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_fault_13_weights_that_are_not_finite(refusal, model, value):
    ema = torch.load(model, weights_only=True)["ema"]
    name = list(ema)[-1]
    ema[name].view(-1)[0] = value
    assert f"NaN or infinity in {name}" in refusal(rewritten(model, ema=ema))


def test_fault_14_a_kill_between_write_and_rename(finished, forked, tmp_path):
    out = tmp_path / "run"

    def killed() -> int:
        replace = os.replace

        def then_die(source, target):
            if Path(target).name == ck.step_name(8):
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = then_die
        return main(command(out))

    assert forked(killed)[0] == -signal.SIGKILL
    assert (out / "checkpoints" / f"{ck.step_name(8)}.tmp").exists()
    assert ck.newest(out / "checkpoints")[1].step == 4
    code, errors = forked(lambda: main(["train", "--out", str(out), *RESUME]))
    assert (code, errors) == (0, "")
    assert not list(out.rglob("*.tmp"))
    assert [record["step"] for record in records(finished)] == [
        record["step"] for record in records(type(finished)(out))
    ]
    same_end(out, finished.path)


# Beside the table ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(2**40),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
    ],
    ids=["endless view", "sparse", "complex"],
)
def test_tensors_that_cannot_be_checked_are_refused(refusal, model, tensor):
    ema = torch.load(model, weights_only=True)["ema"]
    line = refusal(rewritten(model, ema=ema | {"net.stem.weight": tensor}))
    assert "damaged" in line or "not a checkpoint" in line or "refused" in line


def test_a_packed_checkpoint_is_refused_as_it_may_grow(refusal, model):
    with zipfile.ZipFile(model) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(model, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
        archive.writestr("archive/bomb", bytes(50_000_000))
    assert model.stat().st_size < 200_000
    assert "packed entries" in refusal(model)


@pytest.mark.parametrize("entry", ["optimizer", "scale", "averages"])
@pytest.mark.parametrize("value", [3, {"state": 3}, {"value": "x"}, {"state": {0: 1}}])
def test_entries_of_other_types_are_damage(model, entry, value):
    rewritten(model, **{entry: value})
    if (entry, value) == ("optimizer", {"value": "x"}):
        ck.load(model)  # an optimiser of no state
        return
    with pytest.raises(ck.CheckpointError, match="damaged"):
        ck.load(model)
