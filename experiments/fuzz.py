"""Give random configurations and damaged files to every reader: it works, or says why in one line.

    python experiments/fuzz.py [--count 2000] [--seed 0] [--out experiments/results/fuzz.json]

Configurations are trees of the schema with wrong names, types and extreme numbers, and oddities of
YAML; files (checkpoints, weights, npz, npy, idx, pictures) are intact ones with flipped bits, cut,
spliced, zeroed, put together anew with right checksums, or a pickle that would make a file. A
reader may return or raise its own error of one line. It may not raise anything else, warn, print,
run what it reads, or take more than ``SECONDS``. Counts by kind and outcome are stored.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import platform
import signal
import struct
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn, get_args

import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from scoresde.arguments import Argument, unwrapped
from scoresde.config import (
    Config,
    ConfigError,
    build_dataset,
    build_model,
    load_config,
    to_plain,
    to_yaml,
)
from scoresde.config.sections import Group, contents, default, keys, options
from scoresde.data import DataError, arrays, idx_folder, image_folder
from scoresde.evaluation import load_moments
from scoresde.latent import KLAutoencoder
from scoresde.latent.files import save_codec
from scoresde.registry import Table
from scoresde.runs.load_codec import load_codec
from scoresde.training import checkpoint as checkpoints
from scoresde.training.loop import update as step
from scoresde.training.state import TrainState

SECONDS = 20.0
"""What a file may take; they are of some kilobytes."""
MARKER = Path(tempfile.gettempdir()) / f"scoresde-fuzz-{os.getpid()}"
"""What a payload makes where it is run."""


class Case(NamedTuple):
    """A file to be read: how it was made, its name and its bytes."""

    how: str
    name: str
    content: bytes


@dataclass(frozen=True)
class Kind:
    """A kind of input: its cases, its reader, and the errors the reader may raise."""

    name: str
    cases: st.SearchStrategy[Case]
    read: Callable[[Path], object]
    errors: tuple[type[Exception], ...]


class Hang(BaseException):
    """A case that took too long; no reader can mistake it for damage."""


class Payload:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return (Path.touch, (MARKER,))


# One case -------------------------------------------------------------------------------------


def outcome(kind: Kind, case: Case, folder: Path) -> str:
    """ "read" or "refused"; raises AssertionError, or what the reader raised, for all else."""
    path = folder / case.name
    path.write_bytes(case.content)
    with printing() as printed, warnings.catch_warnings(), limited(SECONDS):
        warnings.simplefilter("error")
        try:
            kind.read(path)
            found = "read"
        except kind.errors as error:
            found = said(str(error))
    assert not printed.getvalue(), f"printed {printed.getvalue()[:200]!r}"
    assert not MARKER.exists(), "a payload was run"
    return found


def said(message: str) -> str:
    """ "refused", the message being one line to read."""
    assert message.strip(), "an error that says nothing"
    assert "\n" not in message, f"more than a line: {message}"
    assert len(message) < 20_000, f"{len(message)} characters"
    return "refused"


@contextmanager
def printing() -> Iterator[io.BytesIO]:
    """What is written to standard error inside, by libraries in C too."""
    found, kept = io.BytesIO(), os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            found.write(file.read())


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise Hang where it takes longer inside."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Hang(f"more than {seconds:g} s")

    handler, begin = signal.signal(signal.SIGALRM, stop), time.monotonic()
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        after = max(left - (time.monotonic() - begin), 0.001) if left else 0.0
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, after, every)  # that of a test runner


# Intact files ---------------------------------------------------------------------------------

TINY = {
    "data.kind": "moons",
    "data.train": 8,
    "data.test": 4,
    "network.kind": "mlp",
    "network.width": 4,
    "network.depth": 1,
    "network.embedding": 4,
}


@cache
def intact() -> dict[str, bytes]:
    """A good file of every format, by its name."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 5, 4), np.uint8)
    label = np.arange(6, dtype=np.uint8) % 2
    found = {
        "x.npz": saved(np.savez, x=pixels, y=label),
        "packed.npz": saved(np.savez_compressed, images=pixels, labels=label),
        "x.npy": saved(np.save, rng.normal(size=(6, 2))),
        "moments.npz": saved(np.savez, mu=np.zeros(3), sigma=np.eye(3), features=np.array("a")),
        "images-ubyte": b"\0\0\x08\x03" + struct.pack(">3I", *pixels.shape) + pixels.tobytes(),
        "labels-ubyte": b"\0\0\x08\x01" + struct.pack(">I", 6) + label.tobytes(),
    }
    for suffix in ("png", "jpg", "gif", "bmp", "tif", "webp"):
        found[f"a.{suffix}"] = picture(Image.fromarray(pixels[:, :, :3].repeat(3, 0)), suffix)
    found["p.png"] = picture(Image.fromarray(pixels[:, :, :3]).convert("P"), "png")
    found["z.tif"] = picture(Image.fromarray(pixels[0]), "tif", compression="tiff_lzw")
    return found | trained()


