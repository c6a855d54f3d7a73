"""Captions and numbers of pictures: every layout of the field read alike, or refused in words."""

from __future__ import annotations

import json
import tarfile
import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import DataError, dataset_of, image_folder

N = 6
TEXTS = [f'the "{k}", a picture, größer' for k in range(N)]
AGES = [0.5 * k for k in range(N)]


def png(value: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(file, "png")
    return file.getvalue()


def lines(rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


def csv(rows):
    def cell(value):
        return '"' + str(value).replace('"', '""') + '"'

    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(",".join(map(cell, row)) for row in table).encode()


def rows(names, texts=TEXTS, ages=AGES):
    return [
        {"file_name": name, "text": text, "age": age, "minus": -age}
        for name, text, age in zip(names, texts, ages, strict=True)
    ]


PICTURES = {f"{k}.png": png(k) for k in range(N)}
SPLIT = [f"{'train' if k < 4 else 'test'}/{k}.png" for k in range(N)]
LAYOUTS = {
    "jsonl": PICTURES | {"metadata.jsonl": lines(rows(PICTURES))},
    "csv": PICTURES | {"metadata.csv": csv(rows(PICTURES))},
    "txt": PICTURES | {f"{k}.txt": f"{TEXTS[k]}\n".encode() for k in range(N)},
    "caption": PICTURES | {f"{k}.caption": TEXTS[k].encode("utf-8-sig") for k in range(N)},
    "json": PICTURES | {f"{k}.json": json.dumps(rows(PICTURES)[k]).encode() for k in range(N)},
}
IN_PARTS = {name: png(k) for k, name in enumerate(SPLIT)}


@pytest.fixture(params=["folder", "zip", "tar", "shards"])
def laid(request, tmp_path):
    """Writes files as a folder, an archive or tar shards, and returns the path."""

    def tar(path, members):
        with tarfile.open(path, "w") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, BytesIO(content))

    def write(members):
        root = tmp_path / "set"
        if request.param == "folder":
            for name, content in members.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(content)
            return root
        if request.param == "zip":
            with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
            return root.with_suffix(".zip")
        if request.param == "tar":
            tar(root.with_suffix(".tar"), members)
            return root.with_suffix(".tar")
        root.mkdir()
        keys = sorted(members)
        for k in range(2):  # the files of a picture may lie in two shards
            tar(root / f"{k:05d}.tar", {name: members[name] for name in keys[k::2]})
        return root

    return write


def captions(data):
    """The captions by the value of the picture."""
    return {
        int(x[0, 0, 0]): text
        for split in (data.train, data.test)
        for x, text in zip(split.x, split.columns["text"], strict=True)
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_alike(laid, layout):
    data = image_folder(laid(LAYOUTS[layout]), holdout=2)
    assert captions(data) == dict(enumerate(TEXTS))
    assert data.notes[0].startswith("captions from")
    assert data.name == "set"


@pytest.mark.parametrize("layout", ["jsonl", "csv", "json"])
def test_columns_of_numbers_are_the_vector(laid, layout):
    data = image_folder(laid(LAYOUTS[layout]), holdout=2, vector=["minus", "age"])
    for split in (data.train, data.test):
        k = split.x[:, 0, 0, 0].float()
        assert torch.equal(split.columns["vector"], torch.stack([-k / 2, k / 2], 1))


def test_metadata_of_the_root_and_of_the_parts(laid):
    below = {
        "train/metadata.jsonl": lines(rows([f"{k}.png" for k in range(4)], TEXTS[:4], AGES[:4])),
        "test/metadata.csv": csv(rows(["4.png", "5.png"], TEXTS[4:], AGES[4:])),
    }
    path = laid(IN_PARTS | below)
    data = image_folder(path)
    assert (len(data.train), len(data.test)) == (4, 2)
    assert captions(data) == dict(enumerate(TEXTS))


def test_metadata_of_the_root_names_the_parts(laid):
    data = image_folder(laid(IN_PARTS | {"metadata.jsonl": lines(rows(SPLIT))}))
    assert captions(data) == dict(enumerate(TEXTS))
    assert data.test.x[:, 0, 0, 0].tolist() == [4, 5]


def test_several_captions(laid):
    several = [["one", "two", "three"][: 1 + k % 3] for k in range(N)]
    table = rows(PICTURES, several)
    data = image_folder(laid(PICTURES | {"metadata.jsonl": lines(table)}), holdout=2)
    assert captions(data) == dict(enumerate(several))


def test_several_lines_are_several_captions(tmp_path):
    for k in range(2):
        (tmp_path / f"{k}.png").write_bytes(png(k))
        (tmp_path / f"{k}.txt").write_text("a dog\n\n a cat \n")
    both = ["a dog", "a cat"]
    assert captions(image_folder(tmp_path, holdout=1)) == {0: both, 1: both}


def test_a_missing_caption_is_refused_or_not(laid):
    members = {name: data for name, data in LAYOUTS["txt"].items() if name != "3.txt"}
    path = laid(members)
    with pytest.raises(DataError, match=r"3\.png: no caption, .*set on_missing") as caught:
        image_folder(path, holdout=2)
    assert "\n" not in str(caught.value)
    data = image_folder(path, holdout=2, on_missing="empty")
    assert captions(data) == {k: TEXTS[k] if k != 3 else "" for k in range(N)}
    data = image_folder(path, holdout=2, on_missing="skip")
    assert captions(data) == {k: TEXTS[k] for k in range(N) if k != 3}
    assert data.skipped == 1
    assert data.notes[-1] == "left out 1 damaged or uncaptioned picture: 3.png"


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({"metadata.jsonl": lines(rows(PICTURES)[:-1])}, {}, r"5\.png: no caption"),
        (
            {"metadata.jsonl": lines(rows([*list(PICTURES)[:-1], "x.png"]))},
            {},
            "no picture 'x.png'",
        ),
        ({"metadata.jsonl": lines(rows(PICTURES) * 2)}, {}, r"0\.png is in .*line 1 and in .*7"),
        ({"metadata.jsonl": b'{"file_name": "0.png"\n'}, {}, "line 1: no JSON"),
        ({"metadata.jsonl": b"7\n"}, {}, "no JSON object"),
        ({"metadata.jsonl": lines(rows(PICTURES, [7] * N))}, {}, "'text' is 7; give a text"),
        ({"metadata.csv": b"file_name,text\n0.png\n"}, {}, "line 2 has not the 2 columns"),
        ({"0.txt": b"another"}, {}, r"0\.png: captions in 0\.txt and in metadata\.jsonl, line 1"),
        ({}, {"caption_column": "caption"}, "no column 'caption', but age, minus, text"),
        ({}, {"vector": ["weight"]}, "'weight' is None; give a finite number"),
        ({}, {"vector": ["text"]}, "line 1: 'text' is .* give a finite number"),
        (
            {"metadata.jsonl": lines(rows(PICTURES, ages=[*AGES[:-1], float("nan")]))},
            {"vector": ["age"]},
            r"5\.png: metadata\.jsonl, line 6: 'age' is nan",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, changed, options, message):
    members = LAYOUTS["jsonl"] | changed
    if "metadata.csv" in changed:
        del members["metadata.jsonl"]
    for name, content in members.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        image_folder(tmp_path, holdout=2, **options)
    assert "\n" not in str(caught.value)


def test_other_columns_and_no_captions(tmp_path):
    for name, content in LAYOUTS["jsonl"].items():
        (tmp_path / name).write_bytes(content)
    table = [
        {"file_name": name, "about": text} for name, text in zip(PICTURES, TEXTS, strict=True)
    ]
    (tmp_path / "metadata.jsonl").write_bytes(lines(table))
    data = image_folder(tmp_path, holdout=2, caption_column="about")
    assert captions(data) == dict(enumerate(TEXTS))
    for options in ({}, {"caption_column": None}):  # the table has no column text
        assert not image_folder(tmp_path, holdout=2, **options).train.columns
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "metadata.csv").write_text("id,dx\n1,mel\n")
    data = image_folder(tmp_path, holdout=2)
    assert not data.train.columns
    assert data.notes == ("metadata.csv has no column file_name: not read",)


def test_a_cache_keeps_captions_and_vectors(tmp_path):
    folder, options = tmp_path / "set", {"holdout": 2, "vector": ["age"]}
    folder.mkdir()
    for name, content in LAYOUTS["json"].items():
        (folder / name).write_bytes(content)
    plain = image_folder(folder, **options)
    for _ in range(2):
        data = image_folder(folder, cache=tmp_path / "cache", **options)
        assert captions(data) == captions(plain)
        assert torch.equal(data.train.columns["vector"], plain.train.columns["vector"])
    row = rows(PICTURES, ["new"] * N)[2]
    (folder / "2.json").write_bytes(json.dumps(row).encode())
    assert captions(image_folder(folder, cache=tmp_path / "cache", **options))[2] == "new"
    (folder / "2.txt").write_text("newer")
    assert captions(image_folder(folder, cache=tmp_path / "cache", **options))[2] == "newer"


def test_tar_files_that_cannot_be_used(tmp_path):
    def write(name, *members):
        with tarfile.open(tmp_path / name, "w") as archive:
            for member, content in members:
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, BytesIO(content))

    write("a.tar", ("../0.png", png(0)))
    with pytest.raises(DataError, match="leads out"):
        image_folder(tmp_path / "a.tar")
    write("a.tar", ("0.png", png(0)), ("1.png", png(1)))
    assert len(dataset_of(tmp_path / "a.tar").train) == 1
    write("b.tar", ("1.png", png(1)))
    with pytest.raises(DataError, match=r"b\.tar: member '1\.png' is in a\.tar too"):
        image_folder(tmp_path)
    (tmp_path / "b.tar").write_bytes(b"no tar at all")
    with pytest.raises(DataError, match=r"b\.tar: no usable \.tar"):
        image_folder(tmp_path)
    whole = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "b.tar").unlink()
    (tmp_path / "a.tar").write_bytes(whole[:1000])
    with pytest.raises(DataError, match=r"no usable \.tar"):
        image_folder(tmp_path)
