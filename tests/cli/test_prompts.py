"""``scoresde sample`` under conditions and guidance, and pictures that are drawn again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import scoresde as ss
from scoresde.cli import sample as module
from scoresde.cli.main import main
from scoresde.config import build_model, load_config, measured, to_plain
from scoresde.data import dataset_of
from scoresde.runs.load import load
from scoresde.runs.recipe import recipe
from scoresde.training.checkpoint import Checkpoint, describe, save

PLAIN = {
    "data": {"kind": "arrays", "path": "x.npz"},
    "parameterization": "v",
    "network": {
        "kind": "unet",
        "width": 8,
        "multipliers": [1],
        "blocks": 1,
        "attention": [0],
        "heads": 2,
    },
    "conditions": {
        "text": {"kind": "tokens", "width": 8, "heads": 2, "depth": 1},
        "place": "vector",
        "label": "label",
        "low": {"kind": "picture", "of": "low", "factor": 2},
    },
}
# The pairs of the last line, as AUTOMATIC1111's web UI finds them.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Path:
    """A checkpoint of random weights on grey pictures, told four kinds of conditions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (12, 8, 8), dtype=torch.uint8, generator=generator)
    columns = {
        "text": ["a red hat", "a blue hat", 'red: "x", no hat'] * 4,
        "place": torch.randn(12, 2, generator=generator),
    }
    data = dataset_of(x, torch.arange(12) % 3, classes=["cat", "dog", "eel"], conditions=columns)
    config = load_config(None, PLAIN)
    state = build_model(config, data).state_dict()
    state = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in state.items()}
    file = tmp_path_factory.mktemp("told") / "model.pt"
    about = describe(data, measured(config, data))
    save(file, Checkpoint(to_plain(config), about, 7, state, state, {}))
    return file


def sample(out: Path, *flags: object, steps: int = 3) -> Path:
    argv = ["--out", out, "--device", "cpu", "--sample.steps", steps, *flags]
    assert main(["sample", *map(str, argv)]) == 0
    return out


