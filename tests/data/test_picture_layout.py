"""Picture folders in the layouts of the field: read rightly, or refused in words."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde.data import DataError, image_folder


def png(value: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(file, "png")
    return file.getvalue()


def files(*folders, each=4):
    """Members of an archive: pictures below the folders, of values 0, 1, 2, ... in their order."""
    names = [f"{folder}/{k}.png".removeprefix("/") for folder in folders for k in range(each)]
    return {name: png(value) for value, name in enumerate(names)}


@pytest.fixture(params=["folder", "zip"])
def laid(request, tmp_path):
    """The data set of some files, which are written as a folder, or as an archive."""

    def write(members, **options):
        root = tmp_path / ("set" if request.param == "folder" else "set.zip")
        if request.param == "zip":
            with zipfile.ZipFile(root, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, content)
        for name, content in members.items() if request.param == "folder" else ():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return image_folder(root, **options)

    return write


def values(split):
    return split.x[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("held", ["val", "valid", "validation", "dev", "test", "testing", "TEST"])
@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
def test_parts_are_called_as_people_call_them(laid, train, held):
    data = laid(files(f"{train}/cat", f"{train}/dog", f"{held}/cat", f"{held}/dog"))
    assert data.classes == ("cat", "dog")
    assert values(data.train) == list(range(8))
    assert values(data.test) == list(range(8, 16))
    assert data.counts == {"cat": 4, "dog": 4}
    assert data.notes == (f"{held}/ is held out for testing",)


def test_of_three_parts_the_one_for_testing_is_held_out_and_a_note_counts_the_other(laid):
    data = laid(files("train/cat", "test/cat", "val/cat"))
    assert (values(data.train), values(data.test)) == ([0, 1, 2, 3], [4, 5, 6, 7])
    assert "val/ is left out (4 pictures): test/ is the part for testing" in data.notes


@pytest.mark.parametrize("outer", ["", "my set/", "a/b/"])
def test_a_part_alone_and_folders_around_everything(laid, outer):
    data = laid(files(f"{outer}train/cat", f"{outer}train/dog"), holdout=3)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (5, 3)
    assert "only train/: some of its pictures are held out for testing" in data.notes
    assert (f"everything is in {outer}" in data.notes) == bool(outer)


def test_parts_without_classes(laid):
    data = laid(files("train", "test"))
    assert data.classes is None
    assert data.counts == {}
    assert (values(data.train), values(data.test)) == ([0, 1, 2, 3], [4, 5, 6, 7])


def test_what_macos_adds_is_passed_over(laid):
    noise = {
        "__MACOSX/cat/._0.png": b"x",
        "cat/._0.png": b"x",
        ".DS_Store": b"x",
        "cat/.DS_Store": b"x",
        "__MACOSX/dog/0.png": b"x",
    }
    data = laid(files("cat", "dog") | noise)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.test) == 8


def test_a_class_may_be_called_train(laid):
    assert laid(files("car", "plane", "train")).classes == ("car", "plane", "train")


def test_folders_of_numbers_are_in_their_order(laid):
    data = laid(files(*map(str, range(1, 13))), holdout=1)
    assert data.classes == tuple(map(str, range(1, 13)))


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train/cat", "extra/cat"), "train/ beside extra/: parts of the set or classes"),
        (("train", "test", "cat"), "test/, train/ beside cat/"),
        (("train/cat", "Train/cat"), "Train/, train/: two folders of one part; join them"),
        (("train/cat", "val/cat", "valid/cat"), "two folders of one part"),
        (("test/cat", "test/dog"), "test/ but no train/; to train on test/ give the path to it"),
        (("val/cat", "test/cat"), "test/, val/ but no train/"),
        (("train/cat", "val/images"), "for testing are of images, those for training of cat"),
        (("train/cat", "test"), "only one of train/ and test/ has class folders"),
        (("train/cat", "train", "test/cat"), "4 pictures beside the class folders of train/"),
        (("cat", ""), "4 pictures beside the class folders; move"),
    ],
    ids=str,
)
def test_what_can_be_read_in_two_ways_is_refused(laid, folders, words):
    with pytest.raises(DataError, match=words):
        laid(files(*folders))


def test_nothing_is_left_out_in_silence(laid):
    data = laid(files("train/cat", "test/cat", "test/cow", each=2) | {"banner.png": png(9)})
    assert "left out 1 picture beside train/" in data.notes
    assert "without training pictures: cow" in data.notes
    assert data.counts == {"cat": 2, "cow": 0}


def stylegan(labels, outer=""):
    """The layout of the dataset tools of StyleGAN and EDM: labels in a file, folders of 4."""
    names = [f"{k // 4:05d}/img{k:08d}.png" for k in range(12)]
    listed = None if labels is None else [[n, k] for n, k in zip(names, labels, strict=True)]
    index = json.dumps({"labels": listed}).encode()
    members = {f"{outer}{name}": png(k) for k, name in enumerate(names)}
    return members | {f"{outer}dataset.json": index}


@pytest.mark.parametrize("outer", ["", "cifar10-32x32/"])
def test_the_labels_of_dataset_json_are_the_classes_and_not_the_folders(laid, outer):
    labels = [7, 7, 0, 2] * 3
    data = laid(stylegan(labels, outer), holdout=4)
    assert data.classes == ("0", "2", "7")
    for split in (data.train, data.test):
        for value, label in zip(values(split), split.label.tolist(), strict=True):
            assert data.classes[label] == str(labels[value])
    assert data.notes == (f"labels from {outer}dataset.json",)


def test_without_labels_dataset_json_leaves_no_classes(laid):
    data = laid(stylegan(None))
    assert data.classes is None
    assert data.notes == ("no labels in dataset.json",)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        (b"{", "dataset.json has no list of labels"),
        (b"[]", "dataset.json has no list of labels"),
        (b'{"labels": 3}', "dataset.json has no list of labels"),
        (
            b'{"labels": [["00000/img00000000.png", 1]]}',
            r"no label for 00000/img00000001\.png \(11",
        ),
        (
            b'{"labels": [["00000/img00000000.png", 1], ["00000\\\\img00000000.png", 2]]}',
            "dataset.json has 2 labels for 1 pictures",
        ),
        (
            json.dumps({"labels": [[f"{k // 4:05d}/img{k:08d}.png", [k, 3]] for k in range(12)]}),
            "dataset.json: labels have shape",
        ),
    ],
    ids=str,
)
def test_a_damaged_dataset_json_is_named(laid, index, words):
    content = index if isinstance(index, bytes) else index.encode()
    with pytest.raises(DataError, match=words):
        laid(stylegan(None) | {"dataset.json": content})


def test_other_labels_in_dataset_json_are_another_set_for_a_cache(tmp_path):
    for labels in ([0, 1] * 6, [1, 0] * 6):
        for name, content in stylegan(labels).items():
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(content)
        data = image_folder(tmp_path / "set", cache=tmp_path / "cache")
        expected = [labels[value] for value in values(data.train)]
        assert data.train.label.tolist() == expected


def test_a_folder_of_something_else_says_what_it_holds(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(3))
    (tmp_path / "README").write_text("hello")
    with pytest.raises(DataError, match=r"no pictures .*, 1 without a suffix, 1 \.npy files"):
        image_folder(tmp_path)
    with pytest.raises(DataError, match=r"x\.npy: is a numpy array \(\.npy\); give a folder"):
        image_folder(tmp_path / "x.npy")


def test_links_lead_to_classes_and_never_around_in_circles(tmp_path):
    for name, content in files("elsewhere/cat").items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "set" / "train").mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "set" / "train" / name).symlink_to(tmp_path / "elsewhere" / "cat")
    (tmp_path / "elsewhere" / "cat" / "back").symlink_to(tmp_path / "set")
    data = image_folder(tmp_path / "set", holdout=1)
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.test) == 8
    assert torch.equal(data.train.x.unique(), torch.arange(4, dtype=torch.uint8))
