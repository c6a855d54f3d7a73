"""Training of autoencoders: to the same bits however it is split, and what comes out of it."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from itertools import count
from pathlib import Path
from shutil import copytree

import pytest
import torch

import scoresde as ss
from scoresde.config import AutoencoderConfig, config_from, load_config, override
from scoresde.data import dataset_of
from scoresde.latent import Autoencoder, Encoded, KLAutoencoder, Loss, Passed
from scoresde.latent.files import codec_digest, read_codec
from scoresde.latent.losses import Criterion
from scoresde.latent.training import CodecPlan, draw_pictures, fit_codec, latents_of, state_of
from scoresde.progress import silent
from scoresde.runs.folder import RunFolder, records
from scoresde.runs.log import Quiet
from scoresde.runs.train_autoencoder import (
    CodecTask,
    TrainedCodec,
    in_unit,
    measured,
    said_of,
    train_autoencoder_run,
)
from scoresde.training import TrainingError
from scoresde.training import checkpoint as ck
from scoresde.training.distributed import Rank

SMALL = {"kind": "kl", "widths": [8, 8], "groups": 4, "latent_channels": 3}
SETTINGS = {"batch": 8, "log_every": 2, "validate_every": 4, "checkpoint_every": 3}


def pictures(n: int = 80, side: int = 16, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """Blocks of 4 x 4 equal pixels."""
    g = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (n, channels, side // 4, side // 4), generator=g)
    return small.repeat_interleave(4, 2).repeat_interleave(4, 3).byte()


def trained(out: Path | None = None, steps: int = 6, **settings) -> TrainedCodec:
    made = {"autoencoder": SMALL}
    settings = {**SETTINGS, "progress": silent, "device": "cpu"} | settings
    return ss.train_autoencoder(made, pictures(), out=out, steps=steps, **settings)


def last(out: Path) -> ck.Checkpoint:
    return ck.newest(out / "checkpoints", ck.KINDS["autoencoder"])[1]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def moments_of(found: ck.Checkpoint) -> dict[str, torch.Tensor]:
    states = found.optimizer["state"]
    return {f"{k} {name}": v for k, state in states.items() for name, v in state.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("autoencoder") / "run"
    trained(out)
    return out


def test_a_run_that_is_interrupted_and_resumed_has_the_same_bits(run, tmp_path):
    """Also with batches that are drawn in advance."""
    out, steps, settings = tmp_path / "run", count(), {**SETTINGS, "steps": 6}
    plain = {"autoencoder": SMALL, "data": {"kind": "arrays"}, "train": settings}
    config = config_from(plain, "test", AutoencoderConfig)
    task = CodecTask(config, dataset=dataset_of(pictures(), holdout=0))

    def stop():
        return signal.SIGINT if next(steps) == 3 else 0

    assert train_autoencoder_run(task, out, device="cpu", stop=stop) == signal.SIGINT
    assert last(out).step == 4
    interrupted = ss.load_codec(out)
    assert same(dict(interrupted.state_dict()), last(out).ema)
    found = trained(out, resume=True, prefetch=2)
    assert (found.step, found.stopped) == (6, False)
    a, b = last(run), last(out)
    assert same(a.model, b.model)
    assert same(a.ema, b.ema)
    assert same(moments_of(a), moments_of(b))
    assert same(dict(ss.load_codec(run).state_dict()), dict(found.codec.state_dict()))
    codecs = [folder / "codec.safetensors" for folder in (run, out)]
    assert (
        ck.read_tensors(codecs[0], "scoresde-codec")[0]
        == ck.read_tensors(codecs[1], "scoresde-codec")[0]
    )


def test_the_run_folder_has_all_records(run):
    assert (run / "reconstructions" / "step-00000006.png").stat().st_size > 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert {"held_out", "psnr", "ssim", "frechet", "rate", "kl", "noise", "round_trip"} <= set(
        lines[-1]
    )
    weights = {"l1": 1.0, "l2": 1.0, "kl": 0.1}
    for line in lines:
        total = sum(weight * line[f"loss_{name}"] for name, weight in weights.items())
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    assert "latents by channel: mean" in (run / "log.txt").read_text()


def test_without_a_folder_it_is_the_same(run):
    found = trained()
    assert found.folder is None
    assert same(dict(found.codec.state_dict()), dict(ss.load_codec(run).state_dict()))
    assert found.records[-1]["psnr"] == records(RunFolder(run))[-1]["psnr"]


def prepared(plan: CodecPlan, **arguments):
    torch.manual_seed(0)
    codec = KLAutoencoder(3, 3, widths=(8, 8), groups=4, **arguments)
    dataset = dataset_of(pictures(), holdout=0)
    return state_of(codec, plan), Criterion(Loss(), codec, dataset.scaling), dataset


def after_one(plan: CodecPlan) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The gradients and losses of the share of a plan, without the sum over processes."""
    state, criterion, dataset = prepared(plan)
    metrics = next(fit_codec(state, plan, criterion, dataset.train, dataset.scaling))
    return [p.grad.clone() for p in state.model.parameters()], metrics.losses


