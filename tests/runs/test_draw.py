"""``ss.draw``: known answers, seeds, labels, units, counted calls, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import scoresde as ss
from scoresde import parameterization, registry
from scoresde.data import Scaling
from scoresde.nn import MLP
from scoresde.runs.draw import Drawn, draw
from scoresde.runs.optimised import without_class
from scoresde.samplers import DDIM, Heun, grids, per_sample_noise, recommended
from scoresde.training.checkpoint import DataDescription

D = 3


def normal(
    classes: tuple[str, ...] | None = None, scaling: Scaling | None = None
) -> ss.ScoreModel:
    """A network that gives 0: with v under VP the exact denoiser of standard normal data."""
    net = MLP(D, width=8, depth=1, classes=None if classes is None else len(classes))
    for weight in net.parameters():
        nn.init.zeros_(weight)
    model = ss.ScoreModel(net, ss.VP(), parameterization.v).requires_grad_(False)
    if classes is not None or scaling is not None:
        model.data = DataDescription("made", (D,), scaling or Scaling(), classes)
    return model


def wild(classes: tuple[str, ...] | None = None) -> ss.ScoreModel:
    """The same with random weights."""
    model, generator = normal(classes), torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))
    return model


class Still(nn.Module):
    """A network of the state alone, so that a change of units leaves its input as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D, bias=False)
        generator = torch.Generator().manual_seed(3)
        nn.init.normal_(self.layer.weight, std=0.7, generator=generator)

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return torch.sin(2 * self.layer(x))


def in_units(c: float) -> ss.ScoreModel:
    """A model of data of deviation c / 2, noised from 0.002 c to 80 c."""
    sde = ss.EDM(t_min=0.002 * c, t_eps=0.002 * c, t_max=80 * c)
    return ss.ScoreModel(Still(), sde, parameterization.edm(0.5 * c)).requires_grad_(False)


class TestDeviation:
    @pytest.mark.parametrize(
        ("scaling", "measured", "declared", "expected"),
        [
            (None, None, None, 0.5),
            (None, None, 0.7, 0.7),
            (Scaling(), None, None, 1.0),
            (Scaling(), None, 0.7, 0.7),
            (Scaling(256), None, None, 0.5),
            (Scaling(256), 0.3, None, 0.3),
            (Scaling(256), 0.3, 0.7, 0.3),
            (Scaling(256), 0.0, 0.7, 0.7),
        ],
    )
    def test_the_model_knows_it_from_its_data_or_its_parameterisation(
        self, scaling, measured, declared, expected
    ):
        made = parameterization.v if declared is None else parameterization.edm(declared)
        model = ss.ScoreModel(Still(), ss.VP(), made).requires_grad_(False)
        if scaling is not None:
            model.data = DataDescription("made", (D,), scaling, std=measured)
        assert model.std == expected
        found = draw(model, 3, shape=(D,), nfe=8).x
        step, grid = recommended(8, std=expected)
        own = draw(model, 3, shape=(D,), sampler=registry.GridSampler(grid, step, 7)).x
        assert torch.equal(found, own)

    @pytest.mark.parametrize("step", [None, "recommended", "dpmpp_2m"])
    def test_in_other_units_of_data_and_noise_the_samples_are_those_in_other_units(self, step):
        one, other = (draw(in_units(c), 4, shape=(D,), step=step).x for c in (1.0, 0.25))
        assert torch.allclose(0.25 * one, other, atol=1e-5)


