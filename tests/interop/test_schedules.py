"""The files of schedulers: tables, levels, defaults, and what is refused."""

import math

import pytest
import torch

from scoresde import EDM, VE, Denoiser, DiscreteVP, LinearFlow, betas
from scoresde.interop.schedulers import CLASSES, WITHOUT_GRID, grid_of, guide_of, schedule_of
from scoresde.samplers import grids

F64 = torch.float64


def config(name="DDPMScheduler", **fields):
    return {"_class_name": name, "_diffusers_version": "0.42.1", **fields}


def alphas_bar(**fields):
    """alpha_bar of every level, of the process."""
    sde = schedule_of(config(**fields)).sde
    n = len(sde.betas)
    return sde.alpha(torch.arange(1, n + 1, dtype=F64) / n) ** 2


def test_every_class_is_a_process_with_levels():
    for name in CLASSES:
        found = schedule_of(config(name))
        t = torch.tensor(found.sde.t_max / 2, dtype=F64)
        assert all(bool(c.isfinite()) for c in found.parameterization(found.sde, t)), name
        if name in WITHOUT_GRID:
            with pytest.raises(ValueError, match="more noise"):
                grid_of(config(name))
        else:
            for n in (2, 10):
                ts = grid_of(config(name))(found.sde, n)
                assert len(ts) in (n, n + 1)
                assert (ts.diff() < 0).all()
                assert ts[0] <= found.sde.t_max


def test_tables_are_products_in_float64():
    for kind, own in (
        ("linear", torch.linspace(1e-3, 0.1, 60, dtype=F64)),
        ("scaled_linear", torch.linspace(1e-3**0.5, 0.1**0.5, 60, dtype=F64) ** 2),
        ("sigmoid", torch.linspace(-6, 6, 60, dtype=F64).sigmoid() * 0.099 + 1e-3),
        ("exp", torch.full((60,), 1 - math.exp(-12 / 60), dtype=F64)),
    ):
        found = alphas_bar(
            beta_schedule=kind, beta_start=1e-3, beta_end=0.1, num_train_timesteps=60
        )
        torch.testing.assert_close(found, torch.cumprod(1 - own, 0), rtol=1e-12, atol=0)
    square = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    cosine = torch.tensor([square((i + 1) / 60) / square(0) for i in range(59)], dtype=F64)
    found = alphas_bar(beta_schedule="squaredcos_cap_v2", num_train_timesteps=60)
    torch.testing.assert_close(found[:-1], cosine, rtol=1e-11, atol=0)
    assert schedule_of(config(trained_betas=[0.1, 0.2, 0.3])).sde == DiscreteVP((0.1, 0.2, 0.3))


