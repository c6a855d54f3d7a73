"""Editing in the library: codes of known laws, round trips, and continuous paths."""

from __future__ import annotations

import pytest
import torch

import scoresde as ss
from scoresde import parameterization
from scoresde.conditions import Label, Vector, sizes
from scoresde.data import Scaling
from scoresde.nn import MLP
from scoresde.runs.edit import Editor
from tests.runs.test_draw import D, normal, wild

CLASSES = ("a", "b")


def examples(n: int) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1))


def widest_gap(path: torch.Tensor) -> float:
    """The largest distance between neighbours of paths (pairs, n, D)."""
    return float(path.diff(dim=1).norm(dim=2).max())


def test_the_code_of_a_normal_law_is_the_example_in_model_units():
    scaling = Scaling(shift=(1.0, 2.0, 3.0), scale=(10.0, 1.0, 0.1))
    editor, x = Editor(normal(scaling=scaling)), examples(4)
    z = editor.encode(x)
    assert torch.allclose(z, scaling.encode(x, dtype=torch.float64), atol=0.01)
    assert torch.allclose(editor.decode(z), x, atol=0.01)


def test_codes_decode_to_what_they_came_from_whatever_the_batch():
    x, label = examples(5), ["a", "b", "b", "a", "a"]
    z = Editor(wild(CLASSES), batch=2).encode(x, label)
    assert torch.allclose(Editor(wild(CLASSES), batch=5).decode(z, label), x, atol=0.01)


def test_a_reconstruction_knows_its_errors():
    found = Editor(wild(CLASSES)).reconstruct(examples(4), "a")
    size = (found.x - examples(4)).square().mean(1).sqrt().double()
    assert torch.allclose(found.errors, size, atol=1e-6)
    assert found.changed is None
    levels = torch.randint(17, (4, D), generator=torch.Generator().manual_seed(0)).byte()
    found = Editor(normal(scaling=Scaling(17))).reconstruct(levels)
    assert torch.equal(found.x, levels)
    assert found.changed == 0


@pytest.mark.parametrize("label", [None, "b", ["a", "b", "b", "a"]])
def test_a_path_is_continuous_and_ends_in_the_examples(label):
    """Twice as many frames are half as far apart, between two classes as within one."""
    model = wild(CLASSES)
    model.net.condition.labels.weight.mul_(30)  # the two classes are far apart
    x, editor = examples(4), Editor(model)
    coarse, fine = (editor.interpolate(x, label, n).x for n in (17, 33))
    for path in (coarse, fine):
        assert torch.allclose(path[:, 0], x[0::2], atol=0.01)
        assert torch.allclose(path[:, -1], x[1::2], atol=0.01)
    assert torch.allclose(fine[:, ::2], coarse, atol=0.01)
    assert widest_gap(fine) < 0.75 * widest_gap(coarse)


def test_pairs_need_an_even_number():
    with pytest.raises(ValueError, match="even number, two ends a path, got 3"):
        Editor(normal()).interpolate(examples(3))


@pytest.mark.parametrize("arguments", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"batch": 0}])
def test_settings_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Editor(normal(), **arguments)


def test_a_condition_named_label_is_a_class():
    """Classes named by numbers are places nowhere."""
    torch.manual_seed(1)
    conditions = {"label": Label(["7", "3"])}
    net = MLP(2, width=8, depth=1, embed=sizes(conditions)["embed"])
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.7)
    model = ss.ScoreModel(net, ss.VP(), parameterization.v, conditions=conditions)
    editor, z = Editor(model.requires_grad_(False)), torch.randn(2, 2)
    both = editor.decode(z, ["7", "3"])
    assert torch.allclose(both[:1], editor.decode(z[:1], 7), atol=1e-2)
    assert torch.allclose(both[1:], editor.decode(z[1:], "3"), atol=1e-2)
    assert not torch.allclose(both[:1], editor.decode(z[:1], "3"), atol=0.1)


@pytest.mark.parametrize("operation", ["encode", "decode", "reconstruct", "interpolate"])
def test_a_condition_that_is_always_given_is_missed(operation):
    conditions = {"size": Vector([0.0], [1.0], dropout=0.0)}
    net = MLP(2, width=8, depth=1, embed=sizes(conditions)["embed"])
    model = ss.ScoreModel(net, ss.VP(), parameterization.v, conditions=conditions)
    with pytest.raises(ValueError, match="size is missing"):
        getattr(Editor(model), operation)(torch.randn(2, 2))