def saved(save: Callable[..., None], *content: np.ndarray, **named: np.ndarray) -> bytes:
    """What numpy writes."""
    file = io.BytesIO()
    save(file, *content, **named)
    return file.getvalue()


def picture(image: Image.Image, suffix: str, **how: Any) -> bytes:
    """What Pillow writes."""
    file = io.BytesIO()
    image.save(file, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix), **how)
    return file.getvalue()


def trained() -> dict[str, bytes]:
    """A checkpoint after an update, its exported weights, and a codec."""
    from scoresde.config import build_plan

    config = load_config(None, TINY)
    data = build_dataset(config.data)
    model = build_model(config, data)
    plan = build_plan(config, data)
    state = TrainState.of(model, plan)
    step(state, plan, data.train, data.scaling)
    whole = checkpoints.Checkpoint(
        to_plain(config),
        checkpoints.describe(data),
        state.step,
        state.model.state_dict(),
        state.ema.state_dict(),
        state.optimizer.state_dict(),
        checkpoints.Best(1, 0.5),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        checkpoints.save(path / "model.pt", whole)
        checkpoints.export_weights(path / "w.safetensors", whole)
        codec = KLAutoencoder(1, 2, widths=(4, 4), groups=2)
        codec.data = checkpoints.describe(data)
        save_codec(path / "codec.safetensors", codec)
        return {file.name: file.read_bytes() for file in path.iterdir()}


# Damage ---------------------------------------------------------------------------------------

Damage = Callable[[st.DrawFn, bytes], bytes]


def place(draw: st.DrawFn, content: bytes) -> int:
    """A position in a file, the ends as likely as the middle."""
    last = max(len(content) - 1, 0)
    near = st.integers(0, min(64, last))
    return draw(st.one_of(st.integers(0, last), near, near.map(lambda n: last - n)))


def flipped(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bits turned."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 8)) if content else 0):
        changed[place(draw, content)] ^= 1 << draw(st.integers(0, 7))
    return bytes(changed)


def cut(draw: st.DrawFn, content: bytes) -> bytes:
    """The end lost, or the beginning."""
    at = place(draw, content)
    return content[:at] if draw(st.booleans()) else content[at:]


def zeroed(draw: st.DrawFn, content: bytes) -> bytes:
    """A run of zeros, as a disk leaves that lost a block."""
    at = place(draw, content)
    n = min(draw(st.integers(1, 512)), len(content) - at)
    return content[:at] + bytes(n) + content[at + n :]


def spliced(draw: st.DrawFn, content: bytes) -> bytes:
    """A piece of some file, put in or over."""
    other = intact()[draw(st.sampled_from(sorted(intact())))]
    begin, at = place(draw, other), place(draw, content)
    piece = other[begin : begin + draw(st.integers(1, 256))]
    return content[:at] + piece + content[at + draw(st.sampled_from((0, len(piece)))) :]


def overwritten(draw: st.DrawFn, content: bytes) -> bytes:
    """Numbers at the edges of their types, where a size may be read."""
    numbers = (
        b"\xff\xff\xff\xff",
        b"\x7f\xff\xff\xff",
        b"\x80\0\0\0",
        b"\xff\xff\xff\x7f",
        bytes(4),
    )
    at = place(draw, content)
    return content[:at] + draw(st.sampled_from(numbers)) + content[at + 4 :]


def replaced(draw: st.DrawFn, content: bytes) -> bytes:
    """Another file under this name."""
    pickled = pickle.dumps(Payload(), draw(st.integers(0, 5)))
    others = [b"", b"<html>404 Not Found</html>", b"PK\x05\x06" + bytes(18), b"\x1f\x8b", pickled]
    return draw(
        st.one_of(st.sampled_from(others + list(intact().values())), st.binary(max_size=64))
    )


PLAIN: tuple[Damage, ...] = (flipped, cut, zeroed, spliced, overwritten, replaced)


def inside_zip(draw: st.DrawFn, content: bytes) -> bytes:
    """The members damaged, swapped, renamed, dropped or packed otherwise, every checksum right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        held = [(name, archive.read(name)) for name in archive.namelist()]
    i, j = (draw(st.integers(0, len(held) - 1)) for _ in "ij")
    match draw(st.sampled_from(("inner", "inner", "inner", "swap", "drop", "rename", "payload"))):
        case "inner":
            held[i] = held[i][0], damaged(draw, held[i][1], PLAIN)
        case "swap":
            held[i], held[j] = (held[i][0], held[j][1]), (held[j][0], held[i][1])
        case "drop":
            del held[i]
        case "rename":
            names = ("../evil", "/etc/evil", "x.npy", "x", "", "data.pkl", "y.npy")
            held[i] = draw(st.sampled_from(names)), held[i][1]
        case _:
            held[i] = held[i][0], pickle.dumps(Payload(), 2)
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return zipped(held, draw(st.sampled_from((*methods[:1] * 4, *methods[1:]))))


def zipped(held: list[tuple[str, bytes]], method: int) -> bytes:
    """A zip file; of a name twice too."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, member in held:
            archive.writestr(zipfile.ZipInfo(name), member, method)
    return file.getvalue()


def header_of_npy(draw: st.DrawFn, content: bytes) -> bytes:
    """The text in front of an array changed: its type, order and shape are Python literals."""
    shapes = ("()", "(0,)", "(-1,)", "(2, 3)", "(10**9,)", f"({2**63},)", f"({2**40}, {2**40})")
    shapes += ("(4294967296,)", "6", "(6L, 2L)", "(1.5,)", "'x'", "(" * 300)
    types = ("'<f8'", "'|O'", "'|u1'", "'>i4'", "'<c16'", "'|V0'", "'|S0'", "'<U9'", "'<M8[s]'")
    types += ("'bogus'", "[('a', '<f8')]", "None", "'|b1'", "'<f2'", "'a5'", "3")
    descr, shape = draw(st.sampled_from(types)), draw(st.sampled_from(shapes))
    order = draw(st.sampled_from(("False", "True", "0")))
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text = draw(st.sampled_from((text, text, text, text.replace("'shape'", "shape"), text[:-9])))
    version = draw(st.sampled_from((b"\1\0", b"\2\0", b"\3\0", b"\x09\0")))
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(text) + 1)
    return b"\x93NUMPY" + version + size + text.encode() + b"\n" + content[-96:]


def header_in_npz(draw: st.DrawFn, content: bytes) -> bytes:
    """Such an array in an archive, or text or a pickle in its place."""
    inner = draw(st.sampled_from(("header", "header", "text", "pickle")))
    made = {
        "header": partial(header_of_npy, draw, content),
        "text": lambda: b"text",
        "pickle": lambda: saved(partial(np.save, allow_pickle=True), np.array([Payload()])),
    }[inner]()
    return zipped([("x.npy", made), ("mu.npy", made)], draw(st.sampled_from((0, 8))))


def inside_gzip(draw: st.DrawFn, content: bytes) -> bytes:
    """Packed anew, damaged before or after."""
    if draw(st.booleans()):
        return gzip.compress(damaged(draw, content, PLAIN), mtime=0)
    return damaged(draw, gzip.compress(content, mtime=0), PLAIN)


def header_of_safetensors(draw: st.DrawFn, content: bytes) -> bytes:
    """The JSON in front changed, its length right."""
    size = struct.unpack("<Q", content[:8])[0]
    head = damaged(draw, content[8 : 8 + size], PLAIN)
    return struct.pack("<Q", len(head)) + head + content[8 + size :]


def damaged(draw: st.DrawFn, content: bytes, ways: tuple[Damage, ...]) -> bytes:
    """In one of the ways."""
    return draw(st.sampled_from(ways))(draw, content)


@st.composite
def files(draw: st.DrawFn, names: tuple[str, ...], ways: tuple[Damage, ...]) -> Case:
    """One of the intact files, damaged in one of the ways."""
    name, way = draw(st.sampled_from(names)), draw(st.sampled_from(ways))
    return Case(f"{name} {way.__name__}", name, way(draw, intact()[name]))


# Configurations -------------------------------------------------------------------------------

NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, -(2**70), 10**30, 10**400, 0.5, 1e-320, 1e308)
NUMBERS += (float("inf"), float("nan"))
ODD: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(NUMBERS),
        st.text(max_size=8),
        st.dates(),
        st.binary(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=4), st.integers(), st.none()), inner, max_size=3
        ),
    ),
    max_leaves=6,
)
LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 40)
)
LAUGHING_KEYS = "a0: &a0 {lr: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 40)
)
ODDITIES = (
    LAUGHS,
    LAUGHS + "train: {lr: *a39}",
    LAUGHING_KEYS + "train: *a39",
    "train: &t {lr: *t}",
    "&a [*a]",
    "&a {train: *a}",
    "train: {<<: 3}",
    "train: {<<: {lr: 1}, lr: 2}",
    "seed: *missing",
    f"seed: !!python/object/apply:pathlib.Path.touch ['{MARKER}']",
    f"!!python/object/new:os.system ['touch {MARKER}']",
    "seed: !!python/name:os.system",
    "seed: !!int abc",
    "seed: !!bool perhaps",
    "seed: !!float x",
    "seed: !!timestamp x",
    "seed: !!binary '*'",
    "seed: !!set {a, b}",
    "seed: !!omap [a: 1]",
    "seed: !own 3",
    "seed: 2001-99-99",
    "seed: 2001-01-01",
    "seed: 0b_",
    "seed: 0x_",
    "seed: 1:99",
    "seed: " + "9" * 5000,
    "seed: 1e" + "9" * 400,
    "? [a, b]\n: 1",
    "? {a: 1}\n: 1",
    "1: 2",
    "null: 2",
    "1.5: 2",
    "~: {~: ~}",
    "train: {1: 2, '1': 3}",
    "[" * 5000,
    "{a: " * 5000,
    "- " * 5000,
    "train: " + "[" * 3000 + "]" * 3000,
    "---\nseed: 1\n---\nseed: 2",
    "%YAML 9.9\n---\nseed: 1",
    "%TAG ! x\n---\n",
    "seed: |\n  text",
    "\ufeffseed: 1",
    "seed: \x00",
    "\tseed: 1",
    "seed: 'open",
    "kind: vp",
    "sde: {kind: [vp]}",
    "sde: {kind: {a: 1}}",
    "sde: {kind: 3}",
    "sde: {kind: null}",
    "data: {kind: true}",
    "train: {posthoc: {0.1: 0.2}}",
    "network: {multipliers: [[1]]}",
    "train: {batch: '1e3', lr: '١'}",
    "'train.lr': 1",
    "'': {'': 1}",
)


