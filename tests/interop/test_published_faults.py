"""Wrong, damaged and dangerous checkpoints of other programs: one line that names the remedy."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from scoresde.cli.main import main
from scoresde.interop.published import FORMATS, PublishedError, edm, read
from scoresde.interop.published.file import read_file
from scoresde.runs.importing import import_model
from tests.interop.test_published import (
    FLAGS,
    SAID_VP,
    SONG,
    VE,
    VP,
    edm_file,
    guided_file,
    lucid_file,
    score_sde_file,
    written,
)


class Runs:
    """An object that would run code if it were unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it was run",))


def refused(match, *arguments, **named):
    with pytest.raises(ValueError, match=match) as caught:
        import_model(*arguments, **named)
    assert "\n" not in str(caught.value)


def changed(file, change):
    """A torch file with changed contents."""
    contents = torch.load(file, weights_only=True)
    change(contents)
    torch.save(contents, file)


@pytest.fixture
def guided(tmp_path):
    guided_file(tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_pickles_are_never_opened(tmp_path):
    snapshot = tmp_path / "network-snapshot.pkl"
    snapshot.write_bytes(pickle.dumps({"ema": Runs()}))
    refused(r"pickle, which is never opened.*safetensors", snapshot, "edm", tmp_path / "out")
    refused("pickle.*save_file", snapshot, "guided_diffusion", tmp_path / "out")
    compile(edm.RECIPE, "recipe", "exec")
    torch.save({"model": Runs()}, tmp_path / "model.pt")
    refused(r"refused, it holds .*nothing was run", tmp_path / "model.pt", "score_sde", tmp_path)
    assert not (tmp_path / "out").exists()


def test_numbers_of_numpy_are_read(tmp_path):
    torch.save({"best": np.float64(0.5), "epoch": np.int64(3)}, tmp_path / "last.ckpt")
    assert read_file(tmp_path / "last.ckpt")[1] == {"best": 0.5, "epoch": 3}


def test_files_that_are_none(tmp_path, guided):
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "half.pt").write_bytes(guided.read_bytes()[: guided.stat().st_size // 2])
    (tmp_path / "empty.pt").touch()
    torch.save([1, 2], tmp_path / "list.pt")
    for name, match in {
        "none.pt": "no such file",
        "": "a folder",
        "a.txt": "a text file, not a checkpoint",
        "half.pt": "truncated or damaged",
        "empty.pt": "empty",
        "list.pt": "not a checkpoint of guided_diffusion",
    }.items():
        refused(match, tmp_path / name, "guided_diffusion", tmp_path / "out", said=FLAGS)
    with pytest.raises(PublishedError, match="unknown program 'guided'"):
        read(guided, "guided")


def test_a_file_of_another_program_is_named(tmp_path, guided):
    edm_file(tmp_path / "edm.safetensors", {"class": "EDMPrecond"}, SONG)
    score_sde_file(tmp_path / "score_sde.pth", VP)
    lucid_file(tmp_path / "lucidrains.pt")
    files = {
        "guided_diffusion": guided,
        "edm": tmp_path / "edm.safetensors",
        "score_sde": tmp_path / "score_sde.pth",
        "lucidrains": tmp_path / "lucidrains.pt",
    }
    for name, file in files.items():
        for other in set(FORMATS) - {name}:
            refused(f"it looks like {name}: give --from {name}", file, other, tmp_path / "out")


@pytest.mark.parametrize("name", list(FLAGS))
def test_flags_that_leave_no_trace_have_to_be_said(tmp_path, guided, name):
    said = {key: value for key, value in FLAGS.items() if key != name}
    refused(
        f"does not hold .*{name}.*--set", guided, "guided_diffusion", tmp_path / "o", said=said
    )


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"num_channels": 64}, "num_channels=64 does not fit its weights, which say 32"),
        ({"learn_sigma": True}, "learn_sigma=True does not fit"),
        ({"image_size": "x"}, "image_size has to be a whole number, got 'x'"),
        ({"noise_schedule": "quartic"}, "only linear and cosine"),
        ({"num_head_channels": 7}, "num_head_channels=7 does not divide"),
        ({"num_heads_upsample": 4}, "num_heads_upsample=4 differs"),
        ({"num_head": 2}, "num_head: means nothing here; did you mean 'num_heads'"),
    ],
)
def test_flags_that_cannot_be_are_named(tmp_path, guided, flags, match):
    refused(match, guided, "guided_diffusion", tmp_path / "out", said=FLAGS | flags)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("out.0.weight"), "has no tensor out.0.weight"),
        (lambda t: t.update(odd=torch.zeros(3)), "1 tensors have no place.*odd"),
        (lambda t: t["out.2.bias"].fill_(torch.nan), "not finite numbers: out.2.bias"),
        (
            lambda t: t.update({"out.0.bias": torch.zeros(3)}),
            "weights of another network.*misshap",
        ),
        (lambda t: t.pop("middle_block.0.emb_layers.1.weight"), "has no tensor middle_block"),
        (
            lambda t: t.update({"input_blocks.0.0.weight": torch.zeros(32, 6, 3, 3)}),
            "takes 6 channels and returns 3",
        ),
    ],
)
def test_damaged_tensors_are_named(tmp_path, guided, change, match):
    changed(guided, change)
    refused(match, guided, "guided_diffusion", tmp_path / "out", said=FLAGS)


