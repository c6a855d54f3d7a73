"""Names become objects: the tables, the checks of what fits together, and trained models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import scoresde
from scoresde import registry, samplers
from scoresde.config import (
    Config,
    ConfigError,
    build_dataset,
    build_grid,
    build_model,
    build_plan,
    build_sampler,
    config_from,
    load_config,
    override,
    to_plain,
)
from scoresde.convergence import draws_noise
from scoresde.data import Dataset
from scoresde.denoiser import Denoiser
from scoresde.parameterization import Coeffs
from scoresde.runs.load import load_run
from scoresde.samplers import grids, per_sample_noise
from scoresde.samplers.integrals import clock
from scoresde.sde import SDE
from scoresde.testing import Gaussian
from scoresde.training import losses, times
from scoresde.training.checkpoint import (
    BEST,
    Checkpoint,
    CheckpointError,
    describe,
    export_weights,
    save,
    save_step,
)

SMALL = {
    "data.kind": "moons",
    "data.train": 50,
    "data.test": 20,
    "network.kind": "mlp",
    "network.width": 8,
    "network.depth": 1,
}


def small(**changes: object) -> Config:
    return load_config(None, SMALL | {k.replace("__", "."): v for k, v in changes.items()})


def dataset(config: Config) -> Dataset:
    return build_dataset(config.data)


def randomised(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A state dict of random weights: fresh networks end in zeros and all look alike."""
    generator = torch.Generator().manual_seed(seed)
    return {
        k: torch.randn(v.shape, generator=generator) / 10 for k, v in model.state_dict().items()
    }


def checkpoint(config: Config, step: int = 1) -> Checkpoint:
    data = dataset(config)
    model = build_model(config, data)
    return Checkpoint(
        config=to_plain(config),
        data=describe(data),
        step=step,
        model=randomised(model, 2 * step),
        ema=randomised(model, 2 * step + 1),
        optimizer={},
    )


@pytest.mark.parametrize("kind", sorted(registry.STEPS))
def test_every_step_declares_its_order_and_its_calls(kind):
    step = registry.STEPS[kind]()
    assert step.order >= 1
    assert step.nfe_per_step >= 1
    if draws_noise(step):
        assert step.weak_order == step.order


class TestTables:
    def test_constructors_work_without_arguments(self):
        sde = registry.SDES["vp"]()
        t = torch.tensor([0.3], dtype=torch.float64)
        assert all(isinstance(make(), SDE) for make in registry.SDES.values())
        assert all(
            isinstance(make()(sde, t), Coeffs) for make in registry.PARAMETERIZATIONS.values()
        )
        names = set(registry.GRIDS) - registry.NEEDY_GRIDS
        grids_alone = [registry.GRIDS[name] for name in names]
        assert all(make()(sde, 3).shape == (4,) for make in grids_alone)
        assert all(make().order >= 1 for make in registry.STEPS.values())
        assert registry.GRIDS["uniform"]() is grids.uniform

    def test_the_promised_names_are_there(self):
        steps = """euler euler_a heun dpm_2 dpm_2_a lms dpm_fast dpm_adaptive dpmpp_2s_a dpmpp_sde
            dpmpp_2m dpmpp_3m dpmpp_2m_sde dpmpp_3m_sde dpm_solver plms ipndm ipndm_v ddim ddpm
            unipc deis eab sa_solver restart euler_maruyama reverse_diffusion ancestral"""
        found = """uniform quadratic log_snr karras polyexponential trailing leading linspace file
            optimised"""
        assert set(steps.split()) <= set(registry.STEPS)
        assert set(found.split()) <= set(registry.GRIDS)

    def test_every_entry_describes_itself_in_one_sentence(self):
        tables = (
            registry.SDES,
            registry.SAMPLERS,
            registry.DATASETS,
            registry.WEIGHTINGS,
            registry.DRAWS,
        )
        for entry in (entry for table in tables for entry in table.values()):
            assert len(registry.summary(entry)) > 10
            assert "\n" not in registry.summary(entry)

    def test_an_unknown_name_is_answered_with_the_nearest(self):
        with pytest.raises(registry.UnknownName, match="did you mean 'karras'"):
            registry.constructor(registry.GRIDS, "karas")
        with pytest.raises(registry.UnknownName, match="choose one of uniform, quadratic"):
            registry.constructor(registry.GRIDS, "zzz")


