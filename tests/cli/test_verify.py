"""``scoresde verify``: right orders pass, wrong ones do not."""

from __future__ import annotations

import json
import math

import pytest

from scoresde import registry
from scoresde.cli.main import main
from scoresde.convergence import Convergence
from scoresde.runs import orders
from scoresde.samplers import DDIM, Step, euler_a


def boasting(step: Step) -> Step:
    """The step, declaring one order more than it has."""
    kind = type("Boasting", (type(step),), {"order": step.order + 1})
    return kind(**vars(step))


def finding(declared: int, measured: float, weak: bool) -> orders.Finding:
    slope = Convergence((1, 2), (2.0**measured, 1.0))
    return orders.Finding("x", "vp", weak, 1, declared, slope)


class TestOrders:
    def test_a_path_and_moments(self, capsys):
        assert main(["verify", "--samplers", "heun,euler_a", "--sde", "edm", "--json"]) == 0
        found = {row["sampler"]: row for row in json.loads(capsys.readouterr().out)}
        assert set(found) == {"heun", "heun s_churn=3.0", "euler_a"}
        assert [row["order_of"] for row in found.values()] == ["paths", "moments", "moments"]
        assert [row["declared"] for row in found.values()] == [2, 2, 1]
        for row in found.values():
            assert row["measured"] == pytest.approx(row["declared"], abs=0.15)
            assert row["ok"]
            assert len(row["steps"]) == len(row["errors"])

    def test_the_table_has_a_line_a_sampler_and_a_column_a_process(self, capsys):
        assert main(["verify", "--samplers", "ddim", "--sde", "edm,cosine"]) == 0
        page = capsys.readouterr().out
        lines = page.splitlines()
        assert all(name in lines[1] for name in ("declared", "edm", "cosine", "ok"))
        assert sum("ddim" in line and "yes" in line for line in lines) == 3
        assert "6 of 6 orders as declared" in page

    @pytest.mark.parametrize("step", [DDIM, euler_a])
    def test_a_step_that_declares_too_much_fails(self, monkeypatch, capsys, step):
        monkeypatch.setattr(orders, "build_step", lambda kind, options, n: boasting(step()))
        assert main(["verify", "--samplers", "euler_a", "--sde", "edm"]) == 1
        assert "0 of 1 orders as declared" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("declared", "measured", "weak", "ok"),
        [
            (2, 2.14, False, True),
            (2, 2.16, False, False),
            (2, 1.84, False, False),
            (2, 1.84, True, False),
            (2, 2.9, True, False),
            (4, 3.75, False, True),
            (4, 3.6, False, False),
            (4, 5.0, False, True),
            (2, math.nan, True, False),
        ],
    )
    def test_tolerances(self, declared, measured, weak, ok):
        assert finding(declared, measured, weak).ok is ok

    def test_nothing_is_left_out(self):
        kinds = {case.kind for case in orders.cases()}
        assert kinds == set(registry.STEPS) - registry.SELF_PACED
        for case in orders.cases():
            assert case.step(40).order >= 1, case.name

    @pytest.mark.slow
    @pytest.mark.parametrize("process", registry.SDES)
    def test_every_sampler_on_every_process(self, process):
        assert main(["verify", "--sde", process]) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--samplers", "hein"], "--samplers: unknown name 'hein'; did you mean 'heun'?"),
        (["--samplers", ","], "--samplers: names nothing"),
        (["--samplers", "dpm_adaptive"], "dpm_adaptive: chooses its own steps"),
        (["--sde", "vpp"], "--sde: unknown name 'vpp'; did you mean 'vp'?"),
    ],
)
def test_refusals(capsys, flags, words):
    assert main(["verify", *flags]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
