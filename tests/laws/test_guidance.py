"""Guidance is what its equations say, for every process and with every step.

The data are a mixture of nine Gaussians in the plane, a row and a column of three each. Given x_t,
the row depends on its first coordinate alone and the column on the second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from scoresde import VP, Denoiser, DiscreteVP, LinearFlow, ScoreModel, betas, guidance, sample
from scoresde import parameterization as parameterizations
from scoresde.conditions import Label
from scoresde.evaluation.transport import directions, sliced_wasserstein
from scoresde.likelihood import elbo, log_likelihood
from scoresde.nn import MLP
from scoresde.registry import STEPS, build_step, grid_steps
from scoresde.samplers import grids, per_sample_noise
from scoresde.sde import unit_alpha
from scoresde.testing import Mixture
from tests.laws.conftest import WholeFlow

F64 = torch.float64
ROWS, COLUMNS = torch.tensor([-1.0, 0.2, 1.1]).to(F64), torch.tensor([-0.7, 0.4, 1.5]).to(F64)
ROW_STDS, COLUMN_STDS = (
    torch.tensor([0.3, 0.5, 0.4]).to(F64),
    torch.tensor([0.5, 0.3, 0.6]).to(F64),
)
ROW_WEIGHTS, COLUMN_WEIGHTS = torch.tensor([1, 2, 3.0]).to(F64), torch.tensor([2, 1, 1.0]).to(F64)
SCALES = [-0.5, 0.0, 0.3, 1.0, 2.5]


def law(row: int | None = None, column: int | None = None) -> Mixture:
    """The data of a row and a column; of all without them."""
    keep = [torch.arange(3) if place is None else torch.tensor([place]) for place in (row, column)]
    return Mixture(
        torch.cartesian_prod(ROW_WEIGHTS[keep[0]], COLUMN_WEIGHTS[keep[1]]).prod(1),
        torch.cartesian_prod(ROWS[keep[0]], COLUMNS[keep[1]]),
        torch.cartesian_prod(ROW_STDS[keep[0]], COLUMN_STDS[keep[1]]),
    )


class Exact(nn.Module):
    """The exact denoiser of the rows and columns that ``embed`` says, at unit variance."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, z: Tensor, noise: Tensor, *, embed: Tensor) -> Tensor:
        self.batches.append(len(z))
        alpha, sigma = (unit_alpha(lam)[:, None, None] for lam in (-4 * noise, 4 * noise))
        row, column = (part[:, :3] / 2 + part[:, 3:] / 2 for part in (embed[:, :4], embed[:, 4:]))
        said = (row[:, :, None] * column[:, None, :]).flatten(1).to(z)
        _, means, variances = law()._components
        gap, total = z[:, None] - alpha * means, alpha**2 * variances + sigma**2
        joint = law()._components[0] - ((gap**2 / total + total.log()) / 2).sum(2)
        posterior = (joint + said.log()).softmax(1)[:, :, None]
        return (posterior * (means + alpha * variances * gap / total)).sum(1)


def exact(sde=None, **settings) -> ScoreModel:
    conditions = {"row": Label(3, **settings), "column": Label(3)}
    return ScoreModel(Exact(), sde or VP(), parameterizations.x0, conditions=conditions)


@dataclass(frozen=True)
class Posterior:
    """The exact log p(row | x_t) of one row, or of a row of each sample."""

    sde: object
    rows: Tensor

    @property
    def batch(self) -> int | None:
        return len(self.rows) if self.rows.ndim else None

    def among(self, rows: Tensor) -> Posterior:
        return replace(self, rows=self.rows[rows])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        each = torch.stack([law(row).log_prob(x, self.sde, t) for row in range(3)], 1)
        every = (each + ROW_WEIGHTS.log()).log_softmax(1)
        return every.gather(1, self.rows.expand(len(x))[:, None]).squeeze(1)


