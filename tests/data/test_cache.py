"""Decoded pictures on disk: the same as in memory, mapped, and made anew when they must be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.cli.main import main
from scoresde.data import DataError, Split, arrays, cache, holdout, image_folder, images, views
from scoresde.data.cache import Source, stored
from scoresde.training.batches import derived_seed
from scoresde.training.checkpoint import newest


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for k in range(20):
        file = root / "ab"[k % 2] / f"{k:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (6, 5, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    return root


def array_file(place, name="train-x"):
    """The file of an array in a cache, which has one folder of them."""
    (file,) = place.glob(f"arrays-*/{name}.bin")
    return file


def same(a, b):
    assert torch.equal(a.train.x, b.train.x)
    assert torch.equal(a.train.label, b.train.label)
    assert torch.equal(a.test.x, b.test.x)
    assert a.classes == b.classes


def test_what_is_mapped_is_what_was_decoded(folder, tmp_path):
    plain = image_folder(folder)
    first, second = (image_folder(folder, cache=tmp_path / "cache") for _ in range(2))
    same(plain, first)
    same(plain, second)
    assert first.train.mapped
    assert "mapped" in second.notes[-1]


def test_the_second_time_no_picture_is_opened(folder, tmp_path):
    seen = []

    class Watched:
        def __init__(self, total, what):
            seen.append(total)

        def __enter__(self):
            return lambda n: None

        def __exit__(self, *error):
            return None

    image_folder(folder, cache=tmp_path / "cache", progress=Watched)
    image_folder(folder, cache=tmp_path / "cache", progress=Watched)
    assert seen == [20]


def test_a_batch_is_a_copy_and_the_set_is_the_file(folder, tmp_path):
    data = image_folder(folder, cache=tmp_path / "cache")
    stored = np.fromfile(array_file(tmp_path / "cache"), np.uint8)
    assert np.array_equal(stored, data.train.x.numpy().reshape(-1))
    batch = data.train.take(torch.tensor([3, 0, 3]))
    assert torch.equal(batch.x, image_folder(folder).train.x[[3, 0, 3]])
    batch.x.zero_()  # the file is not written
    assert torch.equal(data.train.x, image_folder(folder).train.x)


@pytest.mark.parametrize("change", ["content", "more", "options"])
def test_changed_sources_are_decoded_again(folder, tmp_path, change):
    cache, options = tmp_path / "cache", {}
    image_folder(folder, cache=cache)
    if change == "content":
        Image.fromarray(np.zeros((6, 5, 3), np.uint8)).save(folder / "a" / "00.png")
    elif change == "more":
        shutil.copy(folder / "a" / "00.png", folder / "a" / "99.png")
    else:
        options = {"channels": 1}
    found = image_folder(folder, cache=cache, **options)
    same(found, image_folder(folder, **options))
    assert "decoded again" in found.notes[0]


@pytest.mark.parametrize("damage", ["flip", "short", "manifest", "gone"])
def test_a_damaged_cache_is_made_anew_and_said(folder, tmp_path, damage):
    cache = tmp_path / "cache"
    image_folder(folder, cache=cache)
    array = array_file(cache)
    content = bytearray(array.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        array.write_bytes(content)
    elif damage == "short":
        array.write_bytes(content[:-10])
    elif damage == "manifest":
        found = json.loads((cache / "manifest.json").read_text())
        found["train"]["x"]["shape"][0] += 1
        (cache / "manifest.json").write_text(json.dumps(found))
    else:
        array.unlink()
    again = image_folder(folder, cache=cache)
    same(again, image_folder(folder))
    assert "damaged" in again.notes[0]


def test_an_interrupted_decoding_leaves_no_cache(folder, tmp_path):
    cache = tmp_path / "cache"

    def interrupted(total, what):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        image_folder(folder, cache=cache, progress=interrupted)
    assert os.listdir(cache) == [".lock"]
    same(image_folder(folder, cache=cache), image_folder(folder))


def test_a_folder_with_other_files_is_no_place_for_a_cache(folder, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "x.npy").write_text("mine")
    with pytest.raises(DataError, match=r"x\.npy, which is of no cache"):
        image_folder(folder, cache=tmp_path / "cache")
    assert (tmp_path / "cache" / "x.npy").read_text() == "mine"


def test_views_hold_out_the_same_examples_without_a_copy(folder, tmp_path):
    split = image_folder(folder, cache=tmp_path / "cache").train
    for view, copy in zip(views(split, 0.3, 5), holdout(split, 0.3, 5), strict=True):
        assert len(view) == len(copy)
        rows = torch.randperm(
            len(view), generator=torch.Generator().manual_seed(derived_seed(0, 0, ""))
        )
        assert torch.equal(view.take(rows).x, copy.x[rows])
        assert torch.equal(view.take(rows).label, copy.label[rows])


# --- damage, and others at the same folder ------------------------------------------------------


@pytest.mark.parametrize("name", ["train-x", "train-label", "test-x", "test-label"])
@pytest.mark.parametrize("at", [-1, 10])
def test_damage_is_seen_though_the_time_of_the_file_is_kept(folder, tmp_path, name, at):
    place = tmp_path / "cache"
    image_folder(folder, cache=place)
    array = array_file(place, name)
    status, content = array.stat(), bytearray(array.read_bytes())
    content[at] ^= 1
    array.write_bytes(content)
    os.utime(array, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = image_folder(folder, cache=place)
    same(again, image_folder(folder))
    assert "damaged, decoded again" in again.notes[0]


def test_a_copy_of_a_cache_is_a_cache(folder, tmp_path):
    place, copy = tmp_path / "cache", tmp_path / "copy"
    first = image_folder(folder, cache=place)
    shutil.copytree(place, copy)
    found = image_folder(folder, cache=copy)
    same(found, first)
    assert len(found.notes) == 1


def test_a_cache_that_is_replaced_while_it_is_opened(folder, tmp_path, monkeypatch):
    """Files of two makings are never taken for one, and what is mapped stays as it was."""
    place, opened = tmp_path / "cache", cache._mapped
    before = image_folder(folder, cache=place)
    kept = before.train.x.clone()

    def replaced_first(*arguments):
        monkeypatch.setattr(cache, "_mapped", opened)
        image_folder(folder, cache=place, seed=1)
        return opened(*arguments)

    monkeypatch.setattr(cache, "_mapped", replaced_first)
    same(image_folder(folder, cache=place), image_folder(folder))
    assert torch.equal(before.train.x, kept)


def test_of_two_at_once_one_decodes_and_the_other_waits(tmp_path):
    source, begun, go_on, made = (
        Source({}, [("a", 1, 1)]),
        threading.Event(),
        threading.Event(),
        [],
    )

    def decode(skipped):
        made.append(0)
        begun.set()
        go_on.wait(10)
        for test in (False, True):
            yield test, Split(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8))

    found = []
    both = [
        threading.Thread(target=lambda: found.append(stored(tmp_path / "c", source, decode)))
        for _ in range(2)
    ]
    both[0].start()
    assert begun.wait(10)
    both[1].start()
    both[1].join(0.2)
    assert both[1].is_alive()
    go_on.set()
    for thread in both:
        thread.join(10)
    assert made == [0]
    assert [len(parts.train) for parts in found] == [4, 4]
    assert all(torch.equal(parts.test.x, found[0].train.x) for parts in found)


def test_what_a_killed_process_left_is_cleared_away(folder, tmp_path):
    place = tmp_path / "cache"
    (place / "arrays-0123").mkdir(parents=True)
    for name in ("arrays-0123/train-x.bin", "manifest.json.tmp", ".lock"):
        (place / name).write_bytes(b"half")
    found = image_folder(folder, cache=place)
    same(found, image_folder(folder))
    assert len(found.notes) == 1
    names = sorted(path.name for path in place.iterdir())
    assert names == [".lock", array_file(place).parent.name, "manifest.json"]


def test_a_file_is_no_place_for_a_cache(folder, tmp_path):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(DataError, match=r"cache: no folder; name .* for data\.cache"):
        image_folder(folder, cache=tmp_path / "cache")


# --- memory -------------------------------------------------------------------------------------


def test_pictures_are_passed_on_by_their_size(folder, monkeypatch):
    expected, sizes = image_folder(folder), []
    monkeypatch.setattr(images, "PIECE", 4 * 6 * 5 * 3)
    split = images._split

    def noted(piece, labelled):
        sizes.append(len(piece))
        return split(piece, labelled)

    monkeypatch.setattr(images, "_split", noted)
    same(image_folder(folder), expected)
    assert sizes == [4, 4, 4, 4, 2, 2]


EPOCH = """
import sys
from dataclasses import dataclass
import torch
from scoresde import VP, ScoreModel, parameterization
from scoresde.data import arrays, views
from scoresde.training import Plan, TrainState, fit