def refusal(capsys, out: Path, *flags: object) -> str:
    assert main(["sample", *map(str, ["--out", out, "--device", "cpu", *flags])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("scoresde: error: ")
    assert error.count("\n") == 1
    assert not list(out.glob("*.png"))
    return error


def shades(picture: Path) -> np.ndarray:
    with Image.open(picture) as opened:
        return np.asarray(opened)


def texts(picture: Path) -> tuple[str, dict[str, object]]:
    with Image.open(picture) as opened:
        return opened.text["parameters"], json.loads(opened.text["scoresde"])


def written(path: Path, text: str | None, key: str = "scoresde") -> Path:
    info = PngInfo()
    if text is not None:
        info.add_text(key, text)
    Image.new("L", (8, 8)).save(path, pnginfo=info)
    return path


ALL = ["--condition", "place=0.5,-1", "--class", "dog", "--negative", "a blue hat"]
ALL += ["--guidance", 3, "--guidance-interval", "0.2,5"]


def test_the_flags_are_the_arguments_of_draw(told, tmp_path):
    small = torch.arange(16, dtype=torch.uint8).reshape(4, 4) * 16
    Image.fromarray(small.numpy()).save(tmp_path / "small.png")
    flags = ["--num", 3, "--prompt", "a red hat", "--condition", f"low={tmp_path / 'small.png'}"]
    out = sample(tmp_path / "out", "--checkpoint", told, *flags, *ALL)
    model = load(told)
    drawn = ss.draw(
        model,
        3,
        nfe=4,
        prompt="a red hat",
        cond={"place": [0.5, -1], "low": small[None]},
        label="dog",
        negative="a blue hat",
        guidance=3,
        guidance_interval=(0.2, 5),
    )
    expected = model.data.scaling.to_uint8(model.data.scaling.encode(drawn.x))
    for k in range(3):
        assert np.array_equal(shades(out / f"{k:06d}.png"), expected[k, 0].numpy())
    _, found = texts(out / "000002.png")
    assert found["conditions"] == {
        "text": "a red hat",
        "place": [0.5, -1.0],
        "low": small[None].tolist(),
    }
    assert found["negative"] == {"text": "a blue hat"}
    assert (found["class"], found["seed"], found["guidance"]) == ("dog", 2, 3.0)


def test_what_is_guided_against_is_said_by_name(told, tmp_path):
    Image.new("L", (4, 4), 99).save(tmp_path / "p.png")
    against = [f"low={tmp_path / 'p.png'}", "place=1,", "a blue hat"]
    flags = [word for text in against for word in ("--negative", text)]
    said = ["--num", 1, "--prompt", "hat", "--guidance", 2]
    out = sample(tmp_path / "out", "--checkpoint", told, *said, *flags)
    model, low = load(told), torch.full((1, 4, 4), 99)
    negative = {"low": low, "place": [1.0, None], "text": "a blue hat"}
    x = ss.draw(model, 1, nfe=4, prompt="hat", guidance=2, negative=negative).x
    expected = model.data.scaling.to_uint8(model.data.scaling.encode(x))[0, 0]
    assert np.array_equal(shades(out / "000000.png"), expected.numpy())
    again = sample(tmp_path / "again", "--like", out / "000000.png")
    assert np.array_equal(shades(again / "000000.png"), expected.numpy())


def test_prompts_of_a_file_have_a_sample_each(told, tmp_path):
    lines = ["a red hat", "", "  a blue hat ", "hat"]
    (tmp_path / "prompts.txt").write_text("\n".join(lines))
    flags = ["--checkpoint", told, "--prompts", tmp_path / "prompts.txt"]
    out = sample(tmp_path / "out", *flags)
    found = [texts(out / f"{k:06d}.png")[1]["conditions"]["text"] for k in range(3)]
    assert found == ["a red hat", "a blue hat", "hat"]
    assert not (out / "000003.png").exists()
    out = sample(tmp_path / "two", *flags, "--num", 6)
    record = json.loads((out / "sample.json").read_text())
    assert [each["text"] for each in record["conditions"]] == sorted(found * 2, key=found.index)
    # A row of the grid has a name.
    assert shades(out / "grid.png").shape[1] > 2 * 52 + 4 + 40


@pytest.mark.parametrize("sampler", ["recommended", "euler_a", "ode"])
def test_a_picture_is_drawn_again(told, tmp_path, capsys, sampler):
    flags = ["--checkpoint", told, "--seeds", "5-7", "--prompt", "a red hat", *ALL]
    many = 1 if sampler == "ode" else 3  # whose steps the whole batch shares
    one = sample(tmp_path / "one", *flags, "--batch", many, "--sample.sampler", sampler)
    argv = ["--like", one / "000001.png", "--out", tmp_path / "two", "--device", "cpu"]
    assert main(["sample", *map(str, argv)]) == 0
    assert "the same picture" in capsys.readouterr().err
    again, before = tmp_path / "two" / "000000.png", one / "000001.png"
    assert np.array_equal(shades(again), shades(before))
    shape = {"row": None, "rows": None}
    assert recipe(again) | shape == recipe(before) | shape


def test_flags_change_what_is_drawn_again(told, tmp_path, capsys):
    one = sample(tmp_path / "one", "--checkpoint", told, "--seeds", 5, "--prompt", "hat", *ALL)
    like = ["--like", one / "000000.png"]
    more = sample(tmp_path / "more", *like, "--num", 3)
    assert [texts(more / f"{k:06d}.png")[1]["seed"] for k in range(3)] == [5, 6, 7]
    assert np.array_equal(shades(more / "000000.png"), shades(one / "000000.png"))
    other = sample(tmp_path / "other", *like, "--prompt", "a red hat", "--class", "cat")
    _, found = texts(other / "000000.png")
    assert found["conditions"]["text"] == "a red hat"
    assert found["conditions"]["place"] == [0.5, -1.0]
    assert found["class"] == "cat"
    capsys.readouterr()
    plain = sample(tmp_path / "plain", *like, "--guidance", 1)
    assert texts(plain / "000000.png")[1]["negative"] is None
    assert "values differ" in capsys.readouterr().err
    heun = sample(tmp_path / "heun", *like, "--sample.sampler", "heun")
    assert texts(heun / "000000.png")[1]["sampler"]["kind"] == "heun"


def test_the_checkpoint_may_have_moved(told, tmp_path, capsys):
    kept = tmp_path / "kept.pt"
    kept.write_bytes(told.read_bytes())
    one = sample(tmp_path / "one", "--checkpoint", kept, "--num", 1, "--prompt", "hat")
    kept.rename(tmp_path / "moved.pt")
    assert "kept.pt" in refusal(capsys, tmp_path / "no", "--like", one / "000000.png")
    flags = ["--like", one / "000000.png", "--checkpoint", tmp_path / "moved.pt"]
    two = sample(tmp_path / "two", *flags)
    assert "other weights" not in capsys.readouterr().err
    assert np.array_equal(shades(two / "000000.png"), shades(one / "000000.png"))
    stored = torch.load(told, weights_only=True)
    stored["ema"] = {k: v * 1.1 for k, v in stored["ema"].items()}
    torch.save(stored, tmp_path / "moved.pt")
    sample(tmp_path / "three", *flags)
    assert "drawn by other weights" in capsys.readouterr().err


def test_viewers_read_the_settings(told, tmp_path):
    prompt = 'red: "x", no hat'
    flags = ["--checkpoint", told, "--seeds", 5, "--prompt", prompt, *ALL]
    text, _ = texts(sample(tmp_path / "out", *flags) / "000000.png")
    *lines, last = text.split("\n")
    assert lines == [prompt, "Negative prompt: a blue hat"]
    found = {k: json.loads(v) if v.startswith('"') else v for k, v in PAIR.findall(last)}
    assert found["Steps"] == "3"
    assert found["CFG scale"] == "3"
    assert (found["Seed"], found["Size"], found["Class"]) == ("5", "8x8", "dog")
    assert found["Condition place"] == "0.5, -1"
    assert found["Guidance interval"] == "0.2,5"
    assert found["Model"] == "model"
    assert len(found) >= 10


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--prompt", "a green hat"], "--text|text: unknown word 'green'"),
        (["--prompt", "hat", "--prompts", "x"], "--prompt and --prompts: give one of them"),
        (["--condition", "place"], "--condition: write NAME=VALUE, got 'place'"),
        (["--condition", "plce=1,2"], "plce: this model has no such condition; did you mean 'pla"),
        (["--condition", "place=1"], "place: need 2 numbers"),
        (["--condition", "place=1,2,3"], "place: need 2 numbers, got '1,2,3'"),
        (["--negative", "plce=1", "--guidance", "2"], "--negative: plce: this model has no such"),
        (["--negative", "hat", "--negative", "a"], "--negative: text is given twice"),
        (["--condition", "place=1,x"], "place: need numbers, got 'x'"),
        (["--condition", "place=1,2", "--condition", "place=1,2"], "place is given twice"),
        (["--condition", "low=none.png"], "low: none.png: no picture that can be read"),
        (["--condition", "low=deep.png"], "deep.png: .*its pixels are I;16, not of 256 levels"),
        (["--condition", "text=hat", "--prompt", "hat"], "--prompt: text is given by --condition"),
        (["--class", "cow"], "no class 'cow'"),
        (["--negative", "hat"], "--negative: without effect at guidance 1"),
        (["--guidance", "3"], "--guidance: say something, or leave it out"),
        (
            ["--prompt", "hat", "--guidance", "3", "--guidance-interval", "5"],
            "--guidance-interval: need two numbers",
        ),
        (["--prompts", "empty.txt"], "--prompts: empty.txt holds no sentence"),
        (["--prompts", "none.txt"], "none.txt: No such file"),
    ],
)
def test_bad_flags_are_one_line(told, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n  \n")
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    assert re.search(words, refusal(capsys, tmp_path / "out", "--checkpoint", told, *flags))


def test_a_checkpoint_is_needed(tmp_path, capsys):
    assert "--checkpoint is missing" in refusal(capsys, tmp_path / "out")


GOOD = {
    "checkpoint": "x",
    "seed": 1,
    "sampler": {"kind": "heun"},
    "steps": 3,
    "denoise": True,
    "weights": "ema",
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "holds no settings of scoresde"),
        ("{", "its settings are damaged"),
        ("[" * 100_000, "its settings are damaged"),
        ("[1]", "its settings are damaged (no object)"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "seed"}), "shows several samples"),
        (json.dumps(GOOD | {"seed": "1"}), "damaged (seed is '1')"),
        (json.dumps(GOOD | {"steps": True}), "damaged (steps is True)"),
        (json.dumps(GOOD | {"row": 3, "rows": 3}), "damaged (row 3 of 3)"),
        (json.dumps(GOOD | {"rows": 10**9}), "damaged (row 0 of 1000000000)"),
        (json.dumps(GOOD | {"conditions": "x"}), "damaged (conditions is 'x')"),
        (json.dumps(GOOD | {"weights": "__import__('os')"}), "No such file|no such|missing"),
    ],
)
def test_a_picture_without_our_settings_is_refused(tmp_path, monkeypatch, capsys, text, words):
    monkeypatch.chdir(tmp_path)
    error = refusal(capsys, tmp_path / "out", "--like", written(tmp_path / "a.png", text))
    assert any(word in error for word in words.split("|")), error


