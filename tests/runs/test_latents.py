"""Models of latents: their data and cache, training, resuming, drawing, files."""

from __future__ import annotations

import shutil
import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import scoresde as ss
from scoresde import parameterization as P
from scoresde.conditions import Picture, SegmentationMap
from scoresde.config import ConfigError, config_from, override
from scoresde.data import Dataset, Scaling, Split, dataset_of
from scoresde.latent import Codec, Encoded, KLAutoencoder
from scoresde.latent.files import save_codec
from scoresde.latent.latents import far_from_unit, latents_of
from scoresde.runs.compare import compare
from scoresde.runs.log import Quiet
from scoresde.runs.space import state_shape, to_data, to_state
from scoresde.training import CheckpointError, DataDescription, Plan, held_out_loss
from scoresde.training.batches import draw_batch

SMALL = {
    "network": {"kind": "unet", "width": 8, "multipliers": [1], "blocks": 1, "attention": []},
    "train": {"steps": 4, "batch": 8, "checkpoint_every": 2, "validate_every": 2, "dither": False},
}


class Identity(Codec):
    """Latents that are the pictures."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__(channels, channels, 1)
        self.calls = 0

    def encode(self, x):
        self.calls += len(x)
        return Encoded(x, torch.zeros_like(x))

    def output(self, z):
        return z


class Stacked(Codec):
    """Squares of 2 x 2 pixels as channels, times a weight, with noise; w is the picture."""

    def __init__(self, channels: int = 1, std: float = 0.0, weight: float = 3.0) -> None:
        super().__init__(channels, 4 * channels, 2)
        self.weight = nn.Parameter(torch.tensor(weight))
        self.std = std
        self.latents_mean.fill_(0.5)
        self.latents_std.fill_(weight)

    def encode(self, x):
        mean = self.weight * F.pixel_unshuffle(self.padded(x), 2) + 0.5
        return Encoded(mean, torch.full_like(mean, self.std))

    def output(self, z):
        return F.pixel_shuffle((z - 0.5) / self.weight, 2)


def kl(**changes) -> KLAutoencoder:
    torch.manual_seed(0)
    return KLAutoencoder(1, 2, patch=1, widths=(8, 8), groups=4, **changes)


@pytest.fixture
def codec_folder(tmp_path):
    folder = tmp_path / "codec"
    folder.mkdir()
    save_codec(folder / "codec.safetensors", kl())
    return folder


def small(**changes):
    return config_from({**SMALL, **changes}, "test")


def weights(model):
    return list(model.state_dict().values())


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("conditional", [False, True])
def test_an_identity_codec_changes_nothing(conditional):
    config = small(conditional=conditional)
    pixels = ss.train(config, listener=Quiet())
    latents = ss.train(config, codec=Identity(), listener=Quiet())
    assert same(weights(pixels.model), weights(latents.model))
    assert [r["held_out"] for r in pixels.records] == [r["held_out"] for r in latents.records]
    assert pixels.model.data == latents.model.data
    assert pixels.model.codec is None
    assert latents.model.codec is not None
    label = "3" if conditional else None
    drawn = [ss.draw(run.model, 3, nfe=4, label=label) for run in (pixels, latents)]
    assert drawn[0].x.dtype == drawn[1].x.dtype == torch.uint8
    assert torch.equal(drawn[0].x, drawn[1].x)
    compared = [compare(r.model, steps=(3,), num=2) for r in (pixels, latents)]
    errors = [[t.relative for t in found.trials] for found in compared]
    assert errors[0] == errors[1]


def test_latents_are_standardised_and_keep_their_labels_and_columns():
    value = torch.arange(12) % 5
    x = (value * 50).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 6).contiguous()
    data = dataset_of((x, {"label": value, "vector": value[:, None].float()}), holdout=4)
    codec = Stacked()
    found = latents_of(data, codec)
    for latents, pictures in ((found.train, data.train), (found.test, data.test)):
        assert latents.std is None
        w = found.scaling.encode(latents.x)
        want = F.pixel_unshuffle(data.scaling.encode(pictures.x), 2)
        torch.testing.assert_close(w, want, atol=1e-6, rtol=0)
        assert torch.equal(latents.columns["vector"], pictures.columns["vector"])
    batch = draw_batch(Plan(batch=6, classes=5), found.train, found.scaling, ss.VP(), 3)
    there = batch.label < 5  # dropped labels are 5
    level = data.scaling.encode((batch.label[there] * 50).to(torch.uint8))
    torch.testing.assert_close(batch.x0[there].mean((1, 2, 3)), level, atol=1e-6, rtol=0)


def test_noise_of_latents_is_drawn_anew_at_every_step():
    mean = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    std = torch.linspace(0.5, 2.0, 4).view(4, 1, 1).expand_as(mean).contiguous()
    split, still = Split(mean, std=std), Split(mean)
    plan, scaling = Plan(batch=64), Scaling(None)
    batches = [draw_batch(plan, split, scaling, ss.VP(), step) for step in (0, 1, 0)]
    plain = [draw_batch(plan, still, scaling, ss.VP(), step) for step in (0, 1, 0)]
    noise = [a.x0 - b.x0 for a, b in zip(batches, plain, strict=True)]
    assert torch.equal(noise[0], noise[2])
    found = noise[0].std((0, 2, 3)) / torch.linspace(0.5, 2.0, 4)
    torch.testing.assert_close(found, torch.ones(4), atol=0.05, rtol=0)
    both = torch.stack([noise[0].flatten(), noise[1].flatten()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.03
    # Nothing else of a batch is drawn otherwise.
    assert torch.equal(batches[0].eps, plain[0].eps)
    assert torch.equal(batches[0].t, plain[0].t)
    model = ss.ScoreModel(Zero(), ss.VP(), P.eps)
    losses = [held_out_loss(model, split, scaling, draws=2) for _ in range(2)]
    assert losses[0] == losses[1]


class Zero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, noise):
        return self.weight * x


def test_the_deviation_of_latents_counts_their_noise():
    mean = torch.randn(500, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    split = Split(mean, std=torch.full_like(mean, 2.0))
    data = Dataset("x", split, split, Scaling(None))
    assert data.std == pytest.approx(5**0.5, rel=0.02)
    assert "2.2" in (far_from_unit(data) or "")
    plain = Dataset("x", Split(mean), Split(mean), Scaling(None))
    assert far_from_unit(plain) is None
    still = Split(mean * torch.tensor([1.0, 0, 1, 0]).view(4, 1, 1))
    said = far_from_unit(Dataset("x", still, still, Scaling(None)))
    assert (said or "").startswith("latents: channel 1, 3 is the same in all of these pictures")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_codec_of_any_dtype_encodes(dtype):
    data = dataset_of(torch.arange(32).view(2, 1, 4, 4).to(torch.uint8), holdout=1)
    found = latents_of(data, Stacked().to(dtype)).train.x
    want = latents_of(data, Stacked()).train.x
    torch.testing.assert_close(found, want, atol=0.05 if dtype == torch.bfloat16 else 1e-6, rtol=0)


def test_a_cache_is_filled_once_and_holds_what_encoding_gives(tmp_path, codec_folder, monkeypatch):
    calls = []
    encode = KLAutoencoder.encode
    monkeypatch.setattr(
        KLAutoencoder, "encode", lambda self, x: calls.append(len(x)) or encode(self, x)
    )
    config = small(codec=str(codec_folder))
    first = ss.train(config, out=tmp_path / "a", listener=Quiet())
    assert sum(calls) == 1797  # the digits, training and test
    second = ss.train(config, out=tmp_path / "b", listener=Quiet())
    assert sum(calls) == 1797
    memory = ss.train(config, listener=Quiet())
    assert sum(calls) == 2 * 1797
    assert same(weights(first.model), weights(second.model))
    assert same(weights(first.model), weights(memory.model))
    # Another codec at the same place has latents of its own.
    other = kl()
    with torch.no_grad():
        other.moments.bias.add_(0.1)
    save_codec(codec_folder / "codec.safetensors", other)
    third = ss.train(config, out=tmp_path / "c", listener=Quiet())
    assert sum(calls) == 3 * 1797
    assert not same(weights(first.model), weights(third.model))
    said = [(tmp_path / name / "log.txt").read_text() for name in "bc"]
    assert ["delete them if no run needs them" in text for text in said] == [False, True]
    # A cache that is there is read, also where nothing can be written.
    monkeypatch.setattr("scoresde.latent.latents._writable", lambda folder: False)
    ss.train(config, out=tmp_path / "d", listener=Quiet())
    assert sum(calls) == 3 * 1797


def test_an_interrupt_ends_the_encoding_at_once(tmp_path, codec_folder, monkeypatch):
    """No step is made, and the next run encodes anew what is only there in part."""
    with monkeypatch.context() as patch:
        patch.setattr(KLAutoencoder, "encode", lambda *_: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            ss.train(small(codec=str(codec_folder)), out=tmp_path / "run", listener=Quiet())
    assert not (tmp_path / "run").exists()
    assert not list((codec_folder / "latents").glob("*/manifest.json"))
    assert ss.train(small(codec=str(codec_folder)), out=tmp_path / "run", listener=Quiet()).step


def test_a_codec_that_cannot_be_written_beside_caches_in_the_run(
    tmp_path, codec_folder, monkeypatch
):
    access = latents_of.__globals__["os"].access
    monkeypatch.setattr(
        "scoresde.latent.latents.os.access",
        lambda path, mode: codec_folder not in (path, *path.parents) and access(path, mode),
    )
    ss.train(small(codec=str(codec_folder)), out=tmp_path / "run", listener=Quiet())
    assert not (codec_folder / "latents").exists()
    assert len(list((tmp_path / "run" / "latents").iterdir())) == 1


def test_training_of_latents_resumes_to_the_bit(tmp_path, codec_folder):
    config = small(codec=str(codec_folder))
    whole = ss.train(config, out=tmp_path / "whole", listener=Quiet())
    ss.train(config, out=tmp_path / "parts", steps=2, listener=Quiet())
    moved = tmp_path / "elsewhere"
    shutil.move(codec_folder, moved)  # the same codec in another place
    parts = ss.train(
        override(config, {"codec": str(moved)}),
        out=tmp_path / "parts",
        steps=4,
        resume=True,
        listener=Quiet(),
    )
    assert same(weights(whole.model), weights(parts.model))
    assert whole.records[-1]["held_out"] == parts.records[-1]["held_out"]


def test_a_run_whose_codec_is_deleted_resumes_with_its_own(tmp_path, codec_folder):
    """To the same bits; a new run needs the codec."""
    config = small(codec=str(codec_folder))
    whole = ss.train(config, out=tmp_path / "whole", listener=Quiet())
    ss.train(config, out=tmp_path / "parts", steps=2, listener=Quiet())
    shutil.rmtree(codec_folder)
    parts = ss.train(config, out=tmp_path / "parts", resume=True, listener=Quiet())
    assert same(weights(whole.model), weights(parts.model))
    assert not list(tmp_path.glob("latents"))
    for settings in ({"out": tmp_path / "parts", "overwrite": True}, {"out": tmp_path / "new"}):
        with pytest.raises(ValueError, match=r"^codec: no such file: .*the place where it is now"):
            ss.train(config, **settings, listener=Quiet())


def test_a_changed_codec_is_named(tmp_path, codec_folder):
    config = small(codec=str(codec_folder))
    ss.train(config, out=tmp_path / "run", steps=2, listener=Quiet())
    other = kl()
    with torch.no_grad():
        other.moments.bias.add_(0.1)
    save_codec(codec_folder / "codec.safetensors", other)
    shutil.rmtree(codec_folder / "latents")
    changed = r"the codec has changed \(sha256 \w{12}, was \w{12}\); give codec=.*run, the"
    with pytest.raises(ValueError, match=changed):
        ss.train(config, out=tmp_path / "run", resume=True, listener=Quiet())
    assert not (codec_folder / "latents").exists()  # it is seen before anything is encoded
    assert same(weights(ss.load_codec(tmp_path / "run")), weights(kl()))
    own = override(config, {"codec": str(tmp_path / "run")})
    assert ss.train(own, out=tmp_path / "run", resume=True, listener=Quiet()).step == 4
    with pytest.raises(ValueError, match="is the run that overwrite replaces; train in another"):
        ss.train(own, out=tmp_path / "run", overwrite=True, listener=Quiet())
    assert same(weights(ss.load_codec(tmp_path / "run")), weights(kl()))


def test_a_run_of_pixels_goes_on_without_a_codec(tmp_path, codec_folder):
    ss.train(small(), out=tmp_path / "run", steps=2, listener=Quiet())
    config = small(codec=str(codec_folder))
    with pytest.raises(ValueError, match=r"changed \(sha256 \w{12}, was none\); give none, or"):
        ss.train(config, out=tmp_path / "run", resume=True, listener=Quiet())


def test_a_run_and_a_moved_export_give_both_stages_back(tmp_path, codec_folder):
    config = small(codec=str(codec_folder))
    run = ss.train(config, out=tmp_path / "run", listener=Quiet())
    shutil.rmtree(codec_folder)
    want = ss.draw(run.model, 3, nfe=4)
    moved = tmp_path / "model.safetensors"
    shutil.copy(tmp_path / "run" / "weights-ema.safetensors", moved)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "best.pt", moved):
        model = ss.load(path)
        assert same(weights(model.codec), weights(kl()))
        assert not model.codec.training
        assert not any("codec" in name for name in model.state_dict())
        found = ss.draw(model, 3, nfe=4)
        assert found.x.shape == (3, 1, 8, 8)
        assert torch.equal(found.x, want.x)


def test_a_model_of_ones_own_has_a_codec_of_ones_own(tmp_path):
    def mine():
        torch.manual_seed(0)
        model = ss.ScoreModel(Net(4), ss.VP(), P.v)
        model.codec = Stacked(std=0.3)
        return model

    x = torch.randint(0, 256, (60, 1, 8, 6), generator=torch.Generator().manual_seed(0))
    x = x.to(torch.uint8)
    settings = {"steps": 3, "batch": 8, "listener": Quiet()}
    run = ss.train(mine(), x, out=tmp_path / "run", **settings)
    memory = ss.train(mine(), x, **settings)
    assert same(weights(run.model), weights(memory.model))
    assert run.model.data.shape == (1, 8, 6)
    assert run.model.std == pytest.approx(0.58, abs=0.05)  # uniform pixels, and the noise / 3
    changed = mine()
    with torch.no_grad():
        changed.codec.weight.fill_(7.0)
    found = ss.load(tmp_path / "run", changed)
    assert float(found.codec.weight) == 3.0
    assert torch.equal(ss.draw(found, 2, nfe=3).x, ss.draw(run.model, 2, nfe=3).x)
    bare = ss.ScoreModel(Net(4), ss.VP(), P.v)
    with pytest.raises(CheckpointError, match="a codec that a program made"):
        ss.load(tmp_path / "run", bare)
    assert ss.load(tmp_path / "run", bare, Stacked()).codec is not None


class Net(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, x, noise):
        level = noise.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.layer(torch.cat([x, level], 1))


def test_what_does_not_fit_a_codec_is_refused_in_a_line(tmp_path, codec_folder):
    codec = str(codec_folder)
    with pytest.raises(ConfigError, match="a flipped latent is not that of the flipped picture"):
        small(codec=codec, train={**SMALL["train"], "augment": "plain"})
    with pytest.raises(ConfigError, match="head=levels is for pixel levels"):
        small(
            codec=codec,
            network={**SMALL["network"], "head": "levels"},
            parameterization="x0",
        )
    flipped = small(train={**SMALL["train"], "augment": "plain"})
    with pytest.raises(ConfigError, match="flipped latent"):
        ss.train(flipped, codec=Identity(), listener=Quiet())
    x = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="codec: encodes pictures of 1 channels"):
        ss.train(small(codec=codec), x, out=tmp_path / "run", listener=Quiet())
    with pytest.raises(ValueError, match="7 x 8 pixels do not divide by its factor 2"):
        ss.train(small(codec=codec), x[:, :1, :7], out=tmp_path / "run", listener=Quiet())
    with pytest.raises(ValueError, match="no such file"):
        ss.train(small(codec=str(tmp_path / "nothing")), listener=Quiet())
    assert not (tmp_path / "run").exists()
    pixels = ss.train(small(), out=tmp_path / "pixels", steps=2, listener=Quiet())
    with pytest.raises(CheckpointError, match="a model of pixels, which has no codec"):
        ss.load(pixels.folder, codec=kl())
    latents = ss.train(small(), codec=Identity(), steps=2, listener=Quiet())
    with pytest.raises(ValueError, match="encodes without noise"):
        ss.score(latents.model, x[:, :1])


def test_pictures_whose_size_does_not_divide_are_padded_and_cropped():
    codec = kl(pad=True)
    x = torch.randint(0, 256, (30, 1, 7, 9), generator=torch.Generator().manual_seed(0))
    run = ss.train(small(), x.to(torch.uint8), codec=codec, steps=2, listener=Quiet())
    assert state_shape(run.model) == (2, 4, 5)
    drawn = ss.draw(run.model, 2, nfe=3)
    assert drawn.x.shape == (2, 1, 7, 9)
    assert to_data(run.model, torch.zeros(0, 2, 4, 5)).shape == (0, 1, 7, 9)
    assert to_state(run.model, drawn.x).shape == (2, 2, 4, 5)


def test_states_and_data_are_inverses_for_a_codec_that_loses_nothing():
    run = ss.train(small(), codec=Stacked(std=0.5), steps=1, listener=Quiet())
    x = torch.randint(0, 17, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    x = x.to(torch.uint8)
    w = to_state(run.model, x)
    assert torch.equal(to_data(run.model, w), x)
    noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    moved = to_state(run.model, x, noise)
    torch.testing.assert_close(moved - w, noise * 0.5 / 3, atol=1e-5, rtol=0)


def test_a_codec_of_pictures_in_other_units_is_refused():
    codec = Stacked()
    codec.data = DataDescription("x", (1, 8, 8), Scaling(256, 0.0, 1.0))
    with pytest.raises(ValueError, match="pixel levels from 0 to 1, and digits has pixel levels"):
        ss.train(small(), codec=codec, listener=Quiet())
    codec.data = DataDescription("x", (1, 8, 8), Scaling())
    with pytest.raises(ValueError, match="of real numbers, and digits has pixel levels from -1"):
        ss.train(small(), codec=codec, listener=Quiet())


def test_pictures_beside_latents_lose_nothing_and_maps_become_shares():
    picture = Picture((3, 5, 6), fold=2)
    y = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    told = picture(y).concat
    assert told.shape == (2, picture.concat, 3, 3)
    back = F.pixel_shuffle(told[:, :-1], 2)
    assert torch.equal(back[..., :5, :], y)
    assert torch.equal(back[..., 5, :], y[..., 4, :])  # the edge, copied
    assert torch.equal(told[:, -1], torch.zeros(2, 3, 3))
    nothing = picture(picture.null(1)).concat
    assert torch.equal(nothing[:, :-1], torch.zeros(1, 12, 3, 3))
    assert torch.equal(nothing[:, -1], torch.ones(1, 3, 3))
    maps = SegmentationMap(3, (4, 4), fold=2)
    y = torch.tensor([[0, 0, 1, 2], [0, 0, 1, 1], [2, 2, 0, 1], [2, 2, 2, 0]])[None]
    shares = maps(y).concat
    assert shares.shape == (1, maps.concat, 2, 2)
    want = torch.tensor([[[1.0, 0], [0, 0.5]], [[0, 0.75], [0, 0.25]], [[0, 0.25], [1, 0.25]]])
    assert torch.equal(shares[0, :3], want)


def test_conditions_of_pictures_are_fitted_to_latents(tmp_path):
    x = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    beside = x.flip(0).to(torch.uint8)
    data = (x.to(torch.uint8), {"beside": beside, "map": (x[:, 0] > 128).long()})
    conditions = {"beside": {"kind": "picture"}, "map": {"kind": "segmentation"}}
    config = small(conditions=conditions)
    run = ss.train(config, data, codec=kl(), out=tmp_path / "run", steps=2, listener=Quiet())
    model = ss.load(tmp_path / "run")
    assert {name: c.concat for name, c in model.conditions.items()} == {"beside": 5, "map": 3}
    cond = {"beside": beside[:1], "map": (x[:1, 0] > 128).long()}
    a, b = (ss.draw(m, 2, nfe=3, cond=cond) for m in (model, run.model))
    assert a.x.shape == (2, 1, 8, 8)
    assert torch.equal(a.x, b.x)
    made = small(conditions={"low": {"kind": "picture", "of": "low", "factor": 2}})
    with pytest.raises(ConfigError, match="of=low is made of the example, which is a latent"):
        ss.train(made, data, codec=kl(), listener=Quiet())


class Wrong(Stacked):
    """A codec whose ``encode`` or ``output`` returns what a program's mistake may."""

    def __init__(self, encode=None, output=None) -> None:
        super().__init__()
        self.mistakes = {"encode": encode, "output": output}

    def encode(self, x):
        mistake, found = self.mistakes["encode"], super().encode(x)
        return found if mistake is None else mistake(found)

    def output(self, z):
        mistake, found = self.mistakes["output"], super().output(z)
        return found if mistake is None else mistake(found)


@pytest.mark.parametrize(
    ("mistakes", "message"),
    [
        ({"encode": lambda found: found.mean}, "encode fails for .*: ValueError"),
        (
            {"encode": lambda found: Encoded(*(p[:, :3] for p in found))},
            r"encode gives \(3, 4, 4\)",
        ),
        ({"encode": lambda found: Encoded(*(p[..., :3] for p in found))}, r"gives \(4, 4, 3\) of"),
        ({"output": lambda x: x[..., 1:]}, r"decode gives \(1, 8, 7\) of a picture \(1, 8, 8\)"),
    ],
)
def test_a_codec_of_a_program_that_returns_something_else_is_refused(mistakes, message):
    with pytest.raises(ValueError, match=f"^codec: .*{message}"):
        ss.train(small(), codec=Wrong(**mistakes), listener=Quiet())


def test_what_is_no_codec_is_refused():
    with pytest.raises(ValueError, match=r"^codec: need a Codec or its path, got Linear"):
        ss.train(small(), codec=nn.Linear(2, 2), listener=Quiet())