class TestKnownAnswers:
    def test_the_flow_of_a_normal_law_keeps_the_noise_of_the_seed(self):
        found = draw(normal(), seeds=[5, 9], step="ode", denoise=False, shape=(D,))
        assert torch.allclose(found.x, per_sample_noise([5, 9])(torch.empty(2, D)), atol=1e-4)

    def test_ddim_on_a_normal_law_multiplies_by_the_cosines_of_its_steps(self):
        """x_s = (alpha_s alpha_t + sigma_s sigma_t) x_t when x0_hat = alpha_t x_t."""
        model = normal()
        found = draw(model, seeds=[5, 9], step=DDIM(), grid="uniform", nfe=5, shape=(D,))
        ts = grids.uniform(model.sde, 4)
        alpha, sigma = model.sde.alpha(ts), model.sde.sigma(ts)
        factor = (alpha[1:] * alpha[:-1] + sigma[1:] * sigma[:-1]).prod() * alpha[-1] * sigma[0]
        start = per_sample_noise([5, 9])(torch.empty(2, D))
        assert torch.allclose(found.x, float(factor) * start, atol=1e-5)

    def test_without_a_choice_it_is_the_recommended_sampler(self):
        model, (step, grid) = wild(), recommended(19)
        found = draw(model, 3, shape=(D,))
        noise = per_sample_noise(range(3))
        x = noise(torch.empty(3, D)) * float(model.sde.prior().stddev)
        expected = ss.sample(model.denoiser(), x, grid(model.sde, 18), step, noise)
        assert torch.equal(found.x, expected)
        assert found.nfe == 19

    @pytest.mark.parametrize("kind", list(registry.STEPS))
    def test_a_sample_is_a_function_of_its_seed(self, kind):
        model, label = wild(("a", "b")), ["b", "a", "a", "b", "b"]
        together = draw(model, seeds=[7, 3, 9, 1, 4], step=kind, label=label, batch=3)
        alone = draw(model, seeds=[9], step=kind, label="a")
        # Rounding moves the steps of a tolerance of 1e-3.
        atol = 1e-3 if kind == "dpm_adaptive" else 2e-4
        assert torch.allclose(together.x[2:3], alone.x, atol=atol)
        assert together.seeds == (7, 3, 9, 1, 4)


class TestCalls:
    @pytest.mark.parametrize("kind", [k for k in registry.STEPS if k != "dpm_adaptive"])
    def test_nfe_is_the_most_and_is_counted(self, kind):
        """One step more would take more."""
        model, calls = wild(), []
        model.net.register_forward_hook(lambda *call: calls.append(1))
        found = draw(model, 2, step=kind, nfe=20, shape=(D,))
        assert found.nfe == len(calls) <= 20
        assert found.nfe >= 20 - 6
        assert draw(model, 2, step=kind, nfe=20, shape=(D,), denoise=False).nfe <= 20

    def test_too_few_calls_are_refused(self):
        with pytest.raises(ValueError, match="nfe: heun takes at least 3 network calls, got 2"):
            draw(wild(), 2, step="heun", nfe=2, shape=(D,))

    @pytest.mark.parametrize("kind", ["ode", "sde", "dpm_adaptive"])
    def test_what_paces_itself_takes_no_nfe_and_no_grid(self, kind):
        assert draw(normal(), 2, step=kind, shape=(D,)).nfe > 1
        for argument in ({"nfe": 20}, {"grid": "karras"}):
            with pytest.raises(ValueError, match=f"^{next(iter(argument))}: {kind} paces itself"):
                draw(normal(), 2, step=kind, shape=(D,), **argument)

    def test_what_paces_itself_goes_to_the_end_of_the_flow(self):
        """A grid of one step ends early, and its denoised state has too small a deviation."""
        paced, solved = (
            draw(normal(), 8, step=kind, shape=(D,)).x for kind in ("dpm_adaptive", "ode")
        )
        assert torch.allclose(paced, solved, atol=0.02)

    def test_a_grid_is_optimised_for_the_model(self):
        model, calls = wild(), []
        model.net.register_forward_hook(lambda *call: calls.append(1))
        found = draw(model, 2, step="ddim", grid="optimised", nfe=5, shape=(D,))
        assert found.nfe == 5
        assert len(calls) > 500
        assert torch.equal(
            found.x, draw(model, 2, step="ddim", grid="optimised", nfe=5, shape=(D,)).x
        )

    def test_paths_of_a_model_that_needs_classes_keep_theirs_in_a_part_of_the_batch(self):
        """The search of a grid compares some of the paths with those of the whole batch."""
        model = wild(("a", "b", "c"))
        train = SimpleNamespace(label_dropout=0.0)
        model.config = SimpleNamespace(conditional=True, train=train)
        x, t, rows = torch.randn(7, D), torch.tensor(0.5), torch.tensor([1, 2, 6])
        denoiser = without_class(model, 7)
        whole = denoiser(x, t)
        assert not torch.allclose(whole, model.denoiser(label=0)(x, t))
        torch.testing.assert_close(denoiser.among(rows, 7)(x[rows], t), whole[rows])