def section(source: Any, kind: str | None = None) -> st.SearchStrategy[dict[Any, Any]]:
    """A tree of a section: right and wrong values under right and wrong keys."""
    fields = {name: value_of(argument) for name, argument in keys(source, kind).items()}
    right = st.fixed_dictionaries({} if kind is None else {"kind": st.just(kind)}, optional=fields)
    strange = st.dictionaries(
        st.one_of(st.sampled_from([*sorted(fields), "x"]), st.text()), ODD, max_size=2
    )
    return st.builds(lambda a, b: a | b, right, st.one_of(st.just({}), st.just({}), strange))


def value_of(argument: Argument) -> st.SearchStrategy[Any]:
    """A value for a key: its default, another of its type, a section, or something odd."""
    source = contents(argument)
    if isinstance(source, Table) and source.constructs:
        return st.one_of(*(section(source, kind) for kind in source), ODD)
    if isinstance(source, Group):
        return st.one_of(section(source), ODD)
    words = list(source) if source else get_args(unwrapped(argument.type)[0])
    words = [word for word in words if isinstance(word, str)]
    return st.one_of(
        st.just(default(argument)),
        st.integers(0, 2000),
        st.floats(),
        st.sampled_from([*words, "x"]),
        ODD,
    )


TREES = section(Group((Config,))).map(lambda tree: yaml.dump(tree, allow_unicode=True).encode())


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """An oddity of YAML, alone or after something sensible, or a good file damaged."""
    if draw(st.booleans()):
        return damaged(draw, to_yaml(load_config(None, TINY)).encode(), PLAIN)
    before = draw(st.sampled_from(("", "", "conditional: false\n", "data: moons\n")))
    return (before + draw(st.sampled_from(ODDITIES))).encode()


