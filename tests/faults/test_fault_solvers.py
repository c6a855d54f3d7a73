"""Fault 27, and what ``scoresde evaluate`` refuses or warns of."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scoresde import Denoiser
from scoresde.cli.main import main
from scoresde.registry import STEPS, build_step
from scoresde.runs.instrument import Instrument
from scoresde.samplers import grids, per_sample_noise, sample
from scoresde.sde import VP
from scoresde.solvers import SolverError, solve_ode
from scoresde.testing import Gaussian
from tests.cli.conftest import POINTS, save_model


def sampling(checkpoint: Path, out: Path, *flags: str) -> list[str]:
    found = ["sample", "--checkpoint", checkpoint, "--out", out, "--num", "3", "--device", "cpu"]
    return [str(part) for part in [*found, *flags]]


@pytest.mark.parametrize("kind", ["heun", "dpmpp_2m", "euler", "dpm_adaptive", "ode", "sde"])
def test_fault_27_numbers_that_are_not_finite(refused, broken, tmp_path, kind):
    line = refused(*sampling(broken, tmp_path / "out", "--sample.sampler", kind), code=1)
    assert f"{kind}: 3 of 3 samples are not finite at t=" in line
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize("method", ["path", "adaptive", "dopri5"])
def test_fault_27_a_likelihood_names_the_solver_the_time_and_the_bad_ones(
    refused, tmp_path, method
):
    model = save_model(tmp_path / "model.pt", POINTS, spread=1e20)
    argv = ["likelihood", "--checkpoint", model, "--device=cpu", "--likelihood.method", method]
    line = refused(*argv, code=1)
    assert re.search(rf"{method}.* (t=|log-SNR )[0-9.e+-]+.*20 of 20 samples are not", line) or (
        re.search(r"adaptive: 20 of 20 samples are not finite near t=[0-9.e+-]+", line)
    )


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "rk4", "euler"])
def test_fault_27_one_bad_sample_is_counted(method):
    denoiser = Denoiser(VP(), lambda x, t: torch.where(x[:, :1] > 3, math.nan, 0.5 * x))
    x = torch.zeros(5, 2, dtype=torch.float64)
    x[2] = 4
    with pytest.raises(SolverError, match=rf"torchdiffeq {method} at log-SNR -?\d.* 1 of 5 sampl"):
        solve_ode(denoiser, x, 1.0, 1e-3, method=method, steps=4)


def test_fault_27_a_tolerance_that_cannot_be_reached():
    denoiser = Gaussian(torch.zeros(2), torch.tensor([0.1, 4.0])).denoiser(VP())
    with pytest.raises(
        SolverError, match=r"dopri5 at log-SNR .*: 50 network calls .*; loosen rtol"
    ):
        solve_ode(denoiser, torch.ones(2, 2), 1.0, 1e-3, rtol=1e-15, atol=1e-15, max_nfe=50)


def test_fault_27_error_control_makes_a_bounded_number_of_calls():
    denoiser, instrument = Gaussian(torch.zeros(2), torch.ones(())).denoiser(VP()), Instrument()
    step = build_step("dpm_adaptive", {"rtol": 1e-15, "atol": 1e-300, "max_nfe": 60}, 1)
    ts, noise = grids.log_snr(VP(), 1), per_sample_noise([0, 1])
    with pytest.warns(RuntimeWarning, match="2 of 2 samples did not reach t=0.001 within max_nfe"):
        found = sample(instrument.on(denoiser), torch.ones(2, 2), ts, step, noise)
    assert instrument.count <= 62
    assert bool(found.isfinite().all())


def test_fault_27_no_steps(refused, points, tmp_path):
    for steps in ("0", "-1", "x"):
        line = refused(*sampling(points, tmp_path / "out", "--sample.steps", steps))
        assert "--sample.steps: must be " in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["recommended", "euler", "heun", "dpmpp_2m", "ddim", "unipc"])
def test_fault_27_one_step(points, tmp_path, capsys, kind):
    flags = ("--sample.sampler", kind, "--sample.steps", "1", "--npz")
    assert main(sampling(points, tmp_path / "out", *flags)) == 0
    with np.load(tmp_path / "out" / "samples.npz") as found:
        first = next(iter(found.values()))
        assert len(first) == 3
        assert np.isfinite(first).all()


def test_fault_27_one_step_of_every_sampler():
    """The law of the data is that of the prior: one step of anything leaves finite numbers."""
    denoiser = Gaussian(torch.zeros(2), torch.ones(())).denoiser(VP())
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    for kind in STEPS:
        step = build_step(kind, {}, 1)
        found = sample(denoiser, x, grids.log_snr(VP(), 1), step, per_sample_noise([0, 1, 2]))
        assert bool(found.isfinite().all()), kind


@pytest.mark.parametrize("time", ["2", "0", "-1", "nan"])
def test_fault_27_a_last_time_out_of_range(refused, tmp_path, time):
    line = refused("train", "--out", tmp_path / "run", "--sde.t_eps", time)
    assert "eps" in line
    assert time in line


# Beside the table ------------------------------------------------------------------------------


def evaluation(samples: Path, *flags: str) -> list[str]:
    digits = ["--data", "digits", "--features", "pixels", "--device", "cpu", "--resamples", "0"]
    return ["evaluate", "--samples", str(samples), *digits, *flags]


def pictures(folder: Path, n: int, size: tuple[int, ...] = (8, 8)) -> Path:
    """Pictures of one shade, which the digits have."""
    folder.mkdir()
    for k in range(n):
        shades = np.full(size, 255 * (k % 2), np.uint8)
        Image.fromarray(shades).save(folder / f"{k:06d}.png")
    return folder


def test_fewer_images_than_asked_for(refused, tmp_path):
    line = refused(*evaluation(pictures(tmp_path / "few", 5), "--num", "6"))
    assert f"--num 6: {tmp_path / 'few'} holds 5 samples; ask for fewer" in line


@pytest.mark.parametrize(("size", "shape"), [((9, 8), "(1, 9, 8)"), ((8, 8, 3), "(3, 8, 8)")])
def test_images_of_another_resolution_or_channels(refused, tmp_path, size, shape):
    folder = pictures(tmp_path / "other", 5, size)
    line = refused(*evaluation(folder))
    assert f"{folder / '000000.png'}: (C, H, W) is {shape}, the data has (1, 8, 8)" in line


def test_a_covariance_of_low_rank_is_finite_and_noted(tmp_path, capsys):
    folder = pictures(tmp_path / "same", 12)
    assert main([*evaluation(folder), "--metrics", "frechet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]["frechet"]
    assert np.isfinite(found["value"])
    assert found["value"] > 0
    assert found["notes"] == ["rank-deficient: 12 items in 64 dimensions"]
    assert main([*evaluation(folder), "--metrics", "frechet"]) == 0
    assert "rank-deficient" in capsys.readouterr().out