torch.set_num_threads(1)


def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, noise, label=None, augment=None):
        return self.factor * x


@dataclass
class Peak:
    begin: int
    most: int = 0

    def __call__(self, *ignored):
        self.most = max(self.most, anonymous() - self.begin)

    def __enter__(self):
        return self

    def __exit__(self, *ignored):
        self()


def trained(data):
    split, _ = views(data.train, 0.1)
    model = ScoreModel(Net(), VP(), parameterization.eps)
    plan = Plan(steps=12, batch=16, lr=1e-3, dither=False, prefetch=2)
    return fit(TrainState.of(model, plan), plan, split, data.scaling)


shards, cache, few = sys.argv[1:]
for _ in trained(arrays(few)):  # what libraries take for themselves
    pass
decoding = Peak(anonymous())
arrays(shards, cache=cache, progress=lambda total, what: decoding)
training = Peak(anonymous())
for _ in trained(arrays(shards, cache=cache)):
    training()
loading = Peak(anonymous())
data = arrays(shards)
loading()
print(decoding.most, training.most, loading.most)
"""


def test_memory_stays_flat_however_large_the_set_is(tmp_path):
    """Decoding holds a piece and training its batches; without a cache it is the whole set."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    (tmp_path / "shards").mkdir()
    rng, shape = np.random.default_rng(0), (256, 3, 64, 64)
    for k in range(16):
        np.savez(tmp_path / "shards" / f"{k:02d}.npz", x=rng.integers(0, 256, shape, np.uint8))
    shutil.copy(tmp_path / "shards" / "00.npz", tmp_path / "few.npz")
    paths = [str(tmp_path / name) for name in ("shards", "cache", "few.npz")]
    # What is freed goes back to the system, so that only what is in use counts.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", EPOCH, *paths],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    size = 16 * int(np.prod(shape))
    decoding, training, loading = (int(word) / size for word in done.stdout.split())
    assert loading > 0.8
    assert training < 0.4
    assert decoding < 0.4


