"""Decoded pictures on disk: the same as in memory, mapped, and made anew when they must be."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import DataError, holdout, image_folder, views
from scoresde.training.batches import stream


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for k in range(20):
        file = root / "ab"[k % 2] / f"{k:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (6, 5, 3), np.uint8)
        Image.fromarray(pixels).save(file)
    return root


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

    image_folder(folder, cache=tmp_path / "cache", watch=Watched)
    image_folder(folder, cache=tmp_path / "cache", watch=Watched)
    assert seen == [20]


def test_a_batch_is_a_copy_and_the_set_is_the_file(folder, tmp_path):
    data = image_folder(folder, cache=tmp_path / "cache")
    stored = np.load(tmp_path / "cache" / "x.npy", mmap_mode="r", allow_pickle=False)
    assert np.array_equal(stored, data.train.x.numpy())
    batch = data.train.take(torch.tensor([3, 0, 3]))
    assert torch.equal(batch.x, image_folder(folder).train.x[[3, 0, 3]])
    batch.x.zero_()  # the file is not written
    assert np.array_equal(stored, image_folder(folder).train.x.numpy())


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
    array = cache / "x.npy"
    content = bytearray(array.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
        array.write_bytes(content)
    elif damage == "short":
        array.write_bytes(content[:-10])
    elif damage == "manifest":
        found = json.loads((cache / "manifest.json").read_text())
        found["arrays"]["x.npy"]["sha256"] = "0"
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
        image_folder(folder, cache=cache, watch=interrupted)
    assert not [name for name in os.listdir(cache) if name.endswith((".npy", ".tmp"))]
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
        rows = torch.randperm(len(view), generator=torch.Generator().manual_seed(stream(0, 0, "")))
        assert torch.equal(view.take(rows).x, copy.x[rows])
        assert torch.equal(view.take(rows).label, copy.label[rows])