class TestModels:
    @pytest.mark.parametrize("sde", registry.SDES)
    @pytest.mark.parametrize("parameterization", registry.PARAMETERIZATIONS)
    def test_every_process_and_parameterisation_is_built(self, sde, parameterization):
        config = small(sde__kind=sde, parameterization__kind=parameterization)
        model = build_model(config, dataset(config))
        x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
        t = torch.tensor(model.sde.t_max / 2, dtype=torch.float64)
        assert model.denoiser()(x, t).shape == x.shape

    def test_the_weights_are_a_function_of_the_seed_alone(self):
        def weights(seed: int) -> torch.Tensor:
            config = small(seed=seed)
            model = build_model(config, dataset(config))
            return torch.cat([p.flatten() for p in model.parameters()])

        before = torch.get_rng_state()
        first = weights(3)
        torch.rand(5)
        assert torch.equal(first, weights(3))
        assert not torch.equal(first, weights(4))
        torch.set_rng_state(before)
        weights(3)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_head_over_levels_fits_the_data(self):
        over_levels = {
            "network.kind": "unet", "network.head": "levels", "network.width": 4,
            "parameterization": "x0", "train.dither": False,
        }  # fmt: skip
        config = override(Config(), over_levels)
        digits = dataset(config)
        model = build_model(config, digits)
        middles = digits.scaling.encode(torch.arange(17))
        x, t = torch.randn(2, 1, 8, 8), torch.tensor(1.0)
        # Untrained and in pure noise, every level is as likely as another.
        assert torch.allclose(model.denoiser()(x, t), middles.mean(), atol=0.05)
        points = build_dataset(small().data)
        with pytest.raises(ConfigError, match=r"head=levels needs pixel levels.*moons"):
            build_model(config, points)

    @pytest.mark.parametrize("kind", sorted(registry.NETWORKS.keys() - {"mlp", "diffusers"}))
    def test_an_image_network_on_points_is_refused(self, kind):
        config = override(small(), {"network.kind": kind})
        with pytest.raises(ConfigError, match=rf"network\.kind={kind} needs images.*moons"):
            build_model(config, dataset(config))

    def test_classes_without_labels_are_refused(self):
        config = small(data__kind="checkerboard", conditional=True)
        with pytest.raises(ConfigError, match=r"conditional=true needs labels.*checkerboard"):
            build_plan(config, dataset(config))

    @pytest.mark.parametrize("kind", ["idx", "folder", "arrays", "cifar_subset"])
    def test_a_missing_path_names_the_option(self, kind):
        with pytest.raises(ConfigError, match=r"data\.path is not given"):
            build_dataset(override(Config(), {"data.kind": kind}).data)

    def test_toys_have_the_size_and_seed_asked_for(self):
        first, second = dataset(small()), dataset(small(data__seed=1))
        assert (len(first.train), len(first.test)) == (50, 20)
        assert not torch.equal(first.train.x, second.train.x)


class TestWeighting:
    def test_importance_sampling_leaves_the_expected_loss(self):
        """int w(t) dt = int w(t(u)) / density du for every law of times."""
        u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
        sde = registry.SDES["vp"](t_min=0.01, t_eps=0.01)

        def mean(kind: str) -> float:
            config = small(train__weighting__kind="likelihood", train__times__kind=kind)
            plan = build_plan(config, dataset(config))
            t, weight = plan.times(sde, u), plan.weight
            assert weight is not None
            bounded = (-2 * sde.lam(t)).exp() / sde.g2(t)  # tames the weight, which explodes at 0
            return float((weight(sde, t) * bounded).mean())

        assert mean("log_snr") == pytest.approx(mean("uniform"), rel=1e-4)

    def test_other_weightings_are_used_as_they_are(self):
        config = small(train__weighting__kind="sigma2", train__times__kind="log_snr")
        assert build_plan(config, dataset(config)).weight is losses.sigma2
        assert build_plan(small(), dataset(small())).weight is None

    def test_the_plan_holds_what_the_configuration_says(self):
        config = small(
            conditional=True, train__times__kind="levels", train__times__n=7, train__clip=None
        )
        plan = build_plan(config, dataset(config))
        assert plan.times == times.DiscreteTimes(7)
        assert plan.clip is None
        assert (plan.classes, plan.label_dropout) == (2, 0.1)
        assert plan.dither
        assert not build_plan(small(train__dither=False), dataset(config)).dither