# --- arrays -------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    root, rng = tmp_path / "shards", np.random.default_rng(0)
    root.mkdir()
    for k, n in enumerate((5, 0, 1, 14)):
        x = rng.integers(0, 256, (n, 4, 3, 3), np.uint8)
        np.savez(root / f"{k}.npz", x=x, y=rng.integers(0, 3, n))
    return root


def test_shards_are_cached_as_they_are_read(shards, tmp_path):
    plain = arrays(shards, holdout=7)
    for _ in range(2):
        found = arrays(shards, holdout=7, cache=tmp_path / "cache")
        same(found, plain)
        assert torch.equal(found.test.x, plain.test.x)
        assert torch.equal(found.test.label, plain.test.label)
        assert found.train.mapped
        assert found.notes == (
            f"cache {tmp_path / 'cache'}: 13 + 7 examples, {20 * (36 + 8) / 1e6:.3g} MB, mapped",
        )
    other = arrays(shards, holdout=3, cache=tmp_path / "cache")
    same(other, arrays(shards, holdout=3))
    assert "other options" in other.notes[0]
    np.savez(shards / "3.npz", x=np.zeros((3, 4, 3, 3), np.uint8), y=np.zeros(3, int))
    changed = arrays(shards, holdout=3, cache=tmp_path / "cache")
    same(changed, arrays(shards, holdout=3))
    assert "files have changed" in changed.notes[0]


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_levels_are_those_of_the_file_and_not_of_the_cache(tmp_path, suffix):
    bits = np.random.default_rng(0).random((20, 4, 4)) > 0.5
    path = tmp_path / f"bits.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, bits)
    for _ in range(2):
        found = arrays(path, cache=tmp_path / "cache")
        assert found.scaling.levels == 2
        assert torch.equal(found.train.x, arrays(path).train.x)


def test_test_examples_of_shards_are_cached_too(tmp_path):
    (tmp_path / "s").mkdir()
    for k in range(2):
        x = np.full((3, 2), k, np.float32)
        np.savez(tmp_path / "s" / f"{k}.npz", x=x, x_test=x[:k])
    found = arrays(tmp_path / "s", cache=tmp_path / "cache")
    assert found.train.x[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert found.test.x.tolist() == [[1, 1]]


def test_a_run_on_a_cache_is_the_run_in_memory(shards, tmp_path):
    """Mapped or not, drawn ahead or not, and resumed in the middle of an epoch of 18."""

    def trained(name, steps, *flags):
        command = ["train", "--out", str(tmp_path / name), "--device=cpu", "--data=arrays"]
        command += [f"--data.path={shards}", "--data.layout=NCHW", "--network=mlp"]
        command += ["--network.width=8", "--network.depth=1", "--train.batch=5"]
        command += [
            f"--train.steps={steps}",
            "--train.holdout=0",
            "--train.no-keep-best",
            "--sample.steps=2",
        ]
        assert main([*command, *flags]) == 0
        return newest(tmp_path / name / "checkpoints")[1].model

    place = f"--data.cache={tmp_path / 'cache'}"
    plain = trained("plain", 9)
    trained("mapped", 4, place, "--train.prefetch=3")
    resumed = trained("mapped", 9, place, "--train.prefetch=1", "--resume")
    trained("moved", 4)
    moved = trained("moved", 9, place, "--resume")
    for other in (resumed, moved):
        assert all(torch.equal(value, other[name]) for name, value in plain.items())
