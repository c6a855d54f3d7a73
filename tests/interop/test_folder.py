"""Folders of diffusers that cannot be read: one line with the file and the remedy."""

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import scoresde as ss
from scoresde.cli.main import main
from scoresde.interop.folder import Folder, FolderError, fitted
from scoresde.interop.modules import CLASSES, hollow, renamed
from scoresde.interop.pipelines import names, read_folder
from scoresde.parameterization import v

INDEX = {
    "_class_name": "DDPMPipeline",
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}
STEM = "diffusion_pytorch_model"


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with one tensor for weights."""
    path = tmp_path / "pipeline"
    for part in ("unet", "scheduler"):
        (path / part).mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps(INDEX))
    (path / "unet" / "config.json").write_text(json.dumps({"sample_size": 8}))
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps({}))
    save_file({"a": torch.arange(4.0)}, path / "unet" / f"{STEM}.safetensors")
    return path


@pytest.fixture
def refusal(capsys, tmp_path):
    """The one line that the commands refuse a folder with."""

    def of(path: Path, *more: str) -> str:
        lines = []
        for command in (
            ["sample", "--checkpoint", str(path), "--out", str(tmp_path / "out"), *more],
            ["info", str(path)],
        ):
            assert main(command) == 2
            text = capsys.readouterr().err.splitlines()
            assert len(text) == 1, text
            lines += text
            if more:
                break
        assert len(set(lines)) == 1, lines
        assert str(path) in lines[0]
        assert not (tmp_path / "out").exists()
        return lines[0]

    return of


def test_weights_of_shards_and_variants(folder):
    part = folder / "unet"
    assert torch.equal(Folder(folder).weights("unet")["a"], torch.arange(4.0))
    save_file({"a": torch.ones(4).half()}, part / f"{STEM}.fp16.safetensors")
    read = Folder(folder, "fp16")
    assert read.variants() == ["fp16"]
    assert read.weights("unet")["a"].dtype == torch.float16
    assert read.weights("unet", torch.float64)["a"].dtype == torch.float64
    (part / f"{STEM}.fp16.safetensors").unlink()
    for k in (1, 2):
        save_file({f"b{k}": torch.ones(k)}, part / f"{STEM}.fp16-0000{k}-of-00002.safetensors")
    places = {f"b{k}": f"{STEM}.fp16-0000{k}-of-00002.safetensors" for k in (1, 2)}
    index = part / f"{STEM}.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert {k: len(v) for k, v in Folder(folder, "fp16").weights("unet").items()} == {
        "b1": 1,
        "b2": 2,
    }
    # A part without the variant has its plain weights read; without these they are named.
    assert [*Folder(folder).weights("unet")] == ["a"]
    (part / f"{STEM}.safetensors").unlink()
    with pytest.raises(FolderError, match=r"variants fp16 only; give variant, such as fp16"):
        Folder(folder).weights("unet")


def test_no_index(folder, refusal):
    (folder / "model_index.json").unlink()
    assert "model_index.json is missing; use a complete copy" in refusal(folder)
    assert "a single model without its scheduler" in refusal(folder / "unet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "damaged"),
        (b"\xff\xfe\x00", "damaged"),
        (b"[1]", "need an object of JSON, got list"),
        (b"{}", "damaged (no _class_name)"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"_class_name": "AudioPipeline"}', "AudioPipeline is not read; these pipelines are:"),
    ],
)
def test_a_damaged_or_foreign_index(folder, refusal, text, message):
    (folder / "model_index.json").write_bytes(text)
    assert message in refusal(folder)


def test_an_endless_index(folder, monkeypatch):
    monkeypatch.setattr("scoresde.interop.folder.LONGEST", 10)
    with pytest.raises(FolderError, match="longer than 10 bytes"):
        Folder(folder)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (["diffusers", "UNet3DModel"], "unet is diffusers.UNet3DModel, which is not read"),
        (["my_code", "UNet2DModel"], "unet is my_code.UNet2DModel, which is not read"),
        (["os", "system"], "unet is os.system, which is not read"),
        (["diffusers", "CLIPTextModel"], "unet is diffusers.CLIPTextModel, which is not read"),
        ("UNet2DModel", "need [library, class]"),
        ([None, None], "without unet"),
    ],
)
def test_an_unknown_class(folder, refusal, part, message):
    (folder / "model_index.json").write_text(json.dumps(INDEX | {"unet": part}))
    line = refusal(folder)
    assert message in line
    if "is not read" in line:
        assert all(name in line for name in CLASSES)


def test_pickles_are_refused_unread(folder, refusal):
    class Run:
        def __reduce__(self):
            return (Path(folder / "ran").write_text, ("",))

    weights = folder / "unet" / f"{STEM}.safetensors"
    weights.unlink()
    line = refusal(folder)
    assert "no weights" in line
    for name in (f"{STEM}.bin", "model.ckpt"):
        (folder / "unet" / name).write_bytes(pickle.dumps(Run()))
        line = refusal(folder)
        assert "refused" in line
        assert "save_pretrained(folder, safe_serialization=True)" in line
        (folder / "unet" / name).unlink()
    assert not (folder / "ran").exists()


def test_a_missing_shard_and_paths_outside(folder, refusal):
    part = folder / "unet"
    (part / f"{STEM}.safetensors").unlink()
    index = part / f"{STEM}.safetensors.index.json"
    for name, message in (
        ("b.safetensors", "b.safetensors: no such file, and"),
        ("../../b.safetensors", "is outside the folder; refused"),
        ("..\\b.safetensors", "is outside the folder; refused"),
        ("b.bin", "b.bin is no safetensors; refused"),
    ):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        assert message in refusal(folder)
    for damaged in ({}, {"weight_map": []}, {"weight_map": {"a": 3}}):
        index.write_text(json.dumps(damaged))
        assert "damaged (weight_map)" in refusal(folder)
    with pytest.raises(FolderError, match="outside the folder"):
        Folder(folder).json("/etc/passwd.json")


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file[: len(file) // 2],
        lambda file: b"",
        lambda file: b"\x00" * len(file),
        lambda file: struct.pack("<Q", 2**62) + file[8:],
        lambda file: file + b"more",
    ],
)
def test_damaged_weights(folder, damage):
    file = folder / "unet" / f"{STEM}.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(FolderError, match="damaged or not safetensors") as found:
        Folder(folder).weights("unet")
    assert str(file) in str(found.value)


def test_weights_that_do_not_fit():
    shapes = {"a": torch.Size([2]), "b": torch.Size([3])}
    a, b = torch.ones(2), torch.ones(3)
    fitted({"a": a}, shapes, {"b"}, Path("w"))
    for found, message in (
        ({"a": a}, "w: 1 tensors are missing (b)"),
        ({"a": a, "b": b, "c": b}, "w: 1 tensors that its class does not have (c)"),
        ({"a": b, "b": b}, "w: a has the shape (3,), and config.json says (2,)"),
    ):
        with pytest.raises(FolderError, match="of different models") as error:
            fitted(found, shapes, set(), Path("w"))
        assert str(error.value).startswith(message)


def test_without_diffusers(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(FolderError, match=r"pip install scoresde\[diffusers\]"):
        read_folder(Folder(folder))


def test_nothing_of_other_libraries_is_imported_until_a_folder_is_read():
    script = "import sys, scoresde.interop.pipelines, scoresde.runs.load, scoresde.cli.sample;"
    script += "print(*{m.partition('.')[0] for m in sys.modules})"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert not {"diffusers", "transformers", "tokenizers"} & {*found.stdout.decode().split()}


def test_flags_that_do_not_go_together(folder, refusal, tmp_path):
    for flags in (["--no-ema"], ["--ema-decay", "0.9"], ["--ema-width", "0.1"]):
        assert "holds one set of weights" in refusal(folder, *flags)
    assert "no weights of the variant 'fp16'; it has none" in refusal(folder, "--variant", "fp16")
    with pytest.raises(ValueError, match=r"dtype: need one of float32, .*, got 'int8'"):
        ss.load(folder, dtype="int8")
    with pytest.raises(ValueError, match="variant: is for a folder of diffusers"):
        ss.load(tmp_path / "model.pt", variant="fp16")
    with pytest.raises(ValueError, match="has its own model"):
        ss.load(folder, model=ss.ScoreModel(torch.nn.Identity(), ss.VP(), v))


def test_modules_are_built_without_their_weights():
    """Parameters take no memory; buffers, of which files do not hold all, are real."""
    with hollow():
        layer = torch.nn.BatchNorm1d(3)
    assert layer.weight.is_meta
    assert layer.running_var.tolist() == [1, 1, 1]
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_old_keys():
    own = torch.nn.ModuleDict({"to_q": torch.nn.Linear(2, 2), "query": torch.nn.Linear(2, 2)})
    net = torch.nn.ModuleDict({"old": own})
    keys = [f"old.{name}.{end}" for name in ("to_q", "query") for end in ("weight", "bias")]
    # A module that has both keeps them apart.
    assert [*renamed(dict.fromkeys(keys, torch.ones(1)), net)] == keys
    del own["query"]
    assert [*renamed({"old.query.bias": torch.ones(1)}, net)] == ["old.to_q.bias"]
    prefixed = {
        "text_model.old.to_q.bias": torch.ones(1),
        "text_model.position_ids": torch.ones(1),
    }
    assert [*renamed(prefixed, net)] == ["old.to_q.bias"]


def test_names_of_classes():
    words = {"0": "great white shark, white shark", "1": "crane", "2": "crane, bird", "4": ""}
    assert names(words, 5) == ("great white shark", "crane 1", "crane 2", "3", "4")
    assert names(None, 2) == ("0", "1")