def test_a_rescaled_table_ends_without_signal():
    found = schedule_of(config(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    sde, last = found.sde, torch.tensor(1.0, dtype=F64)
    assert sde.betas[-1] == 1
    assert sde.alpha(last) < 1e-28  # 2^-24 would be 2e-4
    assert bool(found.parameterization(sde, last).out == -1)
    first = torch.tensor(1 / 1000, dtype=F64)
    torch.testing.assert_close(sde.alpha(first), DiscreteVP().alpha(first))


def test_what_the_network_returns_and_is_told():
    t = torch.tensor(0.35, dtype=F64)
    for name, said, sde in (
        ("DDIMScheduler", "epsilon", DiscreteVP()),
        ("DDIMScheduler", "v_prediction", DiscreteVP()),
        ("DDIMScheduler", "sample", DiscreteVP()),
        ("UniPCMultistepScheduler", "flow_prediction", LinearFlow()),
    ):
        flows = said == "flow_prediction"
        fields = {"use_flow_sigmas": True} if flows else {}
        found = schedule_of(config(name, prediction_type=said, **fields))
        c = found.parameterization(found.sde, t)
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        x0, noise = torch.tensor(0.7, dtype=F64), torch.tensor(-1.3, dtype=F64)
        output = {
            "epsilon": noise,
            "v_prediction": alpha * noise - sigma * x0,
            "sample": x0,
            "flow_prediction": noise - x0,
        }[said]
        x = alpha * x0 + sigma * noise
        torch.testing.assert_close(c.skip * x + c.out * output, x0)
        torch.testing.assert_close(c.noise, torch.tensor(350.0 if flows else 349.0, dtype=F64))
        torch.testing.assert_close(c.inp, torch.ones_like(c.inp))


def test_edm_and_ve():
    sigma = torch.tensor(3.0, dtype=F64)
    found = schedule_of(config("EDMEulerScheduler", sigma_data=0.7))
    assert found.sde == EDM()
    c = found.parameterization(found.sde, sigma)
    total = 9 + 0.49
    torch.testing.assert_close(c.skip, torch.tensor(0.49 / total, dtype=F64))
    torch.testing.assert_close(c.out, torch.tensor(3 * 0.7 / total**0.5, dtype=F64))
    torch.testing.assert_close(c.noise, sigma.log() / 4)
    fields = {"sigma_data": 0.7, "prediction_type": "v_prediction"}
    turned = schedule_of(config("EDMEulerScheduler", **fields))
    assert turned.parameterization(found.sde, sigma).out == -c.out
    assert turned.parameterization.sigma_data == 0.7
    found = schedule_of(config("ScoreSdeVeScheduler", sigma_max=90.0))
    assert found.sde == VE(0.01, 90.0)
    t = torch.tensor(0.6, dtype=F64)
    c, std = found.parameterization(found.sde, t), found.sde.sigma(t)
    torch.testing.assert_close(c.out, std**2)  # x + sigma^2 score
    torch.testing.assert_close(c.noise, std)


def test_learned_and_distilled():
    assert schedule_of(config(variance_type="learned_range")).variance
    assert not schedule_of(config(variance_type="fixed_large")).variance
    assert schedule_of(config("LCMScheduler")).distilled
    assert not schedule_of(config()).distilled


def test_old_names():
    old = config("GaussianDDPMScheduler", timesteps=50, clip_predicted_image=True)
    assert schedule_of(old) == schedule_of(config(num_train_timesteps=50))
    assert schedule_of(config(predict_epsilon=False)) == schedule_of(
        config(prediction_type="sample")
    )


def test_clipping():
    far = Denoiser(DiscreteVP(), lambda x, t: 5 * x)
    x, t = torch.tensor([[1.0, -1.0, 0.1]]), torch.tensor(0.5)
    for fields, high in (
        ({}, 1.0),
        ({"clip_sample_range": 2.0}, 2.0),
        ({"thresholding": True, "clip_sample_range": 2.0}, 1.0),
        ({"clip_sample": False}, 5.0),
        ({"_class_name": "EulerDiscreteScheduler"}, 5.0),
    ):
        found = guide_of(config(**fields))(far)
        assert found(x, t).tolist() == [[high, -high, 0.5]]
        assert found.normalised == (high == 5)
    with pytest.raises(ValueError, match="dynamic_threshold"):
        guide_of(config(thresholding=True, sample_max_value=3.0))


def test_levels_are_those_of_our_grids():
    sde = DiscreteVP()
    for spacing in ("leading", "trailing"):
        name = "DDIMScheduler" if spacing == "trailing" else "UniPCMultistepScheduler"
        theirs = grid_of(config(name, timestep_spacing=spacing))(sde, 20)
        ours = getattr(grids, spacing)(1000)(sde, 20)
        torch.testing.assert_close(theirs[:20], ours[:20], rtol=1e-12, atol=0)
        assert theirs[-1] == 0
    fields = {"use_karras_sigmas": True, "timestep_spacing": "linspace"}
    theirs = grid_of(config("EulerDiscreteScheduler", **fields))(sde, 20)
    torch.testing.assert_close(theirs[:20], grids.karras()(sde, 19), rtol=1e-9, atol=0)
    edm = grid_of(config("EDMEulerScheduler"))(EDM(), 20)
    torch.testing.assert_close(edm[:20], grids.karras()(EDM(), 19), rtol=1e-12, atol=0)


def test_the_last_step_ends_where_theirs_does():
    sde = DiscreteVP()
    diffusion = {"steps_offset": 1, "set_alpha_to_one": False}
    assert grid_of(config("DDIMScheduler", **diffusion))(sde, 20)[-1] == 1 / 1000
    assert grid_of(config("DEISMultistepScheduler"))(sde, 20)[-1] == 1 / 1000
    idle = grid_of(config("PNDMScheduler"))(sde, 20)  # its last step goes from level 0 to level 0
    assert len(idle) == 20
    assert idle[-1] == 1 / 1000


def test_shifts_of_flows():
    flow = LinearFlow(t_max=1 - 2**-53)
    shifted = grid_of(config("FlowMatchEulerDiscreteScheduler", shift=3.0))(flow, 10)
    plain = grid_of(config("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True), 0.0)
    assert shifted[5] > plain(flow, 10)[5]
    by_mu = grid_of(
        config("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True), math.log(3)
    )(flow, 10)
    s = plain(flow, 10)
    torch.testing.assert_close(by_mu, 3 * s / (1 + 2 * s))
    stretched = grid_of(config("FlowMatchEulerDiscreteScheduler", shift_terminal=0.1))(flow, 10)
    torch.testing.assert_close(stretched[-2], torch.tensor(0.1, dtype=F64))
    with pytest.raises(ValueError, match="needs mu"):
        grid_of(config("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True))(flow, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"_class_name": "AmusedScheduler"}, "AmusedScheduler is not read; these are: DDPM"),
        ({"_class_name": "Line\nbreak"}, "Line.*break. is not read"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "prediction_type": "epsilon"},
            "flow_prediction only",
        ),
        ({"warp": 1, "bend": 2}, "unknown fields of DDPMScheduler: bend, warp"),
        ({"beta_schedule": "hexagonal"}, "need beta_schedule one of linear"),
        ({"prediction_type": "noise"}, "need prediction_type one of epsilon"),
        ({"prediction_type": "flow_prediction"}, "DDPMScheduler needs use_flow_sigmas"),
        ({"beta_start": 2.0}, "need 0 < beta_start < 1, got beta_start=2"),
        ({"beta_end": "much"}, "need a number, got beta_end='much'"),
        ({"beta_start": 0.02, "beta_end": 1e-4}, "start"),
        ({"num_train_timesteps": 1000.5}, "need a whole number"),
        ({"use_karras_sigmas": 1}, "need use_karras_sigmas true or false"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "one only"),
        ({"trained_betas": [0.1, 1.5]}, "trained_betas"),
        ({"trained_betas": [0.1]}, "at least two"),
        ({"trained_betas": 3}, "trained_betas: need a list"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "epsilon or v"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 90.0}, "t_min"),
    ],
)
def test_what_is_refused_names_the_file_and_the_field(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        schedule_of(config(**fields), where="folder/scheduler_config.json")
    assert str(caught.value).startswith("folder/scheduler_config.json: ")
    assert "\n" not in str(caught.value)


def test_grids_that_do_not_hold_the_steps():
    for name, n, message in (
        ("DDIMScheduler", 1001, "do not hold"),
        ("LCMScheduler", 51, "at most 50"),
        ("DDIMScheduler", 0, "at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            grid_of(config(name))(DiscreteVP(), n)
    beyond = config("DDIMScheduler", steps_offset=1, timestep_spacing="leading")
    with pytest.raises(ValueError, match="begin beyond"):
        grid_of(beyond)(DiscreteVP(), 1000)


def test_without_a_class():
    with pytest.raises(ValueError, match="_class_name is missing"):
        schedule_of({"beta_start": 1e-4})


def test_the_published_laplace_table():
    sde = schedule_of(config(beta_schedule="laplace")).sde
    assert sde == DiscreteVP(betas.laplace(published=True)(1000))