def test_parts_and_processes_add_up_to_the_batch(monkeypatch):
    plan = CodecPlan(batch=8, steps=1, clip=None, ema=0.0)
    whole, losses = after_one(plan)
    monkeypatch.setattr(Rank, "add", lambda rank, tensors: None)  # each on its own
    shares = [after_one(replace(plan, rank=Rank(k, 2))) for k in range(2)]
    parts, in_parts = after_one(replace(plan, accumulate=4))
    torch.testing.assert_close(torch.cat([own for _, own in shares]), losses)
    torch.testing.assert_close(in_parts, losses)
    for k, expected in enumerate(whole):
        scale = float(expected.abs().max())
        both = sum(found[k] for found, _ in shares)
        torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-5 * scale)
        torch.testing.assert_close(parts[k], expected, rtol=1e-4, atol=1e-5 * scale)


def test_mirror_images_change_nothing_else_of_a_batch():
    plain = CodecPlan(batch=8, steps=1)
    flipped = replace(plain, augment=ss.training.augment.PlainAugment(flip=1.0))
    state, _, dataset = prepared(plain)
    a, b = (
        draw_pictures(plan, dataset.train, dataset.scaling, state.model, 3)
        for plan in (plain, flipped)
    )
    assert torch.equal(a.noise, b.noise)
    assert torch.equal(a.x.flip(3), b.x)
    assert torch.equal(a.data.flip(3), b.data)