def test_settings_of_another_sampler_are_refused_in_words(told, tmp_path, capsys):
    for sampler in ({"kind": "none"}, {"kind": "heun", "eta": 1}, {"kind": ["heun"]}):
        text = json.dumps(GOOD | {"checkpoint": str(told), "sampler": sampler})
        error = refusal(capsys, tmp_path / "out", "--like", written(tmp_path / "a.png", text))
        assert "a.png: sample.sampler" in error
    (tmp_path / "b.png").write_text("no picture")
    error = refusal(capsys, tmp_path / "out", "--like", tmp_path / "b.png")
    assert "b.png: no picture that can be read" in error


def test_where_rounding_differs_it_is_drawn_in_a_batch_of_the_same_size(
    told, tmp_path, monkeypatch, capsys
):
    flags = ["--checkpoint", told, "--seeds", "5-7", "--prompt", "a red hat", *ALL]
    one = sample(tmp_path / "one", *flags)
    answers = iter(["a value differs"])
    compared = module._compared
    monkeypatch.setattr(module, "_compared", lambda *args: next(answers, None) or compared(*args))
    two = tmp_path / "two"
    argv = ["--like", one / "000001.png", "--out", two, "--device", "cpu"]
    assert main(["sample", *map(str, argv)]) == 0
    assert "the same picture" in capsys.readouterr().err
    assert recipe(two / "000000.png") == recipe(one / "000001.png")
    assert recipe(one / "000001.png")["rows"] == 3


@pytest.mark.parametrize("operation", [["inpaint", "--box", "0,0,4,8", "--nfe", 4], ["img2img"]])
def test_edits_are_told_the_same(told, tmp_path, operation):
    flags = ["--checkpoint", told, "--prompt", "a red hat", *ALL]
    one = sample(tmp_path / "one", *flags, "--num", 2)
    two = tmp_path / "two"
    argv = ["edit", *operation, *flags, "--picture", one, "--out", two, "--device", "cpu"]
    assert main(list(map(str, argv))) == 0
    text, found = texts(two / "000001.png")
    assert text.split("\n")[0] == "a red hat"
    names = ("class", "conditions", "negative", "guidance", "guidance_interval", "seed")
    before = texts(one / "000001.png")[1]
    assert {name: found[name] for name in names} == {name: before[name] for name in names}
    other = tmp_path / "other"
    plain = ["edit", *operation, "--checkpoint", told, "--picture", one, "--out", other]
    assert main([*map(str, plain), "--device", "cpu"]) == 0
    assert not np.array_equal(shades(other / "000001.png"), shades(two / "000001.png"))
