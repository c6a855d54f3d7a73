"""Faults 20 to 24: pictures, folders, arrays and idx files. The file is named; nothing is run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import progress
from scoresde.cli.main import main
from scoresde.data import DataError, arrays, image_folder
from scoresde.data import picture_sources as albums
from scoresde.data.images import picture_levels
from scoresde.evaluation import load_moments

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 30, 3), np.uint8)


@pytest.fixture
def refusal(refused):
    """The line that ``scoresde train`` refuses data with."""

    def of(kind: str, path: Path, *flags: str) -> str:
        data = ["--data.kind", kind, "--data.path", path, *flags]
        return refused("train", "--dry-run", "--device", "cpu", *data)

    return of


def encoded(image: Image.Image, kind: str = "png", **how: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


PNG, JPEG = encoded(Image.fromarray(PIXELS)), encoded(Image.fromarray(PIXELS), "jpeg")


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


# --- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.png", PNG[:-200]),
        ("cut.jpg", JPEG[:-200]),
        ("empty.png", b""),
        ("zeros.png", bytes(500)),
        ("text.png", b"not a picture"),
        ("flipped.png", flipped(PNG, len(PNG) // 2)),
        ("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_fault_20_a_damaged_picture_is_named(refusal, tmp_path, name, content):
    (tmp_path / "0.png").write_bytes(PNG)
    (tmp_path / name).write_bytes(content)
    assert f"{tmp_path / name}: not a usable picture" in refusal("folder", tmp_path)


def deep(dtype: type) -> Image.Image:
    return Image.fromarray(np.zeros((30, 30), dtype))


@pytest.mark.parametrize(
    ("image", "kind", "words"),
    [
        (Image.fromarray(PIXELS).convert("RGBA"), "png", "mode RGBA is neither grey nor RGB"),
        (Image.fromarray(PIXELS).convert("P"), "png", "mode P is neither grey nor RGB"),
        (deep(np.uint16), "png", "mode I;16 has more than 256 levels"),
        (deep(np.float32), "tiff", "mode F has more than 256 levels"),
        (Image.fromarray(PIXELS).convert("L"), "png", "(1, 30, 30) but (3, 30, 30)"),
        (Image.fromarray(PIXELS[:20]), "png", "(3, 20, 30) but (3, 30, 30)"),
    ],
)
def test_fault_21_other_modes_and_sizes_need_a_word(refusal, tmp_path, image, kind, words):
    odd = tmp_path / "test" / f"1.{kind}"
    for file, content in ((tmp_path / "train" / "0.png", PNG), (odd, encoded(image, kind))):
        file.parent.mkdir()
        file.write_bytes(content)
    line = refusal("folder", tmp_path)
    assert f"{odd}: " in line
    assert words in line
    if "256" not in words:  # and with it they are converted
        found = image_folder(tmp_path, size=16, channels=3)
        assert found.shape == (3, 16, 16)


@pytest.mark.parametrize("channels", ["1", "3"])
def test_fault_21_they_are_converted_from_the_command_line_too(tmp_path, capsys, channels):
    for k, mode in enumerate(("RGB", "RGBA", "L", "P")):
        Image.fromarray(PIXELS).convert(mode).save(tmp_path / f"{k}.png")
    argv = ["train", "--dry-run", "--data=folder", f"--data.path={tmp_path}"]
    argv += [f"--data.channels={channels}", "--data.size=8", "--network.width=8"]
    assert main(argv) == 0
    assert f"({channels}, 8, 8)" in capsys.readouterr().out


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is of this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(99_999))), chunk(b"IEND", b""))
    )


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 1)])
def test_fault_21_a_decompression_bomb(refusal, tmp_path, size):
    limit = Image.MAX_IMAGE_PIXELS
    (tmp_path / "good.png").write_bytes(PNG)
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    assert (tmp_path / "bomb.png").stat().st_size < 1000
    line = refusal("folder", tmp_path)
    assert f"{tmp_path / 'bomb.png'}: not a usable picture" in line
    assert "limit" in line
    assert limit == Image.MAX_IMAGE_PIXELS


# --- folders ----------------------------------------------------------------------------------


def test_fault_22_folders_without_pictures(refusal, tmp_path):
    assert f"{tmp_path / 'none'}: no such file or folder" in refusal("folder", tmp_path / "none")
    assert f"{tmp_path}: no pictures" in refusal("folder", tmp_path)
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "notes.txt").write_text("no picture")
    (tmp_path / "cats" / ".hidden.png").write_bytes(PNG)
    (tmp_path / "cats" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert f"{tmp_path}: no pictures" in refusal("folder", tmp_path)


def test_fault_22_what_can_be_read_is_in_an_order_of_names(tmp_path):
    names = ["ä/é 1.png", "ä/z.png", "b/1.png", "ひ/🙂.png"]
    orders = {}
    for root in ("one", "two"):
        for k in (0, 1, 2, 3) if root == "one" else (3, 1, 0, 2):
            file = tmp_path / root / names[k]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(Image.new("L", (4, 4), k)))
        (tmp_path / root / ".cache").mkdir()
        (tmp_path / root / ".cache" / "x.png").write_bytes(b"")
        (tmp_path / root / "b" / "gone.png").symlink_to("nowhere")
        found = image_folder(tmp_path / root, holdout=1, seed=3)
        orders[root] = (found.train.x[:, 0, 0, 0].tolist(), found.test.x[:, 0, 0, 0].tolist())
        assert found.classes == ("b", "ä", "ひ")
    assert orders["one"] == orders["two"]


def test_fault_22_one_class(tmp_path, capsys):
    (tmp_path / "only").mkdir()
    for k in range(20):
        (tmp_path / "only" / f"{k}.png").write_bytes(encoded(Image.new("L", (8, 8), k)))
    argv = ["train", "--dry-run", "--data", "folder", "--data.path", str(tmp_path)]
    assert main([*argv, "--conditional", "--network.width", "8"]) == 0
    assert image_folder(tmp_path).classes == ("only",)


# --- arrays -----------------------------------------------------------------------------------


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def test_fault_23_pickled_arrays_are_never_unpickled(refusal, tmp_path):
    marker = tmp_path / "marker"
    trap = np.array([Trap(marker)], dtype=object)
    np.save(tmp_path / "o.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "o.npz", x=trap)
    (tmp_path / "p.npz").write_bytes(pickle.dumps(Trap(marker)))
    for name in ("o.npy", "o.npz", "p.npz"):
        line = refusal("arrays", tmp_path / name)
        assert f"{tmp_path / name}: damaged or pickled" in line
        with pytest.raises(ValueError, match=name):
            load_moments(tmp_path / name)
    assert not marker.exists()


WIDE = np.full((9, 4, 4), 300)


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        ({"z": WIDE}, (), "holds the keys z; call the examples 'x'"),
        ({"x": WIDE}, (), "array 'x': values are int64"),
        ({"x": WIDE}, ("--data.levels", "256"), "levels run over 300..300, expected 0..255"),
        ({"x": np.full((9, 2), np.nan)}, (), "array 'x': 18 values are NaN"),
        ({"x": np.full((9, 2), 1e300)}, (), "18 values are NaN, infinite or too large"),
        ({"x": np.zeros((2, 2, 2, 2, 2))}, (), "shape (2, 2, 2, 2, 2); expected examples as"),
        ({"x": np.zeros(9, np.int64)}, (), "shape (9,); expected examples as"),
        ({"x": np.zeros((9, 4, 4), complex)}, (), "values are complex128"),
        ({"x": np.zeros((9, 2)), "y": np.full(9, 0.5)}, (), "'y': labels are float64 such as 0.5"),
        ({"x": np.zeros((9, 2)), "y": np.full(9, 2**63)}, (), "labels run up to 9223372036854"),
    ],
)
def test_fault_23_arrays_that_do_not_fit(refusal, tmp_path, content, flags, words):
    file = tmp_path / "x.npz"
    np.savez(file, **content)
    line = refusal("arrays", file, *flags)
    assert str(file) in line
    assert words.removeprefix("array 'x': ") in line


@pytest.mark.parametrize("damage", ["cut", "crc", "text", "header"])
def test_fault_23_damaged_archives(refusal, tmp_path, damage):
    file, inner = tmp_path / "x.npz", io.BytesIO()
    np.savez(file, x=PIXELS[:, :, 0])
    np.save(inner, PIXELS)
    whole = file.read_bytes()
    changed = {
        "cut": whole[: len(whole) // 2],
        "crc": flipped(whole, len(whole) // 2),
        "text": archive(b"text"),
        "header": archive(inner.getvalue().replace(b"(30, 30, 3)", b"(30, 30, (")),
    }
    file.write_bytes(changed[damage])
    assert f"{file}: damaged or pickled" in refusal("arrays", file)


def test_arrays_of_python_2_are_read_in_silence(tmp_path):
    """Sizes were written as 9L; numpy reads them, and warns."""
    inner = io.BytesIO()
    np.save(inner, np.zeros((9, 4), np.float32))
    (tmp_path / "x.npy").write_bytes(inner.getvalue().replace(b"(9, 4), }  ", b"(9L, 4L), }"))
    assert arrays(tmp_path / "x.npy").shape == (4,)


def archive(member: bytes, method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as found:
        found.writestr("x.npy", member)
    return file.getvalue()


def header(shape: str) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("shape", ["(2147483648, 1, 1)", "(99999999999, 9, 9)", f"({2**70}, 1)"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_a_header_that_promises_gigabytes(refusal, tmp_path, forked, shape, suffix):
    file = tmp_path / f"x.{suffix}"
    member = header(shape) + bytes(99)
    file.write_bytes(member if suffix == "npy" else archive(member, zipfile.ZIP_DEFLATED))
    assert grown(forked, lambda: arrays(file)) < 200
    assert f"{file}: damaged or pickled" in refusal("arrays", file)


def test_an_archive_that_grows_to_a_gigabyte(refusal, tmp_path, forked):
    file = tmp_path / "x.npz"
    zeros, found = bytes(2**20), io.BytesIO()
    with (
        zipfile.ZipFile(found, "w", zipfile.ZIP_BZIP2) as made,
        made.open("x.npy", "w", force_zip64=True) as member,
    ):
        member.write(header(f"({2**28}, 1, 1)"))
        for _ in range(2**8):
            member.write(zeros)
    file.write_bytes(found.getvalue())
    assert file.stat().st_size < 10_000
    assert grown(forked, lambda: arrays(file)) < 100
    assert "packed otherwise" in refusal("arrays", file)
    with pytest.raises(ValueError, match="packed otherwise"):
        load_moments(file)


def grown(forked, action) -> int:
    """The megabytes that a process grows by at most while something is refused."""
    resource = pytest.importorskip("resource")

    def measured() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            action()
        except DataError:
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return min((after - before) // 1024, 250)
        return 255

    return forked(measured)[0]


# --- idx --------------------------------------------------------------------------------------

STEMS = [f"{part}-{w}-ubyte" for part in ("train", "t10k") for w in ("images-idx3", "labels-idx1")]


def idx(array: np.ndarray) -> bytes:
    shape = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


IMAGES, LABELS = idx(np.zeros((6, 4, 4), np.uint8)), idx(np.zeros(6, np.uint8))


@pytest.mark.parametrize(
    ("stem", "content", "words"),
    [
        (0, b"\0\0\x0d\3" + IMAGES[4:], "expected idx magic 00 00 08 03, found 00 00 0d 03"),
        (0, b"<html>404</html>", "expected idx magic 00 00 08 03, found 3c 68 74 6d"),
        (0, IMAGES[:-5], "promises 96 bytes (6, 4, 4), found 91"),
        (0, IMAGES + b"\0", "promises 96 bytes (6, 4, 4), found 97"),
        (0, IMAGES[:4] + b"\xff" * 12 + IMAGES[16:], "found 96"),
        (1, idx(np.zeros(5, np.uint8)), "6 images but 5 labels"),
        (3, idx(np.zeros(7, np.uint8)), "6 images but 7 labels"),
        (0, gzip.compress(IMAGES, mtime=0)[:-9], "damaged or unreadable"),
        (0, flipped(gzip.compress(IMAGES, mtime=0), 30), "damaged or unreadable"),
    ],
)
def test_fault_24_idx_files(refusal, tmp_path, stem, content, words):
    for k, name in enumerate(STEMS):
        (tmp_path / name).write_bytes((IMAGES, LABELS)[k % 2])
    file = tmp_path / STEMS[stem]
    if content[:2] == b"\x1f\x8b":
        file.unlink()
        file = file.with_name(f"{file.name}.gz")
    file.write_bytes(content)
    line = refusal("idx", tmp_path)
    assert words in line
    assert file.name in line


# --- what C code prints -----------------------------------------------------------------------


def test_libtiff_does_not_talk_over_the_error(tmp_path, capfd):
    content = bytearray(encoded(Image.fromarray(PIXELS), "tiff", compression="tiff_lzw"))
    for position in range(8, len(content), 7):
        changed = content.copy()
        changed[position] ^= 0xFF
        with suppress(DataError):
            picture_levels(bytes(changed), 8, 3)
    assert capfd.readouterr().err == ""
    os.write(2, b"back")
    assert capfd.readouterr().err == "back"


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("skipping", [False, True])
def test_fault_20_damaged_pictures_are_left_out_and_counted_where_asked(tmp_path, skipping):
    for k in range(6):
        (tmp_path / f"{k}.png").write_bytes(PNG if k else PNG[:-30])
    if not skipping:
        with pytest.raises(DataError, match=r"0\.png"):
            image_folder(tmp_path)
        return
    found = image_folder(tmp_path, on_error="skip")
    assert len(found.train) + len(found.test) == 5
    assert found.skipped == 1
    assert found.notes == ("left out 1 damaged picture: 0.png",)


def test_fault_20_what_is_left_out_is_said_by_a_run(tmp_path, capsys):
    for k in range(8):
        (tmp_path / f"{k}.png").write_bytes(PNG if k else b"")
    argv = ["train", f"--out={tmp_path / 'run'}", "--data=folder", f"--data.path={tmp_path}"]
    argv += ["--data.on-error=skip", "--data.size=8", "--network.width=8", "--train.steps=1"]
    argv += ["--train.batch=2", "--train.holdout=0", "--train.no-keep-best", "--sample.steps=2"]
    assert main([*argv, "--device=cpu"]) == 0
    assert "left out 1 damaged picture: 0.png" in capsys.readouterr().out


def test_a_long_decoding_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    for k in range(8):
        (tmp_path / f"{k}.png").write_bytes(PNG)
    argv = ["train", f"--out={tmp_path / 'run'}", "--data=folder", f"--data.path={tmp_path}"]
    argv += ["--data.size=8", "--network.width=8", "--train.steps=1", "--train.batch=2"]
    argv += ["--train.holdout=0", "--train.no-keep-best", "--sample.steps=2"]
    for dry in (["--dry-run"], []):
        assert main([*argv, "--device=cpu", *dry]) == 0
        assert "decoding pictures 7/8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../out.png", "/out.png", "a/../../out.png", "C:/out.png"])
def test_fault_25_names_that_lead_out_of_an_archive(refusal, tmp_path, name):
    path = packed(tmp_path / "pictures.zip", {"a/1.png": PNG, name: PNG})
    before = sorted(tmp_path.rglob("*"))
    assert f"{path}: member {name!r} leads out of the archive" in refusal("folder", path)
    assert sorted(tmp_path.rglob("*")) == before


def test_fault_25_an_archive_is_read_as_the_folder_it_packs_and_not_extracted(tmp_path):
    members = {f"{group}/{k}.png": PNG for group in "ab" for k in range(4)}
    for name, content in members.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(content)
    path = packed(tmp_path / "folder.zip", members)
    ours, theirs = image_folder(path), image_folder(tmp_path / "folder")
    assert torch.equal(ours.train.x, theirs.train.x)
    assert torch.equal(ours.train.label, theirs.train.label)
    assert (ours.name, ours.classes) == (theirs.name, theirs.classes)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "folder.zip"]


def test_fault_25_a_member_that_unpacks_to_too_much(refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(albums, "LARGEST_MEMBER", len(PNG) - 1)
    path = packed(tmp_path / "pictures.zip", {f"a/{k}.png": PNG for k in range(4)})
    assert "a/0.png: unpacks to" in refusal("folder", path)


def test_fault_25_a_damaged_archive(refusal, tmp_path):
    path = packed(tmp_path / "pictures.zip", {"a/1.png": PNG, "a/2.png": PNG})
    path.write_bytes(path.read_bytes()[:-20])
    assert f"{path}: damaged or no zip archive" in refusal("folder", path)


@pytest.mark.parametrize("sign", ["{0}\\{1}", "./{0}/{1}", "{0}//{1}"])
def test_fault_25_folders_in_an_archive_however_they_are_packed(tmp_path, sign):
    names = [sign.format(group, f"{k}.png") for group in "ab" for k in range(3)]
    found = image_folder(packed(tmp_path / "pictures.zip", dict.fromkeys(names, PNG)))
    assert found.classes == ("a", "b")
    loose = [sign.format(".", f"{k}.png") for k in range(3)]
    assert image_folder(packed(tmp_path / "loose.zip", dict.fromkeys(loose, PNG))).classes is None


def test_fault_25_a_picture_that_comes_twice_under_two_signs(refusal, tmp_path):
    path = packed(tmp_path / "pictures.zip", {"a/1.png": PNG, "a\\1.png": PNG})
    assert "member 'a/1.png' comes twice" in refusal("folder", path)


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_fault_25_a_damaged_member_of_every_method(refusal, tmp_path, method):
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w", method) as made:
        for k in range(4):
            made.writestr(f"a/{k}.png", PNG)
    content = bytearray(path.read_bytes())
    begin = content.index(b"a/1.png") + len("a/1.png") + 12
    content[begin : begin + 20] = bytes(byte ^ 0xFF for byte in content[begin : begin + 20])
    path.write_bytes(content)
    assert "a/1.png: damaged" in refusal("folder", path)


def test_fault_25_an_encrypted_member(refusal, tmp_path):
    path = packed(tmp_path / "pictures.zip", {f"a/{k}.png": PNG for k in range(3)})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert "member 'a/0.png' is encrypted" in refusal("folder", path)
