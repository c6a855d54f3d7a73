"""Comparing samplers in the library, on a model without a configuration."""

from __future__ import annotations

import pytest

from scoresde.runs.compare import compare
from scoresde.samplers.grids import uniform
from tests.runs.test_draw import D, in_units, normal, wild


def test_ddim_on_a_normal_law_is_off_by_the_cosines_of_its_steps():
    model = normal()
    (trial,) = compare(model, ["ddim"], [7], ["uniform"], num=4, shape=(D,)).trials
    ts = uniform(model.sde, 7)
    alpha, sigma = model.sde.alpha(ts), model.sde.sigma(ts)
    error = 1 - float((alpha[1:] * alpha[:-1] + sigma[1:] * sigma[:-1]).prod())
    assert trial.relative == pytest.approx(error, rel=1e-3)
    assert (trial.steps, trial.nfe) == (7, 8)


def test_more_steps_come_closer():
    found = compare(wild(), ["heun"], [8, 32], num=4, tolerance=1e-6, shape=(D,))
    coarse, fine = found.trials
    assert fine.relative < coarse.relative / 4
    assert {trial.grid for trial in found.trials} == {"recommended"}


def test_errors_do_not_depend_on_the_unit_of_data_and_noise():
    one, other = (
        compare(in_units(c), ["recommended", "dpmpp_2m"], [6], num=4, shape=(D,)).trials
        for c in (1.0, 0.25)
    )
    errors = [[trial.relative for trial in trials] for trials in (one, other)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"samplers": ["euler_a"]}, "samplers: euler_a: with noise"),
        ({"samplers": ["hein"]}, "did you mean 'heun'"),
        ({"grids": ["karas"]}, "did you mean 'karras'"),
        ({"num": 0}, "num: need at least 1"),
        ({"steps": [0]}, "steps: need at least 1"),
        ({"tolerance": 1.0}, "tolerance: need"),
        ({"shape": None}, "shape is missing"),
    ],
)
def test_what_cannot_be_compared_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        compare(normal(), **({"shape": (D,), "samplers": ["ddim"]} | arguments))