class TestSamplers:
    @pytest.mark.parametrize("kind", registry.SAMPLERS)
    def test_every_sampler_ends_near_a_gaussian(self, kind):
        law = Gaussian(torch.tensor([1.0, -0.5]), torch.tensor(0.04))
        sample = small(sample__sampler__kind=kind, sample__steps=60).sample
        sde, n = registry.SDES["vp"](), 400
        noise = per_sample_noise(range(n))
        x = build_sampler(sample)(law.denoiser(sde), noise(torch.empty(n, 2)), noise, 5)
        # Denoised means stop short of the last noise: the deviation is at most that of the data.
        assert torch.allclose(x.mean(0), law.mean, atol=0.06)
        assert bool((x.std(0) < 0.3).all())

    @pytest.mark.parametrize("kind", registry.STEPS)
    def test_every_step_declares_its_order_and_its_calls(self, kind):
        """Calls on a long grid are those declared, but for what is spent once."""
        calls, n = 0, 40
        law = Gaussian(torch.tensor([1.0]), torch.tensor(0.04)).denoiser(registry.SDES["vp"]())

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return law(x, t)

        step = registry.build_step(kind, {}, n)
        sampler = registry.GridSampler(grids.log_snr, step, n, denoise=False)
        noise = per_sample_noise([0])
        sampler(Denoiser(law.sde, predict), noise(torch.empty(1, 1)), noise)
        assert step.order >= 1
        if kind not in ("dpm_fast", "dpm_adaptive", "restart"):
            assert calls - n * step.nfe_per_step in range(7)
        assert kind != "dpm_fast" or calls == 3 * (n - 1)

    def test_a_name_among_the_options_becomes_an_object(self):
        step = registry.build_step("eab", {"prediction": "v", "variable": "clock"}, 9)
        assert step == samplers.eab(samplers.V, variable=clock)
        with pytest.raises(registry.UnknownName, match="choose one of eps, x0, v, residual"):
            registry.build_step("eab", {"prediction": "zzz"}, 9)

    @pytest.mark.parametrize("nfe", [10, 20])
    def test_the_recommendation_can_be_written_down(self, nfe):
        step, grid = samplers.recommended(nfe)
        assert registry.build_step("recommended", {}, nfe - 1) == step
        assert registry.GRIDS["arctan"]() == grid
        step, grid = samplers.recommended(nfe, 0.5, 0.3)
        options = {"points": 3, "eta": 0.5, "std": 0.3}
        assert registry.build_step("eab_sde", options, nfe - 1) == step
        assert replace(registry.GRIDS["arctan_wide"](), std=0.3) == grid

    @pytest.mark.parametrize(
        ("name", "options", "grid"),
        [
            ("recommended", {}, "arctan"),
            ("recommended", {"eta": 0.25}, "arctan_wide"),
            ("ddim", {"eta": 0.0}, "arctan"),
            ("ddim", {"eta": 0.5}, "arctan_wide"),
            ("heun", {}, "arctan"),
            ("heun", {"s_churn": 20.0}, "arctan_wide"),
            ("sa_solver", {}, "arctan_wide"),
        ],
    )
    def test_the_default_grid_suits_the_step(self, name, options, grid):
        step = registry.build_step(name, options, 9)
        assert samplers.suited_grid(step) == registry.GRIDS[grid]()

    @pytest.mark.parametrize(("kind", "std"), [("recommended", 0.3), ("heun", None)])
    def test_the_deviation_of_the_data_is_used_unless_another_is_given(self, kind, std):
        given = {} if std is None else {"sample__sampler__std": std}
        for known, changes in ((0.9, {}), (std or 0.9, given)):
            sample = small(sample__sampler__kind=kind, sample__steps=8, **changes).sample
            found = build_sampler(sample, std=0.9)
            assert found.grid == samplers.ArctanGrid(std=known)
            if kind == "recommended":
                assert found.step == samplers.recommended(9, std=known)[0]

    def test_churn_is_spread_over_the_steps_of_the_grid(self):
        step = registry.build_step("heun", {"s_churn": 30.0, "s_tmax": None}, 77)
        assert step == samplers.Churned(samplers.Heun(), 30.0, steps=77)
        assert registry.build_step("dpm_2", {"s_churn": 0.0}, 77) == samplers.dpm_2()

    def test_an_adaptive_step_that_runs_out_of_calls_says_so_and_ends_by_ddim(self):
        sde, law = registry.SDES["vp"](), Gaussian(torch.zeros(2), torch.tensor(0.04))
        x, s = per_sample_noise([0, 1])(torch.empty(2, 2).double()), torch.tensor(1e-3).double()
        step, denoiser = registry.STEPS["dpm_adaptive"](max_nfe=20), law.denoiser(sde)
        with pytest.warns(RuntimeWarning, match=r"2 of 2 samples did not reach .* max_nfe=20"):
            found, _ = step(denoiser, x, torch.tensor(1.0).double(), s, None, per_sample_noise([]))
        reached = samplers.solve_adaptive(denoiser, x, 1.0, 1e-3, max_nfe=20)
        alone = [
            samplers.DDIM()(denoiser, reached.x[i : i + 1], reached.t[i], s, None, None)[0]
            for i in range(2)
        ]
        assert torch.allclose(found, torch.cat(alone), rtol=1e-9)

    def test_a_grid_from_a_file(self, tmp_path):
        file = tmp_path / "grid.json"
        file.write_text("[1.0, 0.5, 0.1]")
        sample = small(sample__grid__kind="file", sample__grid__path=str(file)).sample
        assert build_grid(sample.grid, samplers.DDIM())(registry.SDES["vp"](), 2).tolist() == [
            1.0,
            0.5,
            0.1,
        ]
        with pytest.raises(ConfigError, match=r"sample\.grid\.path is not given"):
            build_grid(small(sample__grid__kind="file").sample.grid, samplers.DDIM())

    def test_the_grid_and_the_last_step_are_those_asked_for(self):
        times_seen: list[float] = []

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            times_seen.append(float(t))
            return 0 * x

        sample = small(sample__sampler__kind="ddim", sample__grid__kind="uniform", sample__steps=4)
        sde, noise = registry.SDES["vp"](), per_sample_noise([0])
        build_sampler(sample.sample)(Denoiser(sde, predict), torch.ones(1, 2), noise)
        assert times_seen == pytest.approx(grids.uniform(sde, 4).tolist())


