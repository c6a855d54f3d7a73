"""What callers may hand over: times, states, labels, and objects sent to another process."""

import math
import multiprocessing
import pickle
from functools import partial

import pytest
import torch
from torch import nn

import scoresde as ss
from scoresde import parameterization as parameterizations
from scoresde.likelihood import (
    adaptive_log_likelihood,
    discrete_elbo,
    elbo,
    log_likelihood,
    path_log_likelihood,
)
from scoresde.likelihood.divergence import Exact, rademacher
from scoresde.likelihood.estimators import GridFlow
from scoresde.likelihood.path import Orthogonal
from scoresde.parameterization import ScoreModel, caution
from scoresde.registry import STEPS, build_step
from scoresde.samplers import DDIM, Heun, grids, per_sample_noise, recommended, solve_adaptive
from scoresde.testing import Gaussian, grid25

from .conftest import PROCESSES

F64 = torch.float64
ZERO = torch.zeros(1, dtype=F64)
WITH_ZERO = [sde for sde in PROCESSES if float(sde.sigma(ZERO)) == 0]
NAMED = {
    "eps": parameterizations.eps,
    "x0": parameterizations.x0,
    "v": parameterizations.v,
    "score": parameterizations.score,
    "flow": parameterizations.flow,
    "edm": parameterizations.edm(0.5),
}


# Times -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ts", [[999, 949, 899], [1.0, 0.5, -0.1], [math.nan, 0.5], [2.0, 0.0]])
def test_times_outside_the_process_are_refused(sde, ts):
    times = torch.tensor(ts, dtype=F64) * (sde.t_max if max(ts) == 2 else 1)
    x, denoiser = torch.ones(2, 2), grid25().denoiser(sde)
    with pytest.raises(ValueError, match=r"times of|monotone"):
        ss.sample(denoiser, x, times, DDIM())
    with pytest.raises(ValueError, match=r"times of|monotone"):
        next(ss.trajectory(denoiser, x, times, DDIM()))


def test_a_grid_in_single_precision_is_taken(sde):
    ts = grids.uniform(sde, 5).float()
    x = torch.ones(2, 2, dtype=F64)
    assert ss.sample(grid25().denoiser(sde), x, ts, DDIM()).isfinite().all()