class TestLabels:
    def places(self, label: object, classes: tuple[str, ...], **kwargs: object) -> list[int]:
        found = draw(normal(classes), nfe=2, label=label, **kwargs)
        assert found.label is not None
        return found.label.tolist()

    @pytest.mark.parametrize(
        ("label", "expected"),
        [
            ("dog", [1, 1, 1, 1]),
            (1, [1, 1, 1, 1]),
            (["cat", "dog"], [0, 0, 1, 1]),
            ([2, 0], [2, 2, 0, 0]),
            (torch.tensor([0, 2]), [0, 0, 2, 2]),
            (torch.tensor(2), [2, 2, 2, 2]),
            (np.array([2], np.uint8), [2, 2, 2, 2]),
            ("all", [0, 0, 1, 2]),
            ([0, 1, 2, 0], [0, 1, 2, 0]),
        ],
    )
    def test_names_and_places(self, label, expected):
        assert self.places(label, ("cat", "dog", "eel"), num=4) == expected

    def test_of_classes_named_by_numbers_a_number_is_a_name(self):
        classes = tuple(map(str, range(1, 13)))
        assert self.places([1, 2, 12], classes) == [0, 1, 11]
        assert self.places(3, classes, num=1) == [2]
        with pytest.raises(ValueError, match="label: no class '0'; choose from 1, 2, 3"):
            self.places([0, 1, 2], classes)

    def test_a_class_may_be_called_all(self):
        assert self.places("all", ("some", "all"), num=2) == [1, 1]

    def test_the_number_of_samples_is_that_of_the_labels(self):
        assert self.places([1, 0, 1], ("a", "b")) == [1, 0, 1]
        assert len(self.places("b", ("a", "b"))) == 64
        assert len(self.places("all", tuple(f"c{k}" for k in range(70)))) == 70

    def test_without_names_labels_are_numbers(self):
        net = MLP(D, width=8, depth=1, classes=4)
        model = ss.ScoreModel(net, ss.VP(), parameterization.v)
        assert draw(model, label=[3, 0], nfe=2, shape=(D,)).label.tolist() == [3, 0]
        for label in ("all", "cat", -1):
            with pytest.raises(ValueError, match=r"^label: "):
                draw(model, label=label, nfe=2, shape=(D,))

    def test_the_label_reaches_the_network(self):
        model = wild(("a", "b"))
        a, b, none = (draw(model, 1, label=label).x for label in ("a", "b", None))
        assert not torch.allclose(a, b)
        assert not torch.allclose(a, none)

    @pytest.mark.parametrize("label", ["cow", 3, -1, ["cat", "cow"], ["cat", "1"], 1.5, []])
    def test_what_is_no_class_is_refused(self, label):
        with pytest.raises(ValueError, match=r"label|class"):
            self.places(label, ("cat", "dog", "eel"))

    def test_more_labels_than_samples_are_refused(self):
        with pytest.raises(ValueError, match="num: 2 samples for 3 labels"):
            self.places("all", ("cat", "dog", "eel"), num=2)


class TestUnits:
    def test_standardised_numbers_come_back_in_units_of_the_data(self):
        scaling = Scaling(shift=(1.0, 2.0, 3.0), scale=(10.0, 1.0, 0.1))
        raw = draw(normal(), 4, shape=(D,), grid="log_snr", step="ddim").x
        found = draw(normal(scaling=scaling), 4, grid="log_snr", step="ddim").x
        assert torch.allclose(found, raw * torch.tensor([10, 1, 0.1]) + torch.tensor([1.0, 2, 3]))

    def test_levels_come_back_as_levels(self):
        found = draw(normal(scaling=Scaling(17)), 50).x
        assert found.dtype == torch.uint8
        assert found.min() == 0
        assert found.max() == 16