class TestRuns:
    def test_a_folder_a_checkpoint_and_an_export_give_the_same_model(self, tmp_path):
        found = checkpoint(small(parameterization__kind="v", sde__kind="cosine"))
        file = save_step(tmp_path / "checkpoints", found, keep=1)
        export_weights(tmp_path / "weights.safetensors", found)
        x, t = torch.ones(2, 2), torch.tensor(0.4, dtype=torch.float64)
        models = [
            scoresde.load(source)
            for source in (tmp_path, str(file), tmp_path / "weights.safetensors")
        ]
        outputs = [model.denoiser()(x, t) for model in models]
        assert torch.equal(outputs[0], outputs[1])
        assert torch.equal(outputs[0], outputs[2])
        assert all(not model.training and model.sde == models[0].sde for model in models)

    def test_ema_weights_by_default_raw_ones_on_request(self, tmp_path):
        found = checkpoint(small())
        save(tmp_path / "a.pt", found)
        for ema, weights in ((True, found.ema), (False, found.model)):
            state = load_run(tmp_path / "a.pt", ema=ema).model.state_dict()
            assert all(torch.equal(state[k], v) for k, v in weights.items())

    def test_an_export_has_no_raw_weights(self, tmp_path):
        export_weights(tmp_path / "w.safetensors", checkpoint(small()))
        with pytest.raises(CheckpointError, match="EMA weights only"):
            load_run(tmp_path / "w.safetensors", ema=False)

    def test_the_best_checkpoint_goes_before_the_newest(self, tmp_path):
        folder = tmp_path / "checkpoints"
        for step in (1, 2):
            save_step(folder, checkpoint(small(), step), keep=5)
        assert load_run(tmp_path).step == 2
        save(folder / BEST, checkpoint(small(), 1))
        assert load_run(tmp_path).step == 1

    def test_a_damaged_checkpoint_is_passed_over_and_said(self, tmp_path):
        folder = tmp_path / "checkpoints"
        for step in (1, 2):
            save_step(folder, checkpoint(small(), step), keep=5)
        newest = folder / "step-00000002.pt"
        newest.write_bytes(newest.read_bytes()[:-100])
        (folder / BEST).write_bytes(b"")
        run = load_run(tmp_path)
        assert run.step == 1
        assert len(run.notes) == 2
        assert all(str(folder) in note for note in run.notes)

    def test_a_missing_run_is_named(self, tmp_path):
        for source in (tmp_path, tmp_path / "none.pt", tmp_path / "none"):
            with pytest.raises(CheckpointError, match=str(source)):
                scoresde.load(source)

    def test_a_configuration_of_the_future_is_refused(self, tmp_path):
        found = checkpoint(small())
        found.config["train"]["magic"] = 3
        file = tmp_path / "a.pt"
        save(file, found)
        with pytest.raises(ValueError, match=r"a\.pt: train\.magic: unknown key"):
            scoresde.load(file)

    def test_the_run_says_what_it_was_trained_on(self, tmp_path):
        config = small(conditional=True)
        save(tmp_path / "a.pt", checkpoint(config))
        run = load_run(tmp_path / "a.pt")
        assert run.config == config == config_from(to_plain(config), "x")
        assert run.data == describe(dataset(config))


def test_the_public_names_are_there():
    namespace: dict[str, object] = {}
    exec("from scoresde import *", namespace)
    assert set(scoresde.__all__) <= set(namespace)
    assert set(scoresde.__all__) <= set(dir(scoresde))
    with pytest.raises(AttributeError, match="no attribute 'VQ'"):
        scoresde.VQ  # noqa: B018
