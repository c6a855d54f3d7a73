"""Grids: pinned ends, what each is uniform in, tables, and grids read from files."""

import json

import pytest
import torch

from scoresde import EDM, VP, DiscreteVP
from scoresde.registry.grid_files import from_file
from scoresde.samplers import grids

F64 = torch.float64
NAMED = {
    "polyexponential": grids.polyexponential(1.5),
    "linspace": grids.linspace(),
    "trailing": grids.trailing(),
    "leading": grids.leading(),
}


@pytest.mark.parametrize("n", [1, 2, 7, 50])
@pytest.mark.parametrize("name", NAMED)
def test_grids_decrease_to_the_end_of_the_process(sde, name, n):
    ts = NAMED[name](sde, n)
    assert ts.dtype == F64
    assert ts.shape == (n + 1,)
    assert (ts.diff() < 0).all()
    assert ts[-1] == sde.t_eps
    if name != "leading":
        assert ts[0] == sde.t_max


def test_polyexponential_is_a_power_of_equal_steps(sde):
    lam = sde.lam(grids.polyexponential(2.0)(sde, 8))
    short = (lam[-1] - lam) / (lam[-1] - lam[0])
    torch.testing.assert_close(short, torch.linspace(1, 0, 9, dtype=F64) ** 2, atol=1e-6, rtol=0)
    even = grids.polyexponential(1.0)(sde, 8)
    torch.testing.assert_close(even, grids.log_snr(sde, 8))


@pytest.mark.parametrize("name", ["linspace", "trailing", "leading"])
def test_tables_pick_levels_of_the_table(name):
    """On the discrete process every time is a level, and n = N - 1 steps take all of them."""
    sde = DiscreteVP()
    levels = NAMED[name](sde, 37) * 1000
    torch.testing.assert_close(levels, levels.round(), atol=1e-9, rtol=0)
    full = grids.linspace(1000)(sde, 999) * 1000
    torch.testing.assert_close(full, torch.arange(1000, 0, -1).double(), atol=1e-9, rtol=0)


def test_table_spacings_are_those_of_their_rules():
    """With N = 1000: trailing steps by N / n from N, leading by floor(N / (n + 1)) from level 1,
    linspace by (N - 1) / n to within the rounding.
    """
    sde = DiscreteVP()
    trailing, leading, even = (
        NAMED[k](sde, 8) * 1000 for k in ("trailing", "leading", "linspace")
    )
    torch.testing.assert_close(trailing[:-1], 1000 - 125 * torch.arange(8).double())
    torch.testing.assert_close(leading, 1 + 111 * torch.arange(8, -1, -1).double())
    assert (even - torch.linspace(1000, 1, 9, dtype=F64)).abs().max() <= 0.5 + 1e-9


@pytest.mark.parametrize("wrap", [False, True], ids=["list", "object"])
def test_a_file_gives_back_its_times(tmp_path, sde, wrap):
    ts, path = grids.quadratic(sde, 5), tmp_path / "grid.json"
    path.write_text(json.dumps({"times": ts.tolist()} if wrap else ts.tolist()))
    torch.testing.assert_close(from_file(path)(sde, 5), ts, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1.0, 0.5", "not a JSON file"),
        ('{"steps": 3}', 'under "times"'),
        ('[1.0, "a"]', "list of numbers"),
        ("[1.0, true]", "list of numbers"),
        ("[0.1, 0.5]", "strictly decreasing"),
        ("[1.0]", "at least 2"),
        ("[1.0, NaN]", "strictly decreasing"),
        ("[1.0, 0.0]", "above time 0"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, text, message):
    path = tmp_path / "grid.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        from_file(path)
    assert "grid.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_grid_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.json"):
        from_file(tmp_path / "missing.json")
    with pytest.raises(ValueError, match="has 2 steps, asked for 3"):
        grids.fixed([1.0, 0.5, 0.1])(VP(), 3)
    with pytest.raises(ValueError, match="beyond t_max"):
        grids.fixed([80.0, 1.0])(VP(), 1)
    assert grids.fixed([80.0, 1.0])(EDM(), 1)[0] == 80.0


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="rho > 0"):
        grids.polyexponential(0.0)
    with pytest.raises(ValueError, match="levels >= 2"):
        grids.linspace(1)
    with pytest.raises(ValueError, match="do not hold"):
        grids.trailing(10)(VP(), 20)
    with pytest.raises(ValueError, match="at least 1 step"):
        grids.leading()(VP(), 0)