def states(sde, n: int = 6) -> list[tuple[Tensor, Tensor]]:
    """States at times of the process, one for all and one a sample."""
    g = torch.Generator().manual_seed(0)
    ts = grids.log_snr(sde, 4)
    found = []
    for t in (*ts, ts[1:4].repeat(n // 3)):
        eps = torch.randn(n, 2, generator=g, dtype=F64)
        found.append((sde.perturb(law().sample(n, g), t, eps), t))
    return found


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


# Closed forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_a_guided_score_is_its_closed_form(sde, scale):
    """(1 - s) score of p(x) + s score of p(x | row): of p(x) p(row | x)^s."""
    u, c = law().denoiser(sde), law(2).denoiser(sde)
    for guided in (
        guidance.free(exact(sde), {"row": 2}, scale=scale),
        guidance.combine(u, [(c, scale)]),
        guidance.classifier(Posterior(sde, torch.tensor(2)), scale)(u),
    ):
        for x, t in states(sde):
            close(guided(x, t), (1 - scale) * u(x, t) + scale * c(x, t))
            close(guided.eps(x, t), (1 - scale) * u.eps(x, t) + scale * c.eps(x, t))


def test_the_composition_of_two_conditions_is_that_of_both(sde):
    both = law(0, 2).denoiser(sde)
    parts = [(law(0).denoiser(sde), 1.0), (law(None, 2).denoiser(sde), 1.0)]
    for composed in (
        guidance.combine(law().denoiser(sde), parts),
        guidance.free(exact(sde), [({"row": 0}, 1.0), ({"column": 2}, 1.0)]),
        guidance.free(exact(sde), {"row": 0, "column": 2}),
    ):
        for x, t in states(sde):
            close(composed(x, t), both(x, t))


def test_weighted_conditions_under_a_scale():
    sde, s = VP(), 1.7
    u, c, d = (law(*place).denoiser(sde) for place in ((), (0,), (None, 2)))
    guided = guidance.free(exact(), [({"row": 0}, 0.8), ({"column": 2}, -0.3)], scale=s)
    for x, t in states(sde):
        v = u(x, t)
        close(guided(x, t), v + s * (0.8 * (c(x, t) - v) - 0.3 * (d(x, t) - v)))


def test_what_is_said_against_takes_the_place_of_nothing():
    sde, s = VP(), 2.0
    u, c = law(1).denoiser(sde), law(1, 2).denoiser(sde)
    guided = guidance.free(exact(), {"row": 1, "column": 2}, {"row": 1}, scale=s)
    away = guidance.free(exact(), None, {"row": 1}, scale=s)
    for x, t in states(sde):
        close(guided(x, t), (1 - s) * u(x, t) + s * c(x, t))
        close(away(x, t), (1 - s) * u(x, t) + s * law().denoiser(sde)(x, t))


@pytest.mark.parametrize("as_denoiser", [False, True])
def test_a_weaker_model_takes_the_place_of_the_unconditional(as_denoiser):
    sde, s = VP(), 2.0
    weak = ScoreModel(Halved(), sde, parameterizations.x0, conditions=exact().conditions)
    given = weak.denoiser(row=1) if as_denoiser else weak
    model = exact(dropout=0.0)
    guided = guidance.free(model, {"row": 1, "column": 0}, scale=s, weaker=given)
    main, own = law(1, 0).denoiser(sde), law(1).denoiser(sde) if as_denoiser else None
    for x, t in states(sde):
        u = (own or main)(x, t) / 2
        close(guided(x, t), (1 - s) * u + s * main(x, t))
    weak.net.batches.clear()
    guidance.free(model, {"row": 1}, scale=1.0, weaker=given)(*states(sde)[0])
    assert weak.net.batches == []


class Halved(Exact):
    """A model that is off by a factor."""

    def forward(self, z: Tensor, noise: Tensor, *, embed: Tensor) -> Tensor:
        return super().forward(z, noise, embed=embed) / 2


# Sampling ----------------------------------------------------------------------------------------

N, LINES = 300, directions(16, 2, torch.Generator().manual_seed(0))


def ordinary_distance() -> float:
    """The largest of 20 distances between exact samples."""
    draws = [law(2).sample(N, torch.Generator().manual_seed(100 + k)) for k in range(40)]
    pairs = zip(draws[::2], draws[1::2], strict=True)
    return max(sliced_wasserstein(x, y, LINES) for x, y in pairs)


NOISE_OF_W2 = ordinary_distance()


@pytest.mark.parametrize("name", STEPS)
def test_every_step_samples_the_conditional(name):
    """With the exact classifier at scale 1, and with free guidance at scale 1.

    Mean and variances are within 4.5 standard errors; 0.03 is left to a grid of 40 steps.
    """
    sde = VP()
    step = build_step(name, {}, 40)
    ts = grids.log_snr(sde, grid_steps(step, 40))
    start = per_sample_noise(range(1000, 1000 + N))(torch.empty(N, 2, dtype=F64))
    want = law(2)
    _, means, variances = want._components
    weights = COLUMN_WEIGHTS / COLUMN_WEIGHTS.sum()
    mean = (weights[:, None] * means).sum(0)
    var = (weights[:, None] * (variances + (means - mean) ** 2)).sum(0)
    for denoiser in (
        guidance.classifier(Posterior(sde, torch.tensor(2)))(law().denoiser(sde)),
        guidance.free(exact(sde), {"row": 2}, scale=1.0),
    ):
        noise = per_sample_noise(range(N))
        with torch.no_grad():
            x = sample(denoiser, start, ts, step, noise)
        assert ((x.mean(0) - mean).abs() < 4.5 * (var / N).sqrt() + 0.03).all()
        fourth = ((x - mean) ** 4).mean(0)
        assert ((x.var(0) - var).abs() < 4.5 * ((fourth - var**2) / N).sqrt() + 0.03).all()
        reference = want.sample(N, torch.Generator().manual_seed(7))
        assert sliced_wasserstein(x, reference, LINES) < 1.3 * NOISE_OF_W2 + 0.03


def test_composed_conditions_sample_both():
    sde = VP()
    denoiser = guidance.free(exact(sde), [({"row": 0}, 1.0), ({"column": 2}, 1.0)])
    x = per_sample_noise(range(N))(torch.empty(N, 2, dtype=F64))
    x = sample(denoiser, x, nfe=30)
    std = torch.stack([ROW_STDS[0], COLUMN_STDS[2]])
    assert ((x.mean(0) - torch.stack([ROWS[0], COLUMNS[2]])).abs() < 4.5 * std / N**0.5).all()
    assert ((x.std(0) / std - 1).abs() < 4.5 / (2 * N) ** 0.5).all()


# Network calls -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cond", "settings", "batches"),
    [
        ({"row": 1}, {"scale": 1.0}, [6]),
        ({"row": 1}, {"scale": 1.0, "interval": (0.5, 2.0), "parallel": 0.0}, [6]),
        ({"row": 1}, {"scale": 0.0}, [6]),
        ({"row": 1}, {"scale": 2.0}, [12]),
        ([({"row": 1}, 0.0)], {"scale": 2.0}, [6]),
        ({"row": 1}, {"scale": 2.0, "rescale": 0.7, "norm": 1.0}, [12]),
        ({"row": [0, 1, 2] * 2}, {"scale": 2.0, "negative": {"column": 1}}, [12]),
        ([({"row": 1}, 1.0), ({"column": 1}, 1.0)], {"scale": 3.0}, [18]),
        ([({"row": 1}, 0.5), ({"column": 1}, 0.5)], {"scale": 1.0}, [12]),
        ([({"row": 1}, 0.0), ({"column": 1}, 1.0)], {"scale": 1.0}, [6]),
    ],
)
def test_all_that_is_needed_is_one_network_call(cond, settings, batches):
    model = exact()
    denoiser = guidance.free(model, cond, **settings)
    assert model.net.batches == []
    for x, t in states(model.sde):
        model.net.batches.clear()
        denoiser(x, t)
        assert model.net.batches == batches


ROW = torch.tensor([0, 1, 2, 1, 0, 2])
POSTERIOR = Posterior(VP(), ROW)


class WithVariance(Exact):
    """The exact denoiser, and a mix of its own for each row."""

    def forward(self, z: Tensor, noise: Tensor, *, embed: Tensor) -> Tensor:
        mix = embed[:, :1].expand_as(z) / 4
        return torch.cat([super().forward(z, noise, embed=embed), mix.to(z)], 1)


@pytest.mark.parametrize("scale", [2.0, lambda ratio: 1.0, lambda ratio: 0.0])
def test_a_learned_variance_comes_with_the_same_call(scale):
    """It is that of the conditional; where the scale is 0 this takes a call of its own."""
    model = ScoreModel(
        WithVariance(), VP(), parameterizations.x0, conditions=exact().conditions, variance=True
    )
    guided, plain = guidance.free(model, {"row": 0}, scale=scale), model.denoiser(row=0)
    guided = guidance.clip(-9, 9)(guided)
    for x, t in states(model.sde)[:-1]:  # a time of each sample calls both
        model.net.batches.clear()
        x0, mix = guided.with_variance(x, t)
        assert model.net.batches == ([12] if scale == 2.0 else [6] if scale(t) else [6, 6])
        close(x0, guided(x, t))
        close(mix, plain.variance_mix(x, t))


@pytest.mark.parametrize("guide", [lambda d: d, guidance.clip(), guidance.classifier(POSTERIOR)])
def test_some_samples_of_a_batch_keep_their_learned_variance(guide):
    model = ScoreModel(
        WithVariance(), VP(), parameterizations.x0, conditions=exact().conditions, variance=True
    )
    denoiser, rows = guide(guidance.free(model, {"row": ROW}, scale=2.0)), torch.tensor([4, 1])
    x, t = states(VP())[0]
    mix = denoiser.among(rows, 6).with_variance(x[rows], t)[1]
    close(mix, denoiser.with_variance(x, t)[1][rows])


def test_classes_of_a_table_share_the_call_with_no_class():
    torch.manual_seed(0)
    net = MLP(2, width=8, depth=1, embedding=4, classes=3)
    nn.init.normal_(net.head.weight)
    calls = []
    net.register_forward_hook(lambda net, given, out: calls.append(len(out)))
    model = ScoreModel(net, VP(), parameterizations.v).eval()
    x, t = torch.randn(4, 2), torch.tensor(0.5, dtype=F64)
    got = guidance.free(model, {"label": [0, 1, 2, 0]}, scale=3.0)(x, t)
    assert calls == [8]
    u, c = model.denoiser()(x, t), model.denoiser(label=torch.tensor([0, 1, 2, 0]))(x, t)
    torch.testing.assert_close(got, u + 3 * (c - u))


def test_guidance_in_an_interval():
    """Elsewhere it is the conditional, in a call of the batch itself."""
    model, sde = exact(), VP()
    ratios = torch.tensor([5.0, 2.0, 1.0, 0.5, 0.1], dtype=F64)
    ts = sde.time(-ratios.log())
    denoiser = guidance.free(model, {"row": 1}, scale=2.0, interval=(0.499, 2.001))
    plain, guided = model.denoiser(row=1), guidance.free(model, {"row": 1}, scale=2.0)
    x = torch.randn(5, 2, dtype=F64)
    for t, inside in zip(ts, (False, True, True, True, False), strict=True):
        model.net.batches.clear()
        got = denoiser(x, t)
        assert model.net.batches == [10 if inside else 5]
        close(got, (guided if inside else plain)(x, t))
        close(denoiser(x, t.expand(5)), got)
    for reach, t in (((0.0, 0.2), 1e-5), ((9.0, math.inf), 1.0)):  # to the ends of time
        ends = guidance.free(model, {"row": 1}, scale=2.0, interval=reach)
        t = torch.tensor(t).float()
        torch.testing.assert_close(ends(x, t), guided(x, t))
        close(ends(x, ts[2]), plain(x, ts[2]))
    mixed = denoiser(x, ts)
    close(mixed[[0, 4]], plain(x, ts)[[0, 4]])
    close(mixed[1:4], guided(x, ts)[1:4])


def test_a_schedule_is_the_scale_at_each_level():
    model, sde = exact(), VP()
    denoiser = guidance.free(model, {"row": 1}, scale=lambda ratio: 1 + ratio / (1 + ratio))
    for x, t in states(sde):
        got = denoiser(x, t)
        for i, one in enumerate(t.expand(len(x))):
            ratio = float(sde.sigma(one) / sde.alpha(one))
            at = guidance.free(model, {"row": 1}, scale=1 + ratio / (1 + ratio))
            close(got[i : i + 1], at(x[i : i + 1], one))
    model.net.batches.clear()
    guidance.free(model, {"row": 1}, scale=lambda ratio: 1.0)(*states(sde)[0])
    assert model.net.batches == [6]


# Variants ----------------------------------------------------------------------------------------


def pictures(seed: int) -> tuple[Tensor, Denoiser, Denoiser]:
    """A state (4, 3, 5, 5), and two denoisers that give what is fixed."""
    g = torch.Generator().manual_seed(seed)
    u, c, x = (torch.randn(4, 3, 5, 5, generator=g, dtype=F64) for _ in range(3))
    return x, Denoiser(VP(), lambda x, t: u), Denoiser(VP(), lambda x, t: c)


def varied(u: Denoiser, c: Denoiser, **settings) -> Denoiser:
    predict = guidance.combine(u, [(c, 2.0)]).predict
    return replace(u, predict=replace(predict, conds=((c, 1.0),), **settings))


T = torch.tensor(0.5, dtype=F64)


def test_rescaling_keeps_the_deviation_of_the_conditional():
    x, u, c = pictures(0)
    plain = varied(u, c, scale=4.0)(x, T)
    found = varied(u, c, scale=4.0, rescale=1.0)(x, T)
    close(found.flatten(1).std(1), c(x, T).flatten(1).std(1))
    close(found / plain, (found / plain).flatten(1)[:, :1, None, None].expand_as(x))
    half = varied(u, c, scale=4.0, rescale=0.5)(x, T)
    close(half, (plain + found) / 2)
    constant = Denoiser(VP(), lambda x, t: torch.ones_like(x))
    assert varied(constant, constant, scale=4.0, rescale=1.0)(x, T).isfinite().all()


def test_projection_removes_the_part_along_the_conditional():
    x, u, c = pictures(1)
    c0, gap = c(x, T), c(x, T) - u(x, T)

    def dot(a, b):
        return (a * b).flatten(1).sum(1)

    along = (dot(gap, c0) / dot(c0, c0))[:, None, None, None] * c0
    for parallel in (0.0, 0.4, 1.0):
        shift = varied(u, c, scale=3.0, parallel=parallel)(x, T) - c0
        close(shift, 2 * (gap - (1 - parallel) * along))
    close(dot(varied(u, c, scale=3.0, parallel=0.0)(x, T), c0), dot(c0, c0))


def test_the_norm_is_limited_sample_by_sample():
    x, u, c = pictures(2)
    gap = c(x, T) - u(x, T)
    norms = gap.flatten(1).norm(dim=1)
    limit = float(norms.median())
    shift = varied(u, c, scale=3.0, norm=limit)(x, T) - c(x, T)
    close(shift.flatten(1).norm(dim=1), 2 * norms.clamp(max=limit))
    close(shift[norms <= limit], 2 * gap[norms <= limit])
    assert (norms > limit).any()


def test_variants_leave_scale_one_alone():
    for settings in ({"rescale": 0.7}, {"parallel": 0.0}, {"norm": 0.1}):
        x, u, c = pictures(3)
        close(varied(u, c, scale=1.0, **settings)(x, T), c(x, T))
        close(varied(u, c, scale=lambda ratio: 1.0 + 0 * ratio, **settings)(x, T), c(x, T))


def test_clipping():
    x, u, _ = pictures(4)
    close(guidance.clip(-0.5, 0.7)(u)(x, T), u(x, T).clamp(-0.5, 0.7))


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995])
def test_a_dynamic_threshold_is_a_quantile_of_each_sample(quantile):
    x, _, c = pictures(5)
    scaled = torch.tensor([0.1, 1.0, 3.0, 9.0], dtype=F64)[:, None, None, None]
    some = Denoiser(VP(), lambda x, t: scaled * c(x, t))
    want = some(x, T)
    r = want.abs().flatten(1).quantile(quantile, dim=1).clamp(min=1)[:, None, None, None]
    found = guidance.dynamic_threshold(quantile)(some)(x, T)
    close(found, want.clamp(-r, r) / r)
    close(found[0], want[0])  # in the range already
    assert float(found.abs().max()) <= 1


