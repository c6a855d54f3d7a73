"""A classifier of noisy states: what it learns, and that its training goes on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import scoresde as ss
from scoresde import VP, Denoiser, ScoreModel, guidance
from scoresde import parameterization as parameterizations
from scoresde.cli.main import main
from scoresde.data import dataset_of
from scoresde.guidance import NoisyClassifier
from scoresde.nn import MLP, ImageClassifier, VectorClassifier
from scoresde.progress import silent
from scoresde.testing import Mixture

F64 = torch.float64
MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=F64)


def data(n: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    label = torch.arange(n) % 2
    g = torch.Generator().manual_seed(0)
    return MEANS[label] + 0.5 * torch.randn(n, 2, generator=g, dtype=F64), label


def model() -> ScoreModel:
    return ScoreModel(MLP(2, width=8, classes=2), VP(), parameterizations.v)


def trained(steps: int = 4, **settings) -> ss.runs.train_classifier.TrainedClassifier:
    settings = {"batch": 32, "width": 4, "progress": silent, "device": "cpu"} | settings
    return ss.train_classifier(model(), data(), steps=steps, **settings)


def test_it_learns_the_posterior_of_noisy_states():
    """In the units of the model: the data are standardised. Also its gradient."""
    found = trained(400, batch=256, width=24, lr=3e-3)
    scaling = dataset_of(data(), holdout=0).scaling
    shift, scale = torch.tensor(scaling.shift, dtype=F64), torch.tensor(scaling.scale, dtype=F64)
    means, stds = (MEANS - shift) / scale, (0.5 / scale).expand(2, 2)
    mixture = Mixture(torch.ones(2), means, stds)
    classes = [Mixture(torch.ones(1), means[[k]], stds[[k]]) for k in (0, 1)]
    sde, log_prob = VP(), found.model.log_prob(1)
    for ratio in (0.5, 1.5):
        t = sde.time(-torch.tensor(ratio, dtype=F64).log())
        g = torch.Generator().manual_seed(1)
        x = sde.perturb(mixture.sample(500, g), t, torch.randn(500, 2, generator=g, dtype=F64))
        exact = torch.stack([each.log_prob(x, sde, t) for each in classes], 1).softmax(1)[:, 1]
        assert float((log_prob(x, t).exp() - exact).abs().mean()) < 0.05
        zero = Denoiser(sde, lambda x, t: torch.zeros_like(x))
        moved = guidance.classifier(log_prob)(zero)(x, t)
        want = classes[1].denoiser(sde)(x, t) - mixture.denoiser(sde)(x, t)
        unsure = (exact > 0.1) & (exact < 0.9)  # elsewhere gradients are learned late
        error = (moved - want)[unsure].square().mean() / want[unsure].square().mean()
        assert error < 0.1
    assert found.accuracy[0.1] > 0.9 > found.accuracy[5.0]


def test_a_resumed_training_gives_the_same_bits(tmp_path, monkeypatch):
    whole = trained(6, out=tmp_path / "whole.pt", checkpoint_every=3)
    kept = tmp_path / "part.pt"
    save = ss.runs.train_classifier._save

    def save_and_stop(file, *rest):
        save(file, *rest)
        raise InterruptedError

    monkeypatch.setattr(ss.runs.train_classifier, "_save", save_and_stop)
    with pytest.raises(InterruptedError):
        trained(6, out=kept, checkpoint_every=3)
    monkeypatch.setattr(ss.runs.train_classifier, "_save", save)
    again = trained(6, out=kept, checkpoint_every=3, resume=True)
    loaded = ss.load_classifier(kept, model())
    for own in (again.model, loaded):
        for a, b in zip(own.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(a, b)
    assert not again.model.training
    assert not loaded.training


def test_a_seed_decides_and_global_generators_do_not():
    guided, settings = model(), {"steps": 3, "width": 4, "progress": silent, "device": "cpu"}
    before = torch.random.get_rng_state()
    one = ss.train_classifier(guided, data(), seed=1, **settings)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    for seed, same in ((1, True), (2, False)):
        other = ss.train_classifier(guided, data(), seed=seed, **settings)
        pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == same


@pytest.mark.parametrize("shape", [(2, 9, 7), (5,)])
def test_networks_take_any_size_and_mix_no_samples(shape):
    torch.manual_seed(0)
    make = ImageClassifier if len(shape) == 3 else VectorClassifier
    net = make(shape[0], 3, width=8)
    assert torch.equal(net(torch.randn(2, *shape), torch.zeros(2)), torch.zeros(2, 3))
    torch.nn.init.normal_(net.head.weight)
    labelled = NoisyClassifier(net.eval(), VP(), ["a", "b", "c"])
    x, t = torch.randn(4, *shape), torch.tensor(0.3, dtype=F64)
    zero = Denoiser(VP(), lambda x, t: torch.zeros_like(x))
    guided = guidance.classifier(labelled.log_prob(["a", "c", "b", "a"]))(zero)
    rows = torch.tensor([2, 1])
    torch.testing.assert_close(guided.among(rows, 4)(x[rows], t), guided(x, t)[rows])
    alone = guidance.classifier(labelled.log_prob("b"))(zero)
    torch.testing.assert_close(alone(x[2:3], t.expand(1)), guided(x, t)[2:3])


def broken(tmp_path: Path) -> Path:
    path = tmp_path / "c.pt"
    path.write_bytes(b"PK\x03\x04 and no more")
    return path


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: ss.train_classifier(model()), "data: the model names no data"),
        (lambda p: ss.train_classifier(model(), data()[0], progress=silent), "needs labels"),
        (lambda p: trained(0), "need steps >= 1"),
        (lambda p: trained(resume=True), "resume and overwrite need out"),
        (lambda p: trained(out=broken(p)), "exists"),
        (lambda p: trained(out=broken(p), resume=True), "damaged"),
        (lambda p: trained(out=p / "none.pt", resume=True), "no such file"),
        (lambda p: (trained(out=p / "a.pt"), trained(5, out=p / "a.pt", resume=True)), "steps=4"),
        (
            lambda p: (
                trained(out=p / "a.pt"),
                ss.load_classifier(
                    p / "a.pt", ScoreModel(MLP(2), ss.LinearFlow(), parameterizations.v)
                ),
            ),
            "another process",
        ),
        (lambda p: NoisyClassifier(MLP(2), VP(), ["one"]), "two or more"),
        (lambda p: trained().model.log_prob("cat"), "no class 'cat'"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_command(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "classifier.pt"
    small = {"width": 8, "multipliers": (1,), "blocks": 1, "attention": ()}
    config = {"data": "digits", "conditional": True, "network": {"kind": "unet", **small}}
    ss.train(config, steps=1, batch=8, out=run, progress=silent, device="cpu")
    command = ["train-classifier", "--checkpoint", str(run), "--out", str(out)]
    command += ["--steps", "3", "--batch", "8", "--width", "8", "--device", "cpu"]
    assert main(command) == 0
    assert "sigma/alpha" in capsys.readouterr().out
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    loaded = ss.load(run)
    with pytest.raises(ValueError, match="the model was trained on"):  # other units
        ss.train_classifier(loaded, (torch.randn(20, 1, 8, 8), torch.arange(20) % 10))
    guide = guidance.classifier(ss.load_classifier(out, loaded).log_prob(3), 2.0)
    x = torch.randn(2, 1, 8, 8)
    assert ss.sample(guide(loaded.denoiser()), x, nfe=3).isfinite().all()