def test_settings_of_score_sde(tmp_path):
    file = tmp_path / "checkpoint.pth"
    score_sde_file(file, VP)
    refused("does not hold sde .*image_size.*scale_by_sigma", file, "score_sde", tmp_path / "out")
    for part, key, value, match in (
        ("training", "sde", "rectified", "sde=rectified is unknown"),
        ("model", "fir", True, "fir=True with no picture beside"),
        ("model", "skip_rescale", False, "skip_rescale=False: such a network has no twin"),
        ("model", "scale_by_sigma", True, "is not read; only continuous ones"),
        ("model", "nf", 32, "nf=32 does not fit its weights, which say 16"),
    ):
        said = {name: dict(section) for name, section in SAID_VP.items()}
        said[part][key] = value
        settings = written(tmp_path, said)
        refused(match, file, "score_sde", tmp_path / "out", settings=settings)


def test_averages_of_score_sde_are_those_of_its_parameters(tmp_path):
    file = tmp_path / "checkpoint.pth"
    score_sde_file(file, VE)
    changed(file, lambda found: found["ema"]["shadow_params"].pop())
    refused("averages do not fit its", file, "score_sde", tmp_path / "out")
    score_sde_file(file, VE)
    changed(file, lambda found: found.pop("ema"))
    refused("no ema with shadow_params", file, "score_sde", tmp_path / "out")
    score_sde_file(file, VE)
    changed(
        file, lambda found: found["model"].update({"module.all_modules.99.odd": torch.ones(1)})
    )
    changed(file, lambda found: found["ema"]["shadow_params"].append(torch.ones(1)))
    refused(r"module 99 \(odd\) is not one of NCSN", file, "score_sde", tmp_path / "out")


def test_files_of_edm(tmp_path):
    file = tmp_path / "edm.safetensors"
    edm_file(file, {"class": "NewPrecond"}, SONG)
    refused("unknown preconditioner NewPrecond", file, "edm", tmp_path / "out")
    edm_file(file, {"class": "EDMPrecond", "channel_mult_emb": 2}, SONG)
    refused("channel_mult_emb=2: only 4 is known", file, "edm", tmp_path / "out")
    tensors = read_file(file)[1]
    save_file(tensors, file)
    refused("does not hold class .*img_resolution", file, "edm", tmp_path / "out")
    save_file(tensors, file, {"init": "{"})
    refused("edm.safetensors: damaged, or not of edm", file, "edm", tmp_path / "out")


def test_files_of_lucidrains(tmp_path):
    file = tmp_path / "model-1.pt"
    lucid_file(file)
    changed(file, lambda found: found["ema"].pop("ema_model.model.final_conv.bias"))
    refused("averages .* are not those", file, "lucidrains", tmp_path / "out")
    lucid_file(file)
    refused("does not hold image_size", file, "lucidrains", tmp_path / "out")
    said = {"image_size": 8, "objective": "pred_noise"}
    refused("objective=pred_noise does not fit", file, "lucidrains", tmp_path / "out", said=said)
    changed(file, lambda found: found["model"]["alphas_cumprod"].fill_(0.5))
    changed(file, lambda found: found.update(ema={}))
    refused("betas and alphas_cumprod differ", file, "lucidrains", tmp_path / "o", said={"a": 1})


def test_the_command_writes_a_run_that_samples(tmp_path, guided, capsys):
    flags = [f"--set={name}={value}" for name, value in FLAGS.items()]
    out = str(tmp_path / "run")
    assert main(["import", str(guided), "--from", "guided_diffusion", "--out", out, *flags]) == 0
    assert "every command takes --checkpoint" in capsys.readouterr().out
    samples = str(tmp_path / "samples")
    drawing = [
        "sample",
        "--checkpoint",
        out,
        "--out",
        samples,
        "--num",
        "2",
        "--sample.steps",
        "3",
    ]
    assert main(drawing) == 0
    assert main(["import", str(guided), "--from", "guided_diffusion", "--out", out, *flags]) == 2
    assert "holds a run" in capsys.readouterr().err
    pixels = (np.random.default_rng(0).random((12, 8, 8, 3)) * 256).astype(np.uint8)
    (tmp_path / "pictures").mkdir()
    for i, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / "pictures" / f"{i}.png")
    going_on = ["train", "--config", f"{out}/config.yaml", "--out", out, "--resume"]
    assert main([*going_on, "--data.path", str(tmp_path / "pictures")]) == 2
    assert "imported from another program, without the state" in capsys.readouterr().err
    (tmp_path / "flags.json").write_text(json.dumps(FLAGS | {"batch_size": 4}))
    again = ["--settings", str(tmp_path / "flags.json"), "--overwrite"]
    assert main(["import", str(guided), "--from", "guided_diffusion", "--out", out, *again]) == 0
    assert main(["import", str(guided), "--from", "edm", "--out", out, "--set", "x"]) == 2
    assert "--set: need NAME=VALUE" in capsys.readouterr().err
    assert main(["import", str(guided), "--from", "magic", "--out", out]) == 2
    assert "must be 'score_sde'" in capsys.readouterr().err
