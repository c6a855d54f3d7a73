"""The portraits of the package: what the sentences say is what the attributes are."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import scoresde
from scoresde.data import avatars

FILES = ("avatars16.webp", "captions.jsonl.gz", "LICENSE")


@pytest.fixture(scope="module")
def data():
    return avatars()


def test_sizes_and_parts(data):
    assert (len(data.train), len(data.test)) == (7000, 1000)
    assert data.shape == (3, 16, 16)
    assert data.classes is None
    assert sorted(data.train.columns) == sorted([*data.words, "text"])


def test_every_sentence_states_the_attributes(data):
    for split in (data.train, data.test):
        words = {name: [data.words[name][k] for k in split.columns[name]] for name in data.words}
        for k, text in enumerate(split.columns["text"]):
            said = {name: values[k] for name, values in words.items()}
            assert f"{said['hair_length']} {said['hair']} hair" in text
            assert f"{said['skin']} skin" in text
            assert f" {said['shirt']} shirt" in text
            assert text.endswith(f" {said['background']} background")
            assert text.startswith(f"a {said['mood']} person")
            assert (" glasses" in text, "sunglasses" in text) == (
                said["glasses"] == "glasses",
                said["glasses"] == "sunglasses",
            )
            assert ("a beard" in text) == (said["beard"] == "beard")
            assert (" hat" in text) == (said["hat"] != "none")
            assert said["hat"] == "none" or f" {said['hat']} hat" in text


def test_the_corner_shows_the_background(data):
    colour = {"white": 0xFFFFFF, "blue": 0x9FD3FF, "green": 0xB8E6B8}
    colour |= {"pink": 0xFFC9DE, "yellow": 0xFFF3B0, "grey": 0xCCCCCC}
    expected = torch.tensor([colour[word] for word in data.words["background"]])
    corner = data.train.x[:, :, 0, 0].long()
    shown = (corner * torch.tensor([65536, 256, 1])).sum(1)
    assert torch.equal(shown, expected[data.train.columns["background"]])


@pytest.mark.parametrize("size", [32, 64])
def test_larger_portraits_repeat_the_pixels(data, size):
    large = avatars(size)
    assert torch.equal(large.test.x[:, :, :: size // 16, :: size // 16], data.test.x)
    blocks = large.test.x.unfold(2, size // 16, size // 16).unfold(3, size // 16, size // 16)
    assert torch.equal(blocks.amin((4, 5)), blocks.amax((4, 5)))


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="need size one of 16, 32, 64, got 24"):
        avatars(24)


def test_the_files_lie_in_the_package():
    folder = Path(scoresde.__file__).parent / "data" / "avatars"
    assert {file for file in FILES if (folder / file).is_file()} == set(FILES)


@pytest.mark.slow
def test_a_wheel_holds_them(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling, which builds wheels, is not installed")
    root = Path(scoresde.__file__).parents[1]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert {f"scoresde/data/avatars/{file}" for file in FILES} <= set(archive.namelist())


def test_partial_sentences_say_nothing_wrong(data):
    """Every phrase of the second sentence is one of the first, but for a hat of any colour."""
    some = avatars(partial=0.5)
    assert torch.equal(some.train.x, data.train.x)
    lengths, captions = set(), some.train.columns["text"]
    assert 0.45 < float((captions.counts == 2).double().mean()) < 0.55
    for full, (first, *others) in zip(data.train.columns["text"], captions, strict=True):
        assert first == full
        second = others[0] if others else full
        hair = {f"{word} hair" for word in full.split(" hair")[0].split()[-2:]}
        phrases = second.removeprefix("a person").replace(", ", "|").replace(" and ", "|")
        phrases = phrases.replace(" on ", "|").replace(" with ", "|").split("|")
        for phrase in filter(None, phrases):
            assert phrase in full or phrase in hair or (phrase == "a hat" and " hat" in full)
        lengths.add(len(second.split()))
    assert {2, 3} <= lengths
    assert list(some.test.columns["text"]) == list(data.test.columns["text"])