def configured(path: Path) -> None:
    """Read a configuration, and what is written of it."""
    config = load_config(path)
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


@st.composite
def overrides(draw: st.DrawFn) -> bytes:
    """Dotted keys, known and not, with fit and unfit values as text."""
    keys = st.one_of(
        st.sampled_from([name for name, _ in options(Group((Config,)))]), st.text(max_size=6)
    )
    values = st.one_of(st.text(max_size=6), st.sampled_from(NUMBERS).map(str), st.just("vp"))
    return json.dumps(draw(st.dictionaries(keys, values, max_size=6))).encode()


def overridden(path: Path) -> None:
    """The configuration of overrides."""
    load_config(None, json.loads(path.read_text()))


# All of it ------------------------------------------------------------------------------------


def read_idx_folder(path: Path) -> None:
    """The file as the images, or the labels, of a set that is intact otherwise."""
    good, suffix = intact(), ".gz" if path.suffix == ".gz" else ""
    what = "images" if path.name.startswith("images") else "labels"
    with tempfile.TemporaryDirectory() as name:
        for part in ("train", "t10k"):
            for which, rank in (("images", 3), ("labels", 1)):
                content = good[f"{which}-ubyte"]
                (Path(name) / f"{part}-{which}-idx{rank}-ubyte").write_bytes(content)
        old = Path(name) / f"train-{what}-idx{3 if what == 'images' else 1}-ubyte"
        old.unlink()
        old.with_name(old.name + suffix).write_bytes(path.read_bytes())
        idx_folder(name)


