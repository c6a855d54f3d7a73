"""The bound of a chain as a loss: closed forms on a Gaussian, and the variance that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

import scoresde as ss
from scoresde import DiscreteVP, ScoreModel, parameterization
from scoresde.betas import linear
from scoresde.data import Scaling
from scoresde.likelihood.discrete import LEARNED, SMALL, bound_terms, discrete_elbo
from scoresde.nn import MLP
from scoresde.runs.log import Quiet
from scoresde.samplers import ddpm
from scoresde.training import Plan, TrainState
from scoresde.training.batches import draw_batch
from scoresde.training.distributed import Rank
from scoresde.training.loop import _of_all, update
from scoresde.training.loss_aware import LossHistory
from scoresde.training.losses import Prediction, predicted, sigma2
from scoresde.training.times import DiscreteTimes, LossAware
from scoresde.training.vlb import Hybrid, Vlb, vlb

F64 = torch.float64
N, STD = 40, 0.6
BETAS = linear(1e-3, 0.2)(N)
SDE = DiscreteVP(BETAS)
T = torch.arange(1, N + 1, dtype=F64) / N


class Exact(nn.Module):
    """x0_hat of N(0, STD^2), as the output F of x0, and a free v for every level."""

    def __init__(self, v: float = 0.0, factor: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("coordinate", -SDE.lam(T) / 4)
        self.v = nn.Parameter(torch.full((N,), v, dtype=F64))
        self.factor = nn.Parameter(torch.tensor(factor, dtype=F64))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        level = (noise[:, None] - self.coordinate).abs().argmin(1)
        a2 = torch.sigmoid(-8 * noise.double())
        gain = a2.sqrt() * STD**2 / (a2 * STD**2 + 1 - a2)
        v = self.v[level][:, None].expand_as(x)
        return torch.cat([self.factor * gain[:, None] * x, v], 1)


def model(v: float = 0.0) -> ScoreModel:
    return ScoreModel(Exact(v), SDE, parameterization.x0, variance=True)


class Chain:
    """The textbook quantities of every level, from the betas alone."""

    def __init__(self) -> None:
        beta = torch.tensor(BETAS, dtype=F64)
        bar = torch.cumprod(1 - beta, 0)
        last = torch.cat([torch.ones(1, dtype=F64), bar[:-1]])
        self.beta, self.small = beta, beta * (1 - last) / (1 - bar)
        self.gain = last.sqrt() * beta / (1 - bar)
        self.spread = STD**2 * (1 - bar) / (bar * STD**2 + 1 - bar)  # Var(x0 | x_t)
        # Of the decoder: between the small variance of level 2 and (sigma / alpha)^2.
        ratio = (1 - bar[0]) / bar[0]
        self.small[0], self.beta[0], self.gain[0] = min(self.small[1], ratio), ratio, 1

    def variance(self, mix: Tensor) -> Tensor:
        return torch.exp(mix * self.beta.log() + (1 - mix) * self.small.log())

    @property
    def best(self) -> Tensor:
        """The variance of x_s given x_t, and of x_0 given x_1, for the data themselves."""
        best = self.small + self.gain**2 * self.spread
        best[0] = self.spread[0]
        return best

    def terms(self, variance: Tensor) -> Tensor:
        """E KL of every level, and minus the expected log-density of the decoder, in nats."""
        miss = self.gain**2 * self.spread / variance
        kl = (self.small / variance - 1 - (self.small / variance).log() + miss) / 2
        kl[0] = (math.log(2 * math.pi) + variance[0].log() + miss[0]) / 2
        return kl


def design() -> tuple[Tensor, Tensor, Tensor]:
    """x0, t and eps whose mean is the expectation of every quadratic, at each level."""
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=F64)
    x0, eps = (signs[:, i].repeat(N)[:, None] for i in (0, 1))
    return STD * x0, T.repeat_interleave(4), eps


def bits(found: ScoreModel) -> Tensor:
    """The mean loss of every level (n,)."""
    x0, t, eps = design()
    return vlb(predicted(found, x0, t, eps, {}), x0, N).reshape(N, 4).mean(1)


@pytest.mark.parametrize("v", [-1.0, -0.3, 0.0, 0.8, 1.0])
def test_the_bound_of_an_exact_denoiser_is_its_closed_form(v):
    chain, mix = Chain(), torch.tensor((v + 1) / 2, dtype=F64)
    expected = chain.terms(chain.variance(mix)) * N / math.log(2)
    torch.testing.assert_close(bits(model(v)), expected, rtol=1e-10, atol=1e-10)


def test_at_the_best_variance_the_bound_is_the_entropy():
    """Data, chain and model are then the same Gaussian: nothing is lost but the prior."""
    found, chain = model(), Chain()
    mix = (chain.best / chain.small).log() / (chain.beta / chain.small).log()
    found.net.v.data = 2 * mix - 1
    entropy = (1 + math.log(2 * math.pi * STD**2)) / 2
    total = bits(found).mean() * math.log(2)
    # q(x_T) = N(0, r), prior N(0, 1): E KL(q(x_T | x0) | prior) is KL plus mutual information.
    a2, s2 = SDE.alpha(T[-1]) ** 2, SDE.sigma(T[-1]) ** 2
    prior = (a2 * STD**2 + s2 - 1 - s2.log()) / 2
    marginal = kl_divergence(Normal(0.0, (a2 * STD**2 + s2).sqrt()), Normal(0.0, 1.0))
    torch.testing.assert_close(total + prior, entropy + marginal, rtol=1e-10, atol=1e-10)


PROCESSES = [ss.VP(), ss.SubVP(), ss.VE(), ss.EDM(), ss.Cosine(), ss.LinearFlow(), SDE]


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
def test_on_every_process_it_is_the_entropy_that_the_chain_transmits(sde):
    """H(x0) - I(x0; x_T) at the best variances, for any number of levels."""
    n = 17
    times = DiscreteTimes(n).at(sde, torch.arange(n, dtype=F64))
    t = times.repeat_interleave(4)
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]], dtype=F64).repeat(n, 1)
    x0, eps = STD * signs[:, :1], signs[:, 1:]
    a2, s2 = (sde.alpha(t) ** 2)[:, None], (sde.sigma(t) ** 2)[:, None]
    error = a2.sqrt() * STD**2 / (a2 * STD**2 + s2) * sde.perturb(x0, t, eps) - x0
    spread = STD**2 * s2 / (a2 * STD**2 + s2)
    step = sde.t_max / n
    lowest = (t < 1.5 * step)[:, None]
    reverse = sde.reverse(t, torch.where(lowest[:, 0], t / 2, t - step)).to(x0)
    best = reverse.small + reverse.gain**2 * spread
    mix = (best / reverse.small).log() / (reverse.large / reverse.small).log()
    ratio = s2 / a2
    small = torch.minimum(sde.reverse(t + step, t).small[:, None], ratio)
    mix = torch.where(lowest, (spread / small).log() / (ratio / small).log(), mix)
    loss = vlb(Prediction(sde, t, torch.ones_like(t), error, mix), x0, n)
    entropy = (1 + math.log(2 * math.pi * STD**2)) / 2
    known = ((a2[-1] * STD**2 + s2[-1]) / s2[-1]).log() / 2
    assert float(loss.mean()) * math.log(2) == pytest.approx(entropy - float(known), rel=1e-8)


@pytest.mark.parametrize("objective", [Vlb(), Hybrid()], ids=repr)
def test_the_learned_variance_becomes_the_best_one(objective):
    found, chain = model(), Chain()
    x0, t, eps = design()
    optimizer = torch.optim.Adam([found.net.v], lr=0.06)
    for _ in range(250):
        optimizer.zero_grad()
        objective(predicted(found, x0, t, eps, {}), x0, N, sigma2, None).mean().backward()
        optimizer.step()
    ratio = chain.variance((found.net.v.detach() + 1) / 2) / chain.best
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=1e-3, atol=0)


def test_the_hybrid_leaves_the_mean_to_the_denoising_loss():
    gradients = {}
    x0, t, eps = design()
    for objective in (None, Hybrid(0.5), Vlb()):
        found = model(0.4)
        found.net.factor.data.fill_(0.7)
        prediction = predicted(found, x0, t, eps, {})
        loss = prediction.loss(sigma2)
        if objective is not None:
            loss = objective(prediction, x0, N, sigma2, None)
        loss.mean().backward()
        gradients[objective] = found.net.factor.grad, found.net.v.grad
    simple, hybrid, bound = gradients.values()
    torch.testing.assert_close(hybrid[0], simple[0])
    torch.testing.assert_close(hybrid[1], 0.5 * bound[1])
    assert simple[1] is None or not simple[1].any()
    assert not torch.allclose(bound[0], simple[0])


@pytest.mark.parametrize("mix", [SMALL, 0.4, LEARNED])
def test_the_bound_agrees_with_an_independent_sum(mix):
    """With draws of |eps|^2 = D, the mean of the control variates is theirs in every draw."""
    found, chain, draws = model(0.3).double(), Chain(), []
    found.net.factor.data.fill_(0.8)
    generator = torch.Generator().manual_seed(0)

    def noise(x: Tensor, t=None, s=None) -> Tensor:
        draws.append(torch.randint(0, 2, x.shape, generator=generator).double() * 2 - 1)
        return draws[-1]

    x = torch.randn(5, 3, generator=generator, dtype=F64)
    terms = bound_terms(found.denoiser(), x, T.flip(0), mix=mix, decodes=2, noise=noise)
    v = chain.variance(torch.tensor(0.65 if mix is None else mix, dtype=F64))
    for row, (level, eps) in enumerate(zip(range(N - 1, 0, -1), draws, strict=False)):
        bar = SDE.alpha(T[level]) ** 2
        z = bar.sqrt() * x + (1 - bar).sqrt() * eps
        x0 = 0.8 * bar.sqrt() * STD**2 / (bar * STD**2 + 1 - bar) * z
        mean, small = chain.gain[level] * (x - x0), chain.small[level]
        kl = kl_divergence(Normal(mean, small.sqrt()), Normal(0.0, v[level].sqrt())).sum(1)
        torch.testing.assert_close(terms.transitions[row], kl, rtol=1e-9, atol=1e-9)
    bar = SDE.alpha(T[0]) ** 2
    decoder = [
        Normal(
            0.8 * bar.sqrt() * STD**2 / (bar * STD**2 + 1 - bar)
            * (bar.sqrt() * x + (1 - bar).sqrt() * eps),
            (chain.beta[0] if mix is not None else v[0]).sqrt(),
        ).log_prob(x).sum(1)
        for eps in draws[-2:]
    ]  # fmt: skip
    torch.testing.assert_close(terms.decoder, sum(decoder) / 2, rtol=1e-9, atol=1e-9)
    bar = SDE.alpha(T[-1]) ** 2
    last = (1 - bar).sqrt()
    prior = kl_divergence(Normal(bar.sqrt() * x, last), Normal(0.0, last)).sum(1)
    torch.testing.assert_close(terms.prior, prior, rtol=1e-6, atol=1e-6)
    generator.manual_seed(0)
    torch.randn(5, 3, generator=generator, dtype=F64)
    whole = discrete_elbo(found.denoiser(), x, T.flip(0), mix=mix, decodes=2, noise=noise)
    bits = terms.bits_per_dim((3,))
    total = (bits.decoder - bits.transitions.sum(0) - bits.prior) * 3 * math.log(2)
    torch.testing.assert_close(whole.log_prob, total)


def test_the_loss_is_the_bound_that_scoring_gives():
    """Over the same draws: mean over levels of the loss, and all terms but the prior."""
    found = model(0.3)
    x0, _, _ = design()
    x0 = x0[:4]

    def noise(x: Tensor, t=None, s=None) -> Tensor:
        return torch.tensor([[1.0], [-1.0], [1.0], [-1.0]], dtype=F64).to(x)

    got = discrete_elbo(found.denoiser(), x0, T.flip(0), mix=LEARNED, decodes=2, noise=noise)
    terms = bound_terms(found.denoiser(), x0, T.flip(0), mix=LEARNED, decodes=2, noise=noise)
    own = -bits(found).mean().detach() * math.log(2)
    assert float((got.log_prob + terms.prior).mean()) == pytest.approx(float(own), rel=1e-10)


def test_a_learned_draw_makes_one_call_and_has_the_learned_variance():
    found, calls = model(0.3), []
    found.net.register_forward_hook(lambda *a: calls.append(1))
    x, z = torch.zeros(6, 2, dtype=F64), torch.ones(6, 2, dtype=F64)
    got, _ = ddpm("learned")(found.denoiser(), x, T[20], T[19], None, lambda x, t, s: z)
    v = Chain().variance(torch.tensor(0.65, dtype=F64))[20]
    torch.testing.assert_close(got.detach(), v.sqrt() * z)
    assert len(calls) == 1


class TestAsASetting:
    def test_a_variance_without_its_loss_is_refused(self):
        with pytest.raises(ValueError, match="nothing trains the variance"):
            TrainState.of(model(), Plan())
        plain = ScoreModel(nn.Linear(2, 2), SDE, parameterization.v)
        with pytest.raises(ValueError, match="this model lacks"):
            TrainState.of(plain, Plan(objective=Hybrid(), times=DiscreteTimes(N)))
        with pytest.raises(ValueError, match="of a chain of levels"):
            Plan(objective=Vlb())
        with pytest.raises(ValueError, match="may be negative"):
            Plan(objective=Vlb(), times=DiscreteTimes(N), learned_weight=True)

    def test_a_network_has_a_second_half_only_when_asked(self, tmp_path):
        """From a configuration to samples and scores that use the variance; resumed to the bit."""
        tree = {
            "data": {"kind": "moons", "train": 200, "test": 50},
            "sde": {"kind": "discrete_vp", "levels": 20, "table": {"kind": "linear", "end": 0.3}},
            "network": {"kind": "mlp", "width": 16, "depth": 1, "head": "variance"},
            "train": {
                "objective": "hybrid",
                "weighting": "sigma2",
                "times": {"kind": "loss_aware", "n": 20, "history": 2},
                "batch": 32,
                "steps": 12,
                "offset_noise": 0.1,
                "input_noise": 0.1,
                "prefetch": 2,
                "keep_best": False,
            },
        }
        whole = ss.train(tree, listener=Quiet())
        parts = ss.train({**tree, "train": {**tree["train"], "steps": 7}}, out=tmp_path / "parts",
                         listener=Quiet())  # fmt: skip
        parts = ss.train(tree, out=tmp_path / "parts", resume=True, listener=Quiet())
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, parts.model.state_dict()[name]), name
        assert whole.model.net.head.out_features == 4
        denoiser = whole.model.denoiser()
        x0, mix = denoiser.with_variance(torch.zeros(3, 2), torch.tensor(0.5))
        assert x0.shape == mix.shape == (3, 2)
        del tree["network"]["head"]
        with pytest.raises(ValueError, match="this model lacks"):
            ss.train(tree, listener=Quiet())
        settings = {"objective": "hybrid", "times": "levels", "steps": 1, "batch": 8}
        mine = ScoreModel(
            MLP(2, width=4, outputs=4), SDE, parameterization.v, variance=True
        )  # of which the configuration says nothing
        run = ss.train(mine, torch.randn(40, 2), listener=Quiet(), **settings)
        assert run.model.variance


class TestLossAware:
    def history(self, n: int = 5) -> LossHistory:
        return LossHistory(LossAware(n, history=3, least=0.1))

    def test_uniform_until_every_level_has_its_losses(self):
        history = self.history()
        assert torch.equal(history.probabilities, torch.full((5,), 0.2, dtype=F64))
        history.add(torch.arange(4).repeat(5), torch.ones(20))
        assert torch.equal(history.probabilities, torch.full((5,), 0.2, dtype=F64))

    def test_probabilities_are_the_root_mean_squares_of_the_last_losses(self):
        history, losses = self.history(), torch.rand(7, 5, dtype=F64)
        for row in losses:
            history.add(torch.tensor([4, 1, 0, 3, 2]), row[[4, 1, 0, 3, 2]])
        size = losses[-3:].square().mean(0).sqrt()
        torch.testing.assert_close(history.probabilities, 0.9 * size / size.sum() + 0.1 / 5)

    def test_the_weighted_loss_has_the_mean_of_uniform_levels(self):
        history, loss = self.history(), torch.tensor([1.0, 4.0, 0.0, 2.0, 9.0], dtype=F64)
        history.add(torch.arange(5).repeat(3), loss.repeat(3))
        u = (torch.arange(100_000, dtype=F64) + 0.5) / 100_000
        level, weight = history.draw(u)
        assert float((loss[level] * weight).mean()) == pytest.approx(float(loss.mean()), rel=1e-3)
        counts = level.bincount(minlength=5) / len(u)
        torch.testing.assert_close(counts.double(), history.probabilities, rtol=0, atol=1e-4)

    def test_all_processes_record_the_losses_of_all(self, monkeypatch, plan):
        parts: list[Tensor] = []
        monkeypatch.setattr(Rank, "add", lambda self, tensors: parts.extend(tensors))
        losses = torch.rand(6)
        for index in range(3):
            _of_all(replace(plan, batch=6, rank=Rank(index, 3)), losses[2 * index : 2 * index + 2])
        assert torch.equal(sum(parts).flatten(), losses)

    def test_training_draws_the_levels_of_large_losses(self, split, scaling, plan, fresh):
        plan = replace(plan, times=LossAware(4, history=2), steps=60)
        state = TrainState.of(fresh().model, plan)
        for _ in range(20):
            update(state, plan, split, scaling)
        assert int(state.history.seen.sum()) == 20 * plan.batch
        state.history.losses[:] = 0
        state.history.losses[2] = 1
        found = update(state, plan, split, scaling)
        assert (found.t == 0.75).float().mean() > 0.9


class TestFurtherNoise:
    def test_offset_noise_is_the_same_in_all_pixels_of_a_channel(self, split, scaling, plan):
        plain = draw_batch(plan, split, scaling, SDE, 0)
        offset = draw_batch(replace(plan, offset_noise=0.3), split, scaling, SDE, 0)
        gap = offset.eps - plain.eps
        assert gap.flatten(2).var(2).max() < 1e-12
        assert gap[:, :, 0, 0].std() == pytest.approx(0.3, rel=0.6)
        assert torch.equal(offset.x0, plain.x0)
        assert torch.equal(offset.t, plain.t)

    def test_input_noise_changes_the_input_and_not_the_target(self, split, scaling, plan):
        plan = replace(plan, input_noise=0.1)
        batch = draw_batch(plan, split, scaling, SDE, 0)
        assert torch.equal(batch.eps, draw_batch(replace(plan, input_noise=0.0), split, scaling,
                                                 SDE, 0).eps)  # fmt: skip
        seen = []

        class Seeing(nn.Module):
            def forward(self, x: Tensor, noise: Tensor) -> Tensor:
                seen.append(x)
                return 0 * x

        found = ScoreModel(Seeing(), SDE, parameterization.eps)
        loss, plain = (
            predicted(found, batch.x0, batch.t, batch.eps, {}, shaken).loss(None)
            for shaken in (batch.shaken, None)
        )
        assert torch.equal(loss, plain)
        assert torch.equal(loss, batch.eps.square().flatten(1).mean(1))
        sigma = SDE.sigma(batch.t).float()[:, None, None, None]
        torch.testing.assert_close(seen[0] - seen[1], sigma * batch.shaken, rtol=1e-4, atol=1e-6)


def test_gaussian_levels_train_through_the_decoder():
    """Undithered levels: the first level has the probability of a level, not a density."""
    scaling = Scaling(17)
    x0 = scaling.encode(torch.randint(0, 17, (8, 3), generator=torch.Generator().manual_seed(0)))
    found = ScoreModel(Exact(), SDE, parameterization.x0, variance=True)
    t = torch.full((8,), 1 / N, dtype=F64)
    prediction = predicted(found, x0.double(), t, torch.randn(8, 3, dtype=F64), {})
    loss = vlb(prediction, x0.double(), N, scaling)
    assert (loss > 0).all()  # minus the logarithm of a probability
    loss.sum().backward()
    assert found.net.v.grad.isfinite().all()
