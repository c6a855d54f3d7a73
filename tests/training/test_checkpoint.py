"""Checkpoints: exact round trips, atomic saves, and every damaged file named."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scoresde import atomic
from scoresde.data import Dataset, Scaling, moons
from scoresde.training import checkpoint as ck
from scoresde.training import fit, safe_files
from scoresde.training.checkpoint import Best, Checkpoint, CheckpointError, DataDescription


@pytest.fixture
def saved(plan, split, scaling, fresh) -> Checkpoint:
    """The checkpoint of a small run after two steps, its tensors its own."""
    state = fresh()
    for _ in fit(state, replace(plan, steps=2), split, scaling):
        pass
    data = DataDescription("toy", (1, 2, 2), scaling, ("a", "b", "ö"))
    config = {"sde": {"kind": "vp", "beta_min": 0.1}, "seed": 3, "none": None, "text": "é"}
    return Checkpoint(
        config, data, 2, state.model.state_dict(), state.ema.state_dict(),
        state.optimizer.state_dict(), Best(1, 0.25),
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path, saved: Checkpoint) -> Path:
    ck.save(tmp_path / "good.pt", saved)
    return tmp_path / "good.pt"


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert (a.config, a.data, a.step, a.best) == (b.config, b.data, b.step, b.best)
    for left, right in ((a.model, b.model), (a.ema, b.ema)):
        assert list(left) == list(right)
        assert all(torch.equal(left[k], right[k]) for k in left)
    assert a.optimizer["param_groups"] == b.optimizer["param_groups"]
    assert list(a.optimizer["state"]) == list(b.optimizer["state"])
    for number, state in a.optimizer["state"].items():
        assert all(torch.equal(v, b.optimizer["state"][number][k]) for k, v in state.items())


def refused(path: Path, *words: str, load=ck.load) -> None:
    """Loading fails with one line that names the file and holds the words."""
    with pytest.raises(CheckpointError) as info:
        load(path)
    message = str(info.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_round_trip_is_exact(path, saved):
    assert_same(ck.load(path), saved)
    plain = replace(
        saved, best=None, data=replace(saved.data, classes=None, scaling=Scaling(None))
    )
    ck.save(path, plain)
    assert_same(ck.load(path), plain)


def test_half_precision_and_integers_survive(path, saved):
    odd = {"h": torch.randn(3).half(), "b": torch.randn(3).bfloat16(), "n": torch.tensor(7)}
    ck.save(path, replace(saved, model=odd, ema={k: v.clone() for k, v in odd.items()}))
    found = ck.load(path).model
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in odd.items())


def test_description_of_a_data_set():
    data: Dataset = moons(5, 5)
    text = ck.describe(data).to_json()
    assert DataDescription.from_json(text) == ck.describe(data)
    assert DataDescription.from_json(text).shape == (2,)
    x = data.scaling.encode(data.train.x).double()
    assert ck.describe(data).std == pytest.approx(float((x - x.mean()).square().mean().sqrt()))
    older = {name: value for name, value in json.loads(text).items() if name != "std"}
    assert DataDescription.from_json(json.dumps(older)) == replace(ck.describe(data), std=None)


# --- atomic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["torch.save", "os.replace", "os.fsync"])
def test_a_failed_save_leaves_the_old_file(path, saved, stage, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    module, name = {"torch": torch, "os": os}[stage.split(".")[0]], stage.split(".")[1]
    monkeypatch.setattr(module, name, fail)
    with pytest.raises(OSError, match="No space"):
        ck.save(path, replace(saved, step=9))
    monkeypatch.undo()
    assert ck.load(path).step == 2
    assert [p.name for p in path.parent.iterdir()] == ["good.pt"]


def test_a_kill_between_write_and_rename_leaves_the_old_file(path, tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from scoresde import atomic;"
        "os.replace = lambda a, b: os.kill(os.getpid(), signal.SIGKILL);"
        "atomic.atomic_write(Path(sys.argv[1]), lambda p: p.write_bytes(b'half'))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=120)
    assert done.returncode == -9
    assert path.with_name("good.pt.tmp").read_bytes() == b"half"
    assert ck.load(path).step == 2


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_nan_is_saved(path, saved, part, value):
    if part == "optimizer":
        next(iter(saved.optimizer["state"].values()))["exp_avg"].fill_(value)
    else:
        next(iter(getattr(saved, part).values())).fill_(value)
    with pytest.raises(CheckpointError, match="not written, NaN or infinity"):
        ck.save(path, replace(saved, step=9))
    assert ck.load(path).step == 2


# --- damage -----------------------------------------------------------------------------------


def test_missing_folder_empty_and_foreign_files(tmp_path):
    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path, "a folder")
    file = tmp_path / "bad.pt"
    for content, words in (
        (b"", "empty"),
        (b"<html><body>404 Not Found</body></html>", "a web page, not a checkpoint"),
        (b"PK\x03\x04 but no more", "truncated or damaged"),
        (pickle.dumps({"kind": ck.KIND}), "not a checkpoint"),
        (os.urandom(5000), "not a checkpoint"),
    ):
        file.write_bytes(content)
        refused(file, words)


def test_another_zip_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("a.txt", "hello")
    refused(tmp_path / "other.zip", "not a checkpoint")


@pytest.mark.parametrize("content", [{"weights": torch.zeros(2)}, [1, 2], torch.zeros(3)])
def test_a_torch_file_of_someone_else(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", "not a scoresde-checkpoint")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.95, 0.999])
def test_truncated(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, "truncated or damaged")


def test_no_flipped_byte_passes_unnoticed(path, saved):
    # Zip padding and dates carry nothing; every other byte must be missed when it changes.
    whole, caught = path.read_bytes(), 0
    sha256 = atomic.digest(path)
    positions = range(11, len(whole), max(1, len(whole) // 150))
    for position in positions:
        changed = bytearray(whole)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        try:
            assert_same(ck.load(path), saved)
        except CheckpointError:
            caught += 1
        with pytest.raises(CheckpointError):
            ck.load(path, sha256=sha256)
    assert caught > len(positions) / 2


def test_a_tensor_marked_as_a_folder_is_refused(path):
    # One bit, which no CRC covers and for which torch returns memory it never filled.
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(b"PK\x01\x02") + 38] ^= 0x10
    path.write_bytes(whole)
    refused(path, "marked a folder")


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_a_payload_is_refused_and_never_run(tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(marker)))  # the payload works when pickle runs it
    marker.unlink()
    for zipped in (True, False):
        file = tmp_path / f"evil-{zipped}.pt"
        torch.save(
            {"kind": ck.KIND, "version": 1, "model": Payload(marker)},
            file,
            _use_new_zipfile_serialization=zipped,
        )
        refused(file, "nothing was run" if zipped else "not a checkpoint")
        assert not marker.exists()


def edited(path: Path, **changes) -> None:
    """Rewrite the file with other entries."""
    entries = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in (entries | changes).items() if v is not ...}, path)


def test_versions(path):
    edited(path, version=safe_files.FORMAT + 1)
    refused(path, "format version 2", "upgrade")
    edited(path, version="one")
    refused(path, "format version 'one'")


@pytest.mark.parametrize("entry", ["config", "data", "step", "model", "ema", "optimizer", "best"])
@pytest.mark.parametrize("value", [..., "{", -1])
def test_wrong_entries(path, entry, value):
    if entry == "step" and value == -1:
        return
    edited(path, **{entry: value})
    refused(path, "damaged")


def test_nan_weights_are_refused_on_load(path, saved):
    bad = {k: v.clone() for k, v in saved.ema.items()}
    bad["net.head.bias"][0] = float("nan")
    edited(path, ema=bad)
    refused(path, "NaN or infinity in net.head.bias")


def test_tensors_of_another_network(saved, fresh):
    model = fresh().model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    name = "net.stem.weight"
    for change, words in (
        ({"net.new": torch.zeros(1)}, "1 unexpected: net.new"),
        ({name: ...}, f"1 missing: {name}"),
        ({name: torch.zeros(2, 3)}, f"1 misshaped: {name} (2, 3) for (16, 4)"),
        (dict.fromkeys(saved.model, ...), ", ..."),
    ):
        given = {k: v for k, v in (saved.model | change).items() if v is not ...}
        with pytest.raises(CheckpointError) as info:
            ck.load_tensors(model, given, "run/file.pt")
        assert words in str(info.value)
        assert str(info.value).startswith("run/file.pt: ")
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


# --- rotation ---------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_rotation_keeps_the_newest_and_points_to_the_last(tmp_path, saved):
    for step in (5, 10, 15, 20):
        path = ck.save_step(tmp_path, replace(saved, step=step), keep=2)
    assert names(tmp_path) == ["latest.json", "step-00000015.pt", "step-00000020.pt"]
    record = json.loads((tmp_path / "latest.json").read_text())
    assert record == {"name": path.name, "sha256": atomic.digest(path), "step": 20}
    assert ck.newest(tmp_path)[1].step == 20


def test_rotation_leaves_other_files(tmp_path, saved):
    for name in ("step-mine.pt", "best.pt", "notes.txt", "step-1.pt"):
        (tmp_path / name).write_text("mine")
    for step in (5, 10):
        ck.save_step(tmp_path, replace(saved, step=step), keep=1)
    assert {"step-mine.pt", "best.pt", "notes.txt", "step-1.pt"} < set(names(tmp_path))
    assert [p.name for p in ck.step_files(tmp_path)] == ["step-00000010.pt"]


def test_old_checkpoints_go_only_after_the_new_one_is_there(tmp_path, saved, monkeypatch):
    ck.save_step(tmp_path, replace(saved, step=5), keep=1)

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        ck.save_step(tmp_path, replace(saved, step=10), keep=1)
    monkeypatch.undo()
    assert ck.newest(tmp_path)[1].step == 5


def test_fallback_to_the_newest_good_one_says_so(tmp_path, saved):
    for step in (5, 10, 15):
        ck.save_step(tmp_path, replace(saved, step=step), keep=3)
    flipped = bytearray((tmp_path / ck.step_name(15)).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / ck.step_name(15)).write_bytes(flipped)
    (tmp_path / ck.step_name(10)).write_bytes(b"")
    (tmp_path / "step-00000020.pt.tmp").write_bytes(b"half")
    path, found, passed_over = ck.newest(tmp_path)
    assert (path.name, found.step) == (ck.step_name(5), 5)
    assert [line.partition(":")[0] for line in passed_over] == [
        str(tmp_path / ck.step_name(15)),
        str(tmp_path / ck.step_name(10)),
    ]
    # Going on from step 5 replaces what could not be read.
    ck.save_step(tmp_path, replace(saved, step=8), keep=3)
    assert [p.name for p in ck.step_files(tmp_path)] == [ck.step_name(8), ck.step_name(5)]


@pytest.mark.parametrize("latest", [None, "", "[1]", '{"name": "step-00000099.pt"}', "\x00"])
def test_files_rule_over_a_bad_record(tmp_path, saved, latest):
    ck.save_step(tmp_path, replace(saved, step=5), keep=3)
    if latest is None:
        (tmp_path / "latest.json").unlink()
    else:
        (tmp_path / "latest.json").write_text(latest)
    assert ck.newest(tmp_path)[1].step == 5


def test_nothing_usable(tmp_path):
    refused(tmp_path, "no checkpoint yet; train it first", load=ck.newest)
    refused(tmp_path / "missing", "no such folder", load=ck.newest)
    (tmp_path / ck.step_name(3)).write_bytes(b"")
    refused(tmp_path, "none of 1", "empty", load=ck.newest)


def test_keep_must_be_positive(tmp_path, saved):
    with pytest.raises(ValueError, match="keep=0"):
        ck.save_step(tmp_path, saved, keep=0)


# --- exported weights -------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path, saved) -> Path:
    ck.export_weights(tmp_path / "w.safetensors", saved)
    return tmp_path / "w.safetensors"


def test_exported_weights_describe_themselves(exported, saved):
    found = ck.load_weights(exported)
    assert (found.config, found.data, found.step) == (saved.config, saved.data, saved.step)
    assert found.tensors.keys() == saved.ema.keys()
    assert all(torch.equal(v, saved.ema[k]) for k, v in found.tensors.items())


def test_damaged_weights_are_refused(exported):
    whole = exported.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 150)):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        exported.write_bytes(changed)
        refused(exported, load=ck.load_weights)
    for content, words in (
        (b"", "empty"),
        (whole[:-5], "damaged or not safetensors"),
        (whole[:4], "damaged or not safetensors"),
        (b"<html>", "damaged or not safetensors"),
    ):
        exported.write_bytes(content)
        refused(exported, words, load=ck.load_weights)
    exported.unlink()
    refused(exported, "no such file", load=ck.load_weights)


def test_other_safetensors_and_nan_are_refused(tmp_path, saved):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", "not a scoresde-weights", load=ck.load_weights)
    saved.ema["net.head.bias"][0] = float("inf")
    with pytest.raises(CheckpointError, match="not written"):
        ck.export_weights(tmp_path / "w.safetensors", saved)
    assert not (tmp_path / "w.safetensors").exists()


def test_newer_weights_are_named(exported, monkeypatch):
    monkeypatch.setattr(ck, "FORMAT", safe_files.FORMAT + 1)
    saved = ck.load_weights(exported)
    description = saved.data
    ck.export_weights(exported, Checkpoint(saved.config, description, 1, {}, saved.tensors, {}))
    refused(exported, "format version 2", "upgrade", load=ck.load_weights)


def test_a_checkpoint_is_an_ordinary_torch_archive(path):
    # Tensors and text, readable without this package.
    entries = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
    assert entries["kind"] == ck.KIND
    assert json.loads(entries["config"])["seed"] == 3