def read_pictures(path: Path) -> None:
    """The picture beside a good one."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / f"0{path.suffix}").write_bytes(path.read_bytes())
        (Path(name) / "1.png").write_bytes(intact()["a.png"])
        image_folder(name, size=4, channels=3, holdout=1)


@st.composite
def gzipped(draw: st.DrawFn) -> Case:
    """An idx file in gzip."""
    name = draw(st.sampled_from(("images-ubyte", "labels-ubyte")))
    return Case(f"{name}.gz", f"{name}.gz", inside_gzip(draw, intact()[name]))


PICTURES = ("a.png", "a.jpg", "a.gif", "a.bmp", "a.tif", "a.webp", "p.png", "z.tif")
ZIPS = (*PLAIN, inside_zip, inside_zip, inside_zip)
CHECKPOINT = (checkpoints.CheckpointError,)
KINDS = (
    Kind("config trees", TREES.map(partial(Case, "tree", "c.yaml")), configured, (ConfigError,)),
    Kind("config texts", texts().map(partial(Case, "text", "c.yaml")), configured, (ConfigError,)),
    Kind(
        "overrides",
        overrides().map(partial(Case, "mapping", "overrides.json")),
        overridden,
        (ConfigError,),
    ),
    Kind("checkpoint", files(("model.pt",), ZIPS), checkpoints.load, CHECKPOINT),
    Kind(
        "weights",
        files(("w.safetensors",), (*PLAIN, header_of_safetensors)),
        checkpoints.load_weights,
        CHECKPOINT,
    ),
    Kind(
        "codec",
        files(("codec.safetensors",), (*PLAIN, header_of_safetensors)),
        load_codec,
        (ValueError,),
    ),
    Kind(
        "npz",
        files(("x.npz", "packed.npz"), (*ZIPS, header_in_npz, header_in_npz)),
        arrays,
        (DataError,),
    ),
    Kind("npy", files(("x.npy",), (*PLAIN, header_of_npy, header_of_npy)), arrays, (DataError,)),
    Kind("idx", files(("images-ubyte", "labels-ubyte"), PLAIN), read_idx_folder, (DataError,)),
    Kind("idx.gz", gzipped(), read_idx_folder, (DataError,)),
    Kind("picture", files(PICTURES, PLAIN), read_pictures, (DataError,)),
    Kind(
        "statistics",
        files(("moments.npz",), (*ZIPS, header_in_npz)),
        load_moments,
        (ValueError,),
    ),
)


def quiet(examples: int, start: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Settings of hypothesis: so many cases from a seed, none kept, none shrunk."""
    chosen = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: seed(start)(chosen(test))