def test_the_statistics_are_those_of_all_latents(run):
    """Measured here on every picture at once, with noise drawn where they have its square."""
    codec = ss.load_codec(run)
    data = dataset_of(pictures(), holdout=0)
    found = latents_of(codec, data.train, data.scaling, len(data.train))
    mean, std = codec.encode(data.scaling.encode(data.train.x))
    flat, noise = (part.detach().double().transpose(0, 1).flatten(1) for part in (mean, std))
    torch.testing.assert_close(found.mean, flat.mean(1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.of_means, flat.std(1, correction=0), rtol=1e-5, atol=0)
    total = (flat.var(1, correction=0) + noise.square().mean(1)).sqrt()
    torch.testing.assert_close(found.std, total, rtol=1e-6, atol=0)
    g = torch.Generator().manual_seed(0)
    w = codec.standardised(mean + std * torch.randn(mean.shape, generator=g))
    drawn = w.detach().transpose(0, 1).flatten(1)  # training pictures and those held out
    assert float(drawn.mean(1).abs().max()) < 0.15
    assert float((drawn.std(1) - 1).abs().max()) < 0.1


def test_a_run_that_went_on_gives_its_newest_codec_whole(run, tmp_path):
    out = tmp_path / "run"
    copytree(run, out)
    assert codec_digest(ss.load_codec(out)) == codec_digest(ss.load_codec(out / "checkpoints"))
    task = CodecTask(
        override(load_config(out / "config.yaml", None, AutoencoderConfig), {"train.steps": 9}),
        dataset=dataset_of(pictures(), holdout=0),
    )
    stop = iter([0, signal.SIGINT]).__next__
    assert train_autoencoder_run(task, out, resume=True, device="cpu", stop=stop) == signal.SIGINT
    assert read_codec(out / "codec.safetensors").step == 6
    assert same(dict(ss.load_codec(out).state_dict()), last(out).ema)
    assert last(out).step == 8


def test_an_unused_channel_is_named():
    found = latents_of(*used_in_part())
    assert said_of(found)[1].startswith("latents: channel 1 is unused")
    assert len(said_of(found._replace(of_means=found.std))) == 1


def used_in_part():
    codec = KLAutoencoder(3, 2, widths=(8, 8), groups=4)
    with torch.no_grad():
        codec.moments.weight[1:].zero_()  # all but the mean of channel 0
        codec.moments.bias[2:] = -8  # little noise
    data = dataset_of(pictures(), holdout=0)
    return codec, data.train, data.scaling, 80


def test_with_a_law_the_loss_is_the_negative_evidence_bound_per_dimension():
    data = dataset_of(pictures(), holdout=0)
    codec = KLAutoencoder(3, 3, widths=(8, 8), groups=4, law="logistic")
    criterion = Criterion(Loss(kl=1.0), codec, data.scaling)
    k, d = data.train.x[:5], 3 * 16 * 16
    x, noise = data.scaling.encode(k), torch.randn(5, 3, 4, 4)
    passed = codec.passed(x, noise)
    terms = criterion.terms(passed, x, k)
    assert set(terms) == {"nll", "kl"}
    mean, std = codec.encode(x)
    prior, posterior = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(mean, std)
    kl = torch.distributions.kl_divergence(posterior, prior).flatten(1).sum(1)
    z = mean + std * noise
    bound = codec.law.log_prob(codec.output(z), k, data.scaling) - kl
    torch.testing.assert_close(criterion.total(terms), -bound / d, rtol=1e-5, atol=1e-6)


def test_pictures_that_do_not_divide_are_padded_where_asked():
    """The padding counts in no loss and in no number."""
    data = dataset_of(pictures(side=20)[..., :18, :17], holdout=0)
    codec = KLAutoencoder(3, 3, widths=(8, 8), groups=4, pad=True)
    found = ss.train_autoencoder(codec, data, steps=2, progress=silent, **SETTINGS).codec
    criterion = Criterion(Loss(), found, data.scaling)
    x = data.scaling.encode(data.train.x[:4])
    passed = found.passed(x, torch.zeros(4, 3, 5, 5))
    terms = criterion.terms(passed, x, data.train.x[:4])
    error = (passed.output[..., :18, :17] - x).abs().flatten(1).mean(1)
    torch.testing.assert_close(terms["l1"], error)
    with pytest.raises(ValueError, match="18 x 17 pixels do not divide by its factor 4"):
        ss.train_autoencoder({"autoencoder": SMALL}, data, progress=silent)


def test_a_perfect_codec_has_the_highest_numbers():
    data = dataset_of(pictures(30), holdout=0)
    codec = Means(3)
    found = measured(codec, data.train.x, Criterion(Loss(), codec, data.scaling), data, 0)
    assert (found["psnr"], found["held_out"]) == (100.0, 0.0)
    assert found["ssim"] == pytest.approx(1.0)
    assert found["frechet"] < 1e-9
    assert "noise" not in found  # there is none
    random = KLAutoencoder(3, 2, widths=(8, 8), groups=4)
    criterion = Criterion(Loss(), random, data.scaling)
    parts = [measured(random, data.train.x, criterion, data, 0, batch) for batch in (7, 64)]
    assert parts[0] == pytest.approx(parts[1], rel=1e-4)
    assert in_unit(data.scaling.encode(torch.tensor([[0, 255]])), data).tolist() == [[0.0, 1.0]]


class Means(Autoencoder):
    """The codec of a program's own, exact on pictures of blocks: the mean of each block."""

    penalty = "kl"

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def encode(self, x):
        z = self.scale * x[..., ::4, ::4]
        return Encoded(z, torch.zeros_like(z))

    def output(self, z):
        return z.repeat_interleave(4, 2).repeat_interleave(4, 3)

    def passed(self, x, noise):
        z = self.encode(x).mean
        return Passed(self.output(z), z, z.new_zeros(len(z)))


def test_a_codec_of_a_program_trains_resumes_and_loads(tmp_path):
    out, codec = tmp_path / "run", Means(3)
    with torch.no_grad():
        codec.scale.fill_(0.5)
    settings = {"progress": silent, "lr": 0.05, "kl": 0.0, **SETTINGS}
    ss.train_autoencoder(codec, pictures(), out=out, steps=20, **settings)
    found = ss.train_autoencoder(Means(3), pictures(), out=out, steps=40, resume=True, **settings)
    assert found.step == 40
    loaded = ss.load_codec(out, Means(3))
    assert float(loaded.scale) == float(found.codec.scale) > 0.8
    assert loaded.data.shape == (3, 16, 16)
    with pytest.raises(ValueError, match=r"give the codec, such as ss.load_codec\(path, codec="):
        ss.load_codec(out)
    with pytest.raises(ValueError, match="weights of another network"):
        ss.load_codec(out, KLAutoencoder(3))
    with pytest.raises(ValueError, match="one that a program made"):
        ss.train_autoencoder(out / "config.yaml", pictures(), progress=silent)


def test_a_table_codec_given_as_an_object_is_described(tmp_path):
    codec = KLAutoencoder(3, 2, widths=(8, 8), groups=2, attention=True)
    ss.train_autoencoder(codec, pictures(), out=tmp_path, steps=2, progress=silent, **SETTINGS)
    assert ss.load_codec(tmp_path).arguments == {**codec.arguments, "widths": [8, 8]}


def test_half_precision_keeps_the_decoder_of_fp16_in_float32():
    codec = KLAutoencoder(3, 2, widths=(8, 8), groups=2)
    z = 100 * torch.randn(2, 2, 4, 4)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(codec.output(z), codec.output(z).float())
        narrow = codec.output(z)
    assert torch.equal(narrow, codec.output(z))
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(codec.output(z), narrow)
        assert codec.passed(torch.zeros(2, 3, 16, 16), z).output.dtype == torch.float32
    for precision in ("bf16", "fp16"):
        assert trained(steps=2, precision=precision).records[-1]["loss"] < 2


def refusal(*arguments, **settings) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        ss.train_autoencoder(*arguments, **{"progress": silent, **settings})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_input_is_refused_in_one_line(run, tmp_path):
    made = {"autoencoder": SMALL}
    assert "need an Autoencoder or a configuration, got int" in refusal(3, pictures())
    assert "has examples of shape (2,)" in refusal(made, torch.randn(50, 2))
    assert "encodes pictures of 1 channels" in refusal(KLAutoencoder(1), pictures())
    assert "needs data" in refusal(KLAutoencoder(3))
    assert "l1=0 and l2=0 reconstruct nothing" in refusal(made, pictures(), l1=0, l2=0)
    assert "lrr: no setting of training; did you mean 'lr'" in refusal(made, pictures(), lrr=1)
    assert "steps: must be" in refusal(made, pictures(), steps=-1)
    assert "resume and overwrite need out" in refusal(made, pictures(), resume=True)
    assert "take plain" in refusal(made, pictures(), augment="edm")
    assert "holds a run" in refusal(made, pictures(), out=run)
    other = refusal(made, pictures(seed=1), out=run, resume=True, **SETTINGS)
    assert "the examples of data have changed" in other
    wider = {"autoencoder": {**SMALL, "latent_channels": 4}}
    assert "autoencoder.latent_channels=4" in refusal(
        wider, pictures(), out=run, resume=True, **SETTINGS
    )
    assert not list(tmp_path.iterdir())


class Wrong(Means):
    def passed(self, x, noise):
        return Passed(x[:, :1], noise, noise.flatten(1).sum(1))


class Failing(Means):
    def passed(self, x, noise):
        raise KeyError("weights\nand more")


def test_a_codec_of_a_program_that_does_not_fit_is_refused():
    assert "output of passed is (2, 1, 16, 16), expected (2, 3, 16, 16)" in refusal(
        Wrong(3), pictures()
    )
    assert "codec: it fails for x of shape (2, 3, 16, 16)" in refusal(Failing(3), pictures())
    codec = Means(3)
    codec.penalty = "entropy"
    assert "its penalty 'entropy' has no weight" in refusal(codec, pictures())


def test_the_folders_and_files_of_the_other_kind_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match="holds the run of an autoencoder, not of a model"):
        ss.load(run)
    with pytest.raises(ValueError, match=r"-checkpoint file; ss.load_codec reads it"):
        ss.load(next((run / "checkpoints").glob("step-*.pt")))
    model = ss.train({"network": "mlp", "data": "moons"}, out=tmp_path, steps=2, progress=silent)
    assert model.step == 2
    for settings in ({}, {"resume": True}, {"overwrite": True}):
        assert "holds the run of a model, not of an autoencoder" in refusal(
            {"autoencoder": SMALL}, pictures(), out=tmp_path, **settings
        )
        with pytest.raises(ValueError, match="holds the run of an autoencoder"):
            ss.train({"network": "mlp", "data": "moons"}, out=run, progress=silent, **settings)
    with pytest.raises(ValueError, match="holds the run of a model"):
        ss.load_codec(tmp_path)
    with pytest.raises(ValueError, match=r"ss\.load reads it"):
        ss.load_codec(tmp_path / "weights-ema.safetensors")


def test_a_loss_that_is_not_finite_ends_the_training():
    with pytest.raises(TrainingError, match=r"step \d+: loss .* lower lr="):
        trained(steps=50, lr=1e12, clip=None, validate_every=100)


def test_remarks_say_the_size_of_the_latents():
    heard: list[str] = []

    class Heard(Quiet):
        def say(self, text: str) -> None:
            heard.append(text)

    trained(steps=1, listener=Heard(), warmup=5)
    assert "latents (3, 4, 4), 16 times fewer numbers than a picture" in heard
    assert any("train.warmup=5 is longer" in line for line in heard)