class TestStopping:
    def test_a_stop_keeps_what_there_is(self):
        """During call 3 of the second batch: 2 samples finished, 2 as denoised so far, 3 lost."""
        seen = []
        found = draw(
            wild(),
            7,
            nfe=5,
            batch=2,
            shape=(D,),
            look=lambda first, call: seen.append((first, call.number, call.x0)),
            stopping=lambda: len(seen) == 5 + 3,
        )
        whole = draw(wild(), 7, nfe=5, batch=2, shape=(D,))
        assert (len(found), found.unfinished, found.seeds) == (4, 2, (0, 1, 2, 3))
        assert torch.equal(found.x[:2], whole.x[:2])
        assert torch.equal(found.x[2:], seen[-1][2])
        assert [(first, n) for first, n, _ in seen[-3:]] == [(2, 1), (2, 2), (2, 3)]

    def test_a_stop_before_the_first_call_keeps_nothing(self):
        found = draw(wild(), 4, shape=(D,), stopping=lambda: True)
        assert (len(found), found.nfe, found.seeds) == (0, 0, ())


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"num": 0}, "num: need a whole number from 1, got 0"),
            ({"num": 2, "seeds": [1, 2, 3]}, "num: 2 samples but 3 seeds"),
            ({"seeds": []}, "seeds: need 1"),
            ({"seeds": [-1]}, "seeds: need 0 <= seed"),
            ({"batch": 0}, "batch: need a whole number from 1, got 0"),
            ({"step": "hein"}, "did you mean 'heun'?"),
            ({"grid": "karas"}, "did you mean 'karras'?"),
            ({"grid": "file"}, "grid: 'file' needs arguments"),
            ({"sampler": registry.ODESampler(), "nfe": 5}, "sampler: a whole sampler"),
            ({"shape": None}, "shape is missing"),
        ],
    )
    def test_arguments(self, arguments, words):
        with pytest.raises(ValueError, match=words.replace("?", "\\?")):
            draw(normal(), **({"shape": (D,)} | arguments))

    def test_samples_that_are_not_finite(self):
        model = wild()
        for weight in model.parameters():
            weight.mul_(1e30)
        with pytest.raises(RuntimeError, match=r"Heun: 2 of 2 samples are not finite .*take more"):
            draw(model, 2, step=Heun(), shape=(D,))


def test_progress_counts_every_sample():
    done = []

    class Counter:
        def __enter__(self) -> Callable[..., None]:
            return lambda n, note="": done.append(n)

        def __exit__(self, *error: object) -> None: ...

    found = draw(normal(), 5, batch=2, nfe=4, shape=(D,), progress=lambda n, what: Counter())
    assert isinstance(found, Drawn)
    assert sum(done) == 5
    assert done.count(0) == 3 * 4


class Plain(nn.Module):
    """A network of a program's own, without classes."""

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


class Needy(nn.Module):
    """A network of a program's own that needs a class."""

    def forward(self, x: torch.Tensor, noise: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num": 2.5}, "^num: need a whole number from 1, got 2.5"),
        ({"num": "3"}, "^num: need a whole number from 1, got '3'"),
        ({"nfe": 0}, "^nfe: need a whole number from 1, got 0"),
        ({"nfe": 2.5}, "^nfe: need a whole number"),
        ({"batch": 0}, "^batch: need a whole number"),
        ({"seeds": 5}, "^seeds: need whole numbers"),
        ({"seeds": "0-3"}, "^seeds: need whole numbers"),
        ({"step": DDIM}, "^step: need an object"),
        ({"step": 3}, "^step: need an object"),
        ({"grid": 3}, "^grid: need an object"),
        ({"sampler": "ddim"}, "^sampler: need an object"),
    ],
)
def test_arguments_of_a_wrong_kind_are_named(given, words):
    with pytest.raises(ValueError, match=words):
        draw(normal(), shape=(D,), **given)


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="model: need a ScoreModel, got MLP"):
        draw(normal().net, 2, shape=(D,))


def test_a_network_of_ones_own_says_whether_it_takes_classes():
    plain = ss.ScoreModel(Plain(), ss.VP(), parameterization.v)
    with pytest.raises(ValueError, match="label: this model was trained without classes"):
        draw(plain, 2, shape=(D,), label=0)
    needy = ss.ScoreModel(Needy(), ss.VP(), parameterization.v)
    with pytest.raises(ValueError, match="label is missing: the network needs a class"):
        draw(needy, 2, shape=(D,))
    assert draw(needy, 2, shape=(D,), label=1, nfe=3).label.tolist() == [1, 1]


def test_a_class_named_by_a_negative_number_is_a_name_too():
    model = normal(("-1", "cat"))
    assert draw(model, 1, label=-1, nfe=3).label.tolist() == [0]
    with pytest.raises(ValueError, match=r"label: no class '0'; choose from -1, cat"):
        draw(model, 1, label=0)


def test_labels_that_are_no_whole_numbers_are_said_to_be_labels():
    with pytest.raises(ValueError, match=r"^label: labels are float64 such as 0.5"):
        draw(normal(("a", "b")), 1, label=0.5)


def test_a_model_in_training_mode_is_drawn_from_without_dropout():
    net = MLP(2, width=8, depth=1, embedding=8, dropout=0.5)
    nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    model = ss.ScoreModel(net, ss.VP(), parameterization.v).train()
    first, second = (ss.draw(model, 4, nfe=3, shape=(2,)).x for _ in range(2))
    assert torch.equal(first, second)
    assert model.training
    assert net.blocks[0].dropout.training