def counted(kind: Kind, examples: int, start: int, folder: Path) -> tuple[Counter, list[str]]:
    """How often each outcome came, and what went wrong."""
    found: Counter[str] = Counter()
    wrong: list[str] = []

    @quiet(examples, start)
    @given(case=kind.cases)
    def every(case: Case) -> None:
        try:
            found[outcome(kind, case, folder)] += 1
        except (Exception, Hang) as error:
            found["failed"] += 1
            wrong.append(f"{kind.name}, {case.how}: {type(error).__name__}: {error}"[:400])
            MARKER.unlink(missing_ok=True)

    every()
    return found, wrong


def main() -> int:
    """Try, print, store; 1 where anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[kind.name for kind in KINDS])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "fuzz.json"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [kind for kind in KINDS if args.only in (None, kind.name)]
    results: dict[str, dict[str, int]] = {}
    failures: list[str] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for i, kind in enumerate(chosen):
            share = (args.count * (i + 1)) // len(chosen) - (args.count * i) // len(chosen)
            found, wrong = counted(kind, share, args.seed, Path(folder))
            results[kind.name] = {name: found[name] for name in ("read", "refused", "failed")}
            print(f"{kind.name:>14}  {results[kind.name]}", flush=True)
            failures += wrong
    for line in failures:
        print(ascii(line))
    stored = {
        "hardware": f"one thread of an {platform.machine()} CPU",
        "seed": args.seed,
        "cases": sum(sum(row.values()) for row in results.values()),
        "failed": len(failures),
        "seconds": round(time.monotonic() - begin, 1),
        "kinds": results,
    }
    args.out.write_text(json.dumps(stored, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