# A classifier ------------------------------------------------------------------------------------


def test_a_classifier_where_no_signal_is_left():
    """At alpha = 0 its gradient vanishes; the state is read as one of sigma / alpha = 1000."""
    sde = WholeFlow()
    guided = guidance.classifier(Posterior(sde, torch.tensor(2)))(law().denoiser(sde))
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    for t in (1.0, 1 - 1e-7, 0.9999):
        t = torch.tensor(t, dtype=F64)
        torch.testing.assert_close(guided(x, t), law(2).denoiser(sde)(x, t), rtol=3e-3, atol=3e-3)
        torch.testing.assert_close(guided(x, t.expand(6)), guided(x, t))
    ts = torch.linspace(1, 0.01, 30, dtype=F64)
    end = sample(guided, x, ts, build_step("heun", {}, 29))
    exact_end = sample(law(2).denoiser(sde), x, ts, build_step("heun", {}, 29))
    torch.testing.assert_close(end, exact_end, rtol=3e-3, atol=3e-3)


def test_a_table_whose_last_level_holds_no_signal():
    sde = DiscreteVP(betas.zero_terminal(betas.linear()(100)))
    x, t = torch.randn(6, 2, dtype=F64), torch.tensor(1.0, dtype=F64)
    u, c = law().denoiser(sde)(x, t), law(2).denoiser(sde)(x, t)
    guided = guidance.free(
        exact(sde), {"row": 2}, scale=lambda ratio: 1 + ratio / (1 + ratio), interval=(0.1, 1e6)
    )
    near = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    near(guided(x, t), c)  # beyond the interval
    guided = guidance.free(exact(sde), {"row": 2}, scale=lambda ratio: 1 + ratio / (1 + ratio))
    near(guided(x, t), 2 * c - u)
    by_classifier = guidance.classifier(Posterior(sde, torch.tensor(2)))(law().denoiser(sde))
    torch.testing.assert_close(by_classifier(x, t), c, rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("sde", [VP(), LinearFlow()], ids=lambda sde: type(sde).__name__)
def test_an_error_of_the_classifier_stays_small_in_the_noise(sde):
    """A gradient of 1 along x / norm moves the predicted noise by less than 1, at any level."""
    u = law().denoiser(sde)

    def off(x, t):
        return (x / sde.norm(t).reshape(-1, 1)).sum(1) / math.sqrt(2)

    for x, t in states(sde):
        moved = guidance.classifier(off)(u).eps(x, t) - u.eps(x, t)
        assert (moved.norm(dim=1) <= 1 + 1e-9).all()


def test_a_gradient_is_recorded_only_where_autograd_records():
    sde = VP()
    guided = guidance.classifier(Posterior(sde, torch.tensor(1)), 1.5)(law().denoiser(sde))
    x, t = torch.randn(3, 2, dtype=F64, requires_grad=True), torch.tensor(0.6, dtype=F64)
    with torch.no_grad():
        assert not guided(x, t).requires_grad
    with torch.inference_mode():
        close(guided(x.detach().clone(), t), guided(x, t).detach())
    assert torch.autograd.gradcheck(lambda x: guided(x, t), x)


# Composition with what the library does ---------------------------------------------------------


def guided_ones(model: ScoreModel) -> dict[str, Denoiser]:
    """One of each kind, whose conditions belong to six samples."""
    own = {"row": ROW}
    own_denoiser = model.denoiser(**own)
    return {
        "free": guidance.free(model, own, {"column": 1}, 2.0),
        "variants": guidance.free(model, own, None, 2.0, rescale=0.5, parallel=0.3, norm=2.0),
        "negative": guidance.free(model, {"column": 1}, own, 2.0, interval=(0.2, 9.0)),
        "weaker": guidance.free(model, own, scale=2.0, weaker=own_denoiser),
        "combine": guidance.combine(model.denoiser(), [(own_denoiser, 0.5)]),
        "classifier": guidance.classifier(POSTERIOR, 2.0)(model.denoiser()),
        "both": guidance.classifier(POSTERIOR, 2.0)(own_denoiser),
        "unselectable": guidance.classifier(lambda x, t: POSTERIOR(x, t), 2.0)(own_denoiser),
        "clip": guidance.clip()(own_denoiser),
        "dynamic": guidance.dynamic_threshold(0.9)(guidance.free(model, own, scale=3.0)),
    }


@pytest.mark.parametrize("name", guided_ones(exact()))
def test_some_samples_of_a_batch_keep_their_conditions(name):
    denoiser = guided_ones(exact())[name]
    rows = torch.tensor([4, 1])
    assert denoiser.batch == 6
    some = denoiser.among(rows, 6)
    assert some.batch == 2
    for x, t in states(VP()):
        close(some(x[rows], t[rows] if t.ndim else t), denoiser(x, t)[rows])


@pytest.mark.parametrize("name", guided_ones(exact()))
def test_transforms_of_torch_func_pass(name):
    denoiser = guided_ones(exact())[name]
    x, t = states(VP())[2]
    v = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    predict, h = partial(denoiser.predict, t=t), 1e-6
    _, slope = torch.func.jvp(predict, (x,), (v,))
    wanted = (predict(x + h * v) - predict(x - h * v)) / (2 * h)
    torch.testing.assert_close(slope, wanted, rtol=1e-6, atol=1e-6)
    _, pull = torch.func.vjp(predict, x)
    torch.testing.assert_close((pull(v)[0] * v).sum(), (slope * v).sum())
    many = torch.func.vmap(predict)(torch.stack([x, x + v]))
    torch.testing.assert_close(many[1], predict(x + v))


@pytest.mark.parametrize("name", guided_ones(exact()))
def test_a_guided_denoiser_has_no_likelihood(name):
    denoiser = guided_ones(exact())[name]
    x = law().sample(6, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="guided"):
        log_likelihood(denoiser, x)
    with pytest.raises(ValueError, match="guided"):
        elbo(denoiser, x)


def test_scale_one_and_nought_are_laws_of_the_model():
    x, sde = law().sample(4, torch.Generator().manual_seed(0)), VP()
    score = partial(log_likelihood, x=x, method="rk4", steps=3)
    for scale, want in ((1.0, law(2)), (0.0, law())):
        found = score(guidance.free(exact(sde), {"row": 2}, scale=scale))
        close(found.log_prob, score(want.denoiser(sde)).log_prob)


def test_the_reverse_variance_is_that_of_the_conditional():
    u, c = (replace(d, variance_mix=mix) for d, mix in zip(pictures(0)[1:], "uc", strict=True))
    assert guidance.combine(u, [(c, 2.0)]).variance_mix == "c"
    assert guidance.clip()(guidance.combine(u, [(c, 2.0)])).variance_mix == "c"
    assert guidance.classifier(lambda x, t: x.sum((1, 2, 3)))(u).variance_mix == "u"


# Bad input ---------------------------------------------------------------------------------------


def labelled(dropout: float) -> ScoreModel:
    model = ScoreModel(MLP(2, width=8, classes=3), VP(), parameterizations.v)
    train = SimpleNamespace(label_dropout=dropout)
    model.config = SimpleNamespace(conditional=True, train=train)
    return model


def wrong(**settings):
    return lambda: guidance.free(exact(), {"row": 1}, **{"scale": 2.0, **settings})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (wrong(scale=math.nan), "scale: need a finite number"),
        (wrong(scale="3"), "scale: need a finite number, got '3'"),
        (wrong(scale=None), "scale: need a finite number, got None"),
        (wrong(scale=lambda ratio: ratio.log() / 0), "scale: need a function"),
        (wrong(scale=lambda ratio: torch.ones(2)), "scale: need a function"),
        (wrong(interval=(2.0, 1.0)), "interval: need 0 <= low < high"),
        (wrong(interval=(math.nan, 1.0)), "interval: need 0 <= low < high"),
        (wrong(interval=(0.1, 1.0, 2.0)), "interval: need 0 <= low < high"),
        (wrong(rescale=1.5), "need 0 <= rescale <= 1"),
        (wrong(parallel=-0.1), "need 0 <= parallel <= 1"),
        (wrong(norm=0.0), "need norm > 0"),
        (wrong(negative={"colour": 1}), "negative: colour: this model has no such condition"),
        (wrong(negative={"row": 7}), "negative: row: no class"),
        (wrong(weaker=exact(), negative={"row": 1}), "negative: the weaker model stands"),
        (wrong(weaker=exact(LinearFlow())), "weaker: need a model of the process"),
        (lambda: guidance.free(exact(), {"hue": 1}), "cond: hue: this model has no such"),
        (lambda: guidance.free(exact(), None, scale=2.0), "guidance needs a condition"),
        (lambda: guidance.free(exact(), {"row": None}, scale=2.0), "guidance needs a condition"),
        (
            lambda: guidance.free(exact(dropout=0.0), {"row": 1}, scale=2.0),
            "row: this model was trained without dropout",
        ),
        (
            lambda: guidance.free(exact(dropout=0.0), [({"row": 1}, 0.4), ({"row": 2}, 0.4)]),
            "row: this model was trained without dropout",
        ),
        (
            lambda: guidance.free(labelled(0.0), {"label": 1}, scale=2.0),
            "label: this model was trained without dropout",
        ),
        (
            lambda: guidance.free(exact(), {"row": [0, 1]}, {"row": [0, 1, 2]}, 2.0),
            "conditions of 3 samples beside conditions of 2",
        ),
        (
            lambda: guidance.combine(law().denoiser(VP()), [(law().denoiser(LinearFlow()), 1.0)]),
            "combine: need one process",
        ),
        (
            lambda: guidance.combine(law().denoiser(VP()), [(law().denoiser(VP()), math.inf)]),
            "combine: need finite weights",
        ),
        (lambda: guidance.classifier(POSTERIOR, math.inf), "scale: need a finite number"),
        (
            lambda: guidance.classifier(POSTERIOR)(exact().denoiser(row=[0, 1])),
            "labels of 6 samples, for conditions of 2",
        ),
        (
            lambda: guidance.classifier(lambda x, t: x)(law().denoiser(VP()))(torch.ones(3, 2), T),
            r"log_prob returns \(3, 2\) for 3 samples",
        ),
        (lambda: guidance.clip(1.0, -1.0), "clip: need low < high"),
        (lambda: guidance.clip(math.nan, 1.0), "clip: need low < high"),
        (lambda: guidance.dynamic_threshold(1.5), "need 0 < quantile < 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_a_model_cannot_do_without_is_said_on_both_sides():
    model, sde = exact(dropout=0.0), VP()
    guided = guidance.free(model, {"row": 1, "column": 2}, {"row": 1}, 2.0)
    u, c = law(1).denoiser(sde), law(1, 2).denoiser(sde)
    for x, t in states(sde):
        close(guided(x, t), 2 * c(x, t) - u(x, t))
    assert guidance.free(labelled(0.1), {"label": 1}, scale=2.0).normalised is False