def test_zero_is_no_end_where_noise_is_left():
    ts = torch.tensor([1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match="0 < t <= t_max=1, got"):
        ss.sample(grid25().denoiser(ss.VE()), torch.ones(2, 2), ts, DDIM())


@pytest.mark.parametrize("sde", WITH_ZERO, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("kind", sorted(STEPS))
def test_every_step_takes_a_grid_that_ends_at_zero(kind, sde):
    """It ends where the grid without 0, denoised, does, but for the noise of the last time."""
    data = Gaussian(torch.tensor([0.3, -0.2], dtype=F64), torch.tensor([0.36, 0.1], dtype=F64))
    step = build_step(kind, {"s_churn": 5.0} if kind in ("euler", "heun") else {}, 30)
    ts = grids.karras()(sde, 30)
    x = per_sample_noise(range(50))(torch.empty(50, 2, dtype=F64)) * sde.prior().stddev
    called = []

    def predict(x, t):
        called.append(float(t.min()))
        return data.denoiser(sde).predict(x, t)

    denoiser = ss.Denoiser(sde, predict)
    run = lambda ts: ss.sample(denoiser, x, ts, step, per_sample_noise(range(50)))  # noqa: E731
    end, expected = run(torch.cat([ts, ZERO])), run(ts)
    assert min(called) > 0  # a network has no answer without noise
    left = float(sde.sigma(ts[-1]) / sde.alpha(ts[-1]))
    assert (end - expected).abs().max() < 6 * left


def test_with_a_number_of_calls_alone_the_recommended_step_and_grid_are_taken():
    sde, x = ss.VP(), torch.ones(2, 2, dtype=F64)
    step, grid = recommended(12)
    denoiser = grid25().denoiser(sde)
    for denoise, steps in ((True, 11), (False, 12)):
        calls = []
        counted = ss.Denoiser(sde, lambda x, t, calls=calls: calls.append(t) or denoiser(x, t))
        found = ss.sample(counted, x, nfe=12, denoise=denoise)
        assert len(calls) == 12
        expected = ss.sample(denoiser, x, grid(sde, steps), step, denoise=denoise)
        assert torch.equal(found, expected)
    ts = grid(sde, 5)
    for arguments in ((), (ts,), (None, step), (ts, step, None, True, 12)):
        with pytest.raises(ValueError, match="a grid and a step, or nfe"):
            ss.sample(denoiser, x, *arguments[:4], nfe=arguments[4] if arguments[4:] else None)


# States ------------------------------------------------------------------------------------


def test_integer_states_are_floats(sde):
    x, t = torch.tensor([[1, 0], [-2, 3]]), torch.tensor(0.3, dtype=F64)
    denoiser, ts = grid25().denoiser(sde), grids.karras()(sde, 4)
    flow = lambda x: ss.solve_ode(denoiser, x, 0.5, 0.2).x  # noqa: E731
    reverse = lambda x: ss.solve_sde(denoiser, x, 0.5, 0.2, 4, seed=0)  # noqa: E731
    for of in (
        *(lambda x, f=f: f(x, t) for f in (denoiser, denoiser.eps, denoiser.score)),
        lambda x: denoiser.velocity(x, t),
        lambda x: ss.sample(denoiser, x, ts, Heun()),
        lambda x: solve_adaptive(denoiser, x, 0.5, 0.2).x,
        lambda x: sde.perturb(x, torch.tensor([0.2, 0.3]), torch.zeros(2, 2)),
        flow,
        reverse,
    ):
        torch.testing.assert_close(of(x), of(x.float()), rtol=0, atol=0)


def test_an_adaptive_solve_keeps_no_graph():
    x = torch.randn(1, 2, dtype=F64, requires_grad=True)
    assert not solve_adaptive(grid25().denoiser(ss.VP()), x, 1.0, 0.5).x.requires_grad


# Labels ------------------------------------------------------------------------------------


class Classed(nn.Module):
    """x plus the label; as networks have it, label 3 is that of no class."""

    classes = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, noise, label=None):
        return x + (3 if label is None else label.unsqueeze(1)) * self.weight


def test_a_label_is_a_number_a_list_or_a_tensor_of_any_integers():
    model, x, t = ScoreModel(Classed(), ss.VP(), parameterizations.x0), torch.ones(3, 2), ZERO[0]
    t = t + 0.3
    twos = model.denoiser(label=torch.full((3,), 2))(x, t)
    for label in (2, [2, 2, 2], (2, 2, 2), torch.tensor(2), torch.full((3,), 2).to(torch.uint8)):
        assert torch.equal(model.denoiser(label=label)(x, t), twos)
    assert not torch.equal(model.denoiser()(x, t), twos)
    assert torch.equal(model.denoiser(label=None)(x, t), model.denoiser()(x, t))


@pytest.mark.parametrize("label", [3, 4, -1, [0, 1, 3], torch.tensor([0, -1, 0])], ids=str)
def test_labels_out_of_range_are_refused(label):
    with pytest.raises(ValueError, match="label: need places of classes, 0 to 2, got"):
        ScoreModel(Classed(), ss.VP(), parameterizations.v).denoiser(label=label)


def test_other_labels_are_refused():
    model = ScoreModel(Classed(), ss.VP(), parameterizations.v)
    for label in (0.5, True, torch.ones(3)):
        with pytest.raises(TypeError, match="label: need places"):
            model.denoiser(label=label)
    with pytest.raises(ValueError, match="2 labels for a batch of 3"):
        model.denoiser(label=[0, 1])(torch.ones(3, 2), ZERO + 0.3)


# Other processes ---------------------------------------------------------------------------


def _objects():
    steps = [build_step(kind, {}, 6) for kind in STEPS]
    made = [grids.uniform, grids.karras(), grids.polyexponential(2.0), grids.trailing(10)]
    made += [grids.leading(), grids.linspace(), grids.fixed([1.0, 0.5]), recommended(8)[1]]
    return [*PROCESSES, *NAMED.values(), *steps, *made]


def _same(objects):
    return objects == _objects()


def test_everything_pickles_and_is_the_same_in_a_spawned_process():
    models = [ScoreModel(Classed(), ss.VP(), p) for p in NAMED.values()]
    for model, again in zip(models, pickle.loads(pickle.dumps(models)), strict=True):
        assert again.parameterization == model.parameterization
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(_same, (_objects(),))


# Parameterisations at the end of a process -----------------------------------------------------


@pytest.mark.parametrize("name", ["x0", "v", "flow", "edm"])
def test_errors_of_the_network_stay_bounded(sde, name):
    """|dx0_hat / dF| <= 1 at every time; nothing is said about these."""
    t = torch.linspace(sde.t_min, sde.t_max, 200, dtype=F64)
    assert NAMED[name](sde, t).out.abs().max() <= 1
    assert caution(NAMED[name], sde) is None


@pytest.mark.parametrize("name", ["eps", "score"])
def test_a_caution_names_the_factor_of_the_error(sde, name):
    t = torch.tensor(sde.t_max, dtype=F64)
    said = caution(NAMED[name], sde)
    assert name in said
    assert f"{float(sde.sigma(t) / sde.alpha(t)):.3g}" in said
    assert caution(NAMED[name], ss.VP(t_max=0.1)) is None


def _likelihoods():
    """Calls that take one numeric argument by its name."""
    law, sde = grid25(), ss.VP()
    denoiser, x, ts = law.denoiser(sde), law.sample(2).double(), torch.tensor([1.0, 0.5, 0.1])
    return {
        "path": partial(path_log_likelihood, denoiser, x),
        "adaptive": partial(adaptive_log_likelihood, denoiser, x),
        "black box": partial(log_likelihood, denoiser, x),
        "elbo": partial(elbo, denoiser, x),
        "chain": partial(discrete_elbo, denoiser, x, ts),
        "solve_adaptive": partial(solve_adaptive, denoiser, x, 1.0, 0.1),
        "recommended": recommended,
        "rademacher": partial(rademacher, x),
        "Orthogonal": partial(Orthogonal, rademacher(x)),
        "Exact": Exact,
        "GridFlow": GridFlow,
    }


@pytest.mark.parametrize("bad", [0, -3, 2.5, 40.5, True, math.nan])
@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("path", "nodes"),
        ("path", "between"),
        ("path", "max_nfe"),
        ("adaptive", "max_nfe"),
        ("black box", "steps"),
        ("black box", "max_nfe"),
        ("elbo", "times"),
        ("chain", "times"),
        ("chain", "decodes"),
        ("solve_adaptive", "max_nfe"),
        ("recommended", "nfe"),
        ("rademacher", "probes"),
        ("Orthogonal", "rows"),
        ("Exact", "budget"),
        ("GridFlow", "nodes"),
    ],
)
def test_a_count_is_a_whole_number_in_its_range(name, argument, bad):
    with pytest.raises(ValueError, match=f"{argument}={bad}"):
        _likelihoods()[name](**{argument: bad})


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("name", ["adaptive", "black box", "solve_adaptive"])
@pytest.mark.parametrize("argument", ["rtol", "atol"])
def test_a_tolerance_is_positive(name, argument, bad):
    with pytest.raises(ValueError, match=f"need {argument} > 0, got {argument}={bad:g}"):
        _likelihoods()[name](**{argument: bad})
