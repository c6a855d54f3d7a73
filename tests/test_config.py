"""Configurations: what they refuse, what they say, and that nothing is lost on the way."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoresde import registry
from scoresde.arguments import Argument, Count, Range
from scoresde.config import (
    AutoencoderConfig,
    Config,
    ConfigError,
    build,
    build_dataset,
    build_model,
    build_sde,
    config_from,
    load_config,
    override,
    to_plain,
    to_yaml,
)
from scoresde.config.files import read_yaml
from scoresde.config.sections import Group, Named, contents, keys, options
from scoresde.config.values import Unreadable, is_plain, read_value

ROOT = Group((Config,))
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text)
    return file


def refusal(folder: Path, text: str, overrides: dict[str, object] | None = None) -> str:
    """The message of the one-line error a file is refused with; it names the file."""
    file = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(file), "FILE")


def alternatives() -> list[tuple[str, str]]:
    """Every (path of a section, kind)."""
    return [
        (path.removesuffix(".kind"), kind)
        for path, argument in options(ROOT)
        if path.endswith(".kind")
        for kind in contents(argument)
    ]


class TestFiles:
    @pytest.mark.parametrize("text", ["", "# only a comment\n", "train:\nsde:\n"])
    def test_nothing_said_is_the_defaults(self, tmp_path, text):
        assert load_config(write(tmp_path, text)) == load_config() == Config()

    @pytest.mark.parametrize("file", CONFIGS, ids=lambda f: f.stem)
    def test_the_shipped_configurations_load_and_survive_a_round_trip(self, file, tmp_path):
        codec = "autoencoder" in read_yaml(file)
        schema = AutoencoderConfig if codec else Config
        config = load_config(file, None, schema)
        assert config != schema()
        assert load_config(write(tmp_path, to_yaml(config)), None, schema) == config
        assert "/" not in str(to_plain(config)["data"].get("path") or "")
        command = "train-autoencoder" if codec else "train"
        assert f"scoresde {command} --config configs/{file.name}" in file.read_text()

    @pytest.mark.parametrize(("path", "kind"), alternatives())
    def test_every_alternative_has_defaults_and_survives_a_round_trip(self, tmp_path, path, kind):
        if kind == "diffusers":  # a section constructs its object
            pytest.importorskip("diffusers", reason="needs diffusers: the extra 'diffusers'")
        changes = {f"{path}.kind": kind, "conditional": "true"}
        if path == "sde.table":
            changes = {"sde.kind": "discrete_vp"} | changes
        if path.startswith("parameterization."):
            changes = {"parameterization.kind": "informed"} | changes
        if kind == "given":
            changes |= {"sde.levels": 3, "sde.table.betas": "0.1,0.2,0.4"}
        if path == "train.objective":
            changes |= {"train.times.kind": "levels"}
        if kind == "hybrid":
            changes |= {"network.head": "variance"}
        config = override(Config(), changes)
        assert load_config(write(tmp_path, to_yaml(config))) == config
        assert config_from(to_plain(config), "checkpoint") == config

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(rate=st.floats(1e-300, 1e300), steps=st.integers(1, 10**15))
    def test_numbers_come_back_exactly(self, tmp_path, rate, steps):
        config = override(Config(), {"train.lr": rate, "train.steps": steps})
        assert load_config(write(tmp_path, to_yaml(config))) == config

    @pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "2E-04", "'2e-4'", "0.0002", "+2e-4"])
    def test_a_float_may_be_written_in_any_way(self, tmp_path, text):
        assert load_config(write(tmp_path, f"train: {{lr: {text}}}")).train.lr == 2e-4

    def test_a_whole_number_may_have_an_exponent(self, tmp_path):
        assert load_config(write(tmp_path, "train: {steps: 1e4}")).train.steps == 10_000

    @pytest.mark.parametrize("word", ["yes", "on", "no", "off", "true"])
    def test_a_truth_value_is_no_number(self, tmp_path, word):
        assert "train.steps: must be a number" in refusal(tmp_path, f"train: {{steps: {word}}}")

    def test_a_name_stands_for_its_kind(self, tmp_path):
        config = load_config(write(tmp_path, "sde: ve\nsample: {sampler: ddim}"))
        assert (config.sde.kind, config.sample.sampler.kind) == ("ve", "ddim")

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
            load_config(tmp_path / "none.yaml")

    def test_binary_is_refused(self, tmp_path):
        file = tmp_path / "run.yaml"
        file.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff\xfe")
        with pytest.raises(ConfigError, match="not a text file"):
            load_config(file)

    def test_broken_yaml_names_the_line(self, tmp_path):
        assert "FILE, line 3" in refusal(tmp_path, "seed: 1\ntrain: {lr: 1\nsde: vp")

    def test_control_characters_are_refused(self, tmp_path):
        assert "FILE" in refusal(tmp_path, "seed: \x01")

    def test_a_top_level_list_is_refused(self, tmp_path):
        assert "found a list" in refusal(tmp_path, "- seed: 1\n")

    @pytest.mark.parametrize("text", ["seed: 1\nseed: 2", "train:\n  lr: 1\n  lr: 2"])
    def test_a_duplicate_key_is_refused(self, tmp_path, text):
        assert "duplicate key" in refusal(tmp_path, text)

    def test_a_tag_that_would_run_code_is_refused_and_not_run(self, tmp_path):
        marker = tmp_path / "marker"
        text = f"seed: !!python/object/apply:pathlib.Path.touch ['{marker}']"
        assert "constructor" in refusal(tmp_path, text)
        assert not marker.exists()


class TestProblems:
    def test_an_unknown_key_is_answered_with_the_nearest(self, tmp_path):
        message = refusal(tmp_path, "train: {lrr: 1}")
        assert message == "FILE: train.lrr: unknown key; did you mean 'lr'?"

    def test_a_key_in_the_wrong_place_is_answered_with_the_right_one(self, tmp_path):
        assert "did you mean 'train.weight_decay'?" in refusal(tmp_path, "weight_decay: 0.1")

    def test_a_key_of_another_kind_is_unknown(self, tmp_path):
        message = refusal(tmp_path, "sde: {kind: edm, beta_min: 0.1}")
        assert "sde.beta_min: unknown key" in message
        assert "beta_max" not in message

    def test_an_unknown_kind_is_answered_with_the_nearest(self, tmp_path):
        message = refusal(tmp_path, "sde: {kind: vpp}")
        assert message == "FILE: sde.kind: unknown kind 'vpp'; did you mean 'vp'?"

    def test_an_unknown_kind_like_no_other_lists_them_all(self, tmp_path):
        message = refusal(tmp_path, "sde: brownian")
        assert all(name in message for name in registry.SDES)

    def test_all_problems_are_listed_with_their_values(self, tmp_path):
        message = refusal(tmp_path, "train: {lr: -1, steps: 0, batch: many}\nsed: 3")
        for part in ("train.lr", "-1", "train.steps", "got 0", "train.batch", "'many'", "'seed'"):
            assert part in message

    def test_an_override_is_named_without_the_file(self, tmp_path):
        assert refusal(tmp_path, "", {"train.lr": "-1"}).startswith("train.lr: must be greater")

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("sde: {beta_min: 20, beta_max: 10}", ("beta_min=20", "beta_max=10")),
            ("sde: {kind: ve, sigma_min: 60}", ("sigma_min=60", "sigma_max=50")),
            ("sde: {t_min: 0.5}", ("t_min=0.5", "t_eps=0.001")),
            ("sde: {t_eps: 2}", ("t_eps=2", "t_max=1")),
            (
                "sde: {kind: discrete_vp, table: {kind: linear, start: 0.5}}",
                ("start=0.5", "end=0.02"),
            ),
            ("train: {batch: 16, accumulate: 3}", ("batch=16", "accumulate=3")),
            ("train: {schedule: inverse_sqrt}", ("decay_from=None", "inverse_sqrt")),
            ("train: {decay_from: 10}", ("decay_from=10", "constant")),
            ("train: {posthoc: [0.1, 0.1]}", ("posthoc=[0.1, 0.1]",)),
            ("train: {ema: [0.9, 0.9]}", ("ema=[0.9, 0.9]",)),
            ("train: {ema: []}", ("ema", "1 item")),
            ("train: {ema: [0.9, 1.0]}", ("train.ema.1", "less than 1")),
            ("train: {shard: true, channels_last: true}", ("shard=true", "channels_last")),
            ("train: {shard: true, compile: true}", ("shard=true", "compile")),
            ("{train: {channels_last: true}, network: {kind: mlp}}", ("channels_last", "mlp")),
            ("{train: {augment: plain}, network: {kind: mlp}}", ("augment=plain", "kind=mlp")),
            ("train: {augment: edm, dither: false}", ("augment=edm", "dither=false")),
            (
                "train: {augment: {kind: plain, flip: 0}}",
                ("train.augment: ", "flip=0", "crop=0"),
            ),
            ("train: {holdout: 0}", ("keep_best=true", "holdout=0")),
            ("train: {label_dropout: 0.5}", ("label_dropout=0.5", "conditional=false")),
            ("network: {heads: 5}", ("network: heads=5", "128 channels")),
            ("network: {head: levels}", ("head=levels", "parameterization=v")),
            (
                "network: {head: levels}\nparameterization: x0",
                ("head=levels", "train.dither: false"),
            ),
            ("network: {attention: [2]}", ("network: ", "attention", "2", "0 to 1")),
            ("network: {kind: adm, width: 96}", ("head_channels=64", "288 channels")),
            (
                "network: {kind: ddpmpp, attention: [4]}",
                ("network: ", "attention", "4", "0 to 3"),
            ),
            ("network: {kind: ncsnpp, taps: [1, 2, 1]}", ("even number", "1,2,1")),
            ("network: {kind: adm, head: levels}", ("head=levels", "parameterization=v")),
            ("network: {head: variance}", ("head=variance", "set train.objective")),
            (
                "train: {objective: hybrid, times: levels}",
                ("train.objective=hybrid", "network.head"),
            ),
            ("{self_conditioning: true, network: mlp}", ("self_conditioning=true", "kind=mlp")),
        ],
    )
    def test_an_inconsistent_pair_is_refused_with_both_names_and_values(
        self, tmp_path, text, parts
    ):
        message = refusal(tmp_path, text)
        assert all(part in message for part in parts)

    @pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
    def test_only_finite_numbers(self, tmp_path, value):
        assert "train.lr" in refusal(tmp_path, f"train: {{lr: {value}}}")

    @pytest.mark.parametrize("text", ["train: 3", "sde: [vp]", "data: 1.5"])
    def test_a_section_is_a_mapping(self, tmp_path, text):
        assert "must be a section" in refusal(tmp_path, text)


class TestOlderVersions:
    """Keys that stored runs have under their old names."""

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (
                "sde: {kind: discrete_vp, levels: 9, beta_start: 0.01, beta_end: 0.3}",
                "sde: {kind: discrete_vp, levels: 9, table: {start: 0.01, end: 0.3}}",
            ),
            (
                "sample: {sampler: {kind: ddpm, large: true}, steps: 7}",
                "sample: {sampler: {kind: ddpm, variance: large}, steps: 7}",
            ),
            ("sample: {sampler: {kind: ddpm, large: false}}", "sample: {sampler: ddpm}"),
            (
                "sample: {sampler: {kind: ddim, eta: 1.0, large: true}}",
                "sample: {sampler: {kind: ddim, eta: 1.0, variance: large}}",
            ),
            ("sample: {sampler: {kind: ddim, eta: 0.0, large: true}}", "sample: {sampler: ddim}"),
        ],
    )
    def test_are_read_as_those_of_today(self, tmp_path, old, new):
        expected = load_config(write(tmp_path, new))
        file = write(tmp_path, old)
        assert load_config(file) == expected
        assert config_from(read_yaml(file), "old.pt") == expected

    def test_a_table_of_betas_is_the_same_numbers(self):
        old = {"sde": {"kind": "discrete_vp", "levels": 5, "beta_start": 0.1, "beta_end": 0.5}}
        found = build_sde(config_from(old, "old.pt").sde)
        assert found.betas == pytest.approx((0.1, 0.2, 0.3, 0.4, 0.5))

    def test_old_and_new_keys_do_not_mix(self, tmp_path):
        text = "sde: {kind: discrete_vp, beta_start: 0.1, table: cosine}"
        assert "sde.beta_start: unknown key" in refusal(tmp_path, text)
        text = "sample: {sampler: {kind: ddim, eta: 0.5, large: true}}"
        assert "variance=large is of eta=1, got eta=0.5" in refusal(tmp_path, text)


class TestPrecedence:
    def test_defaults_then_file_then_flags(self, tmp_path):
        file = write(tmp_path, "train: {lr: 1e-3, batch: 32}\nsde: {beta_max: 10}")
        config = load_config(file, {"train.lr": "5e-4", "sde.beta_min": "0.2"})
        assert (config.train.lr, config.train.batch) == (5e-4, 32)
        assert (config.sde.beta_min, config.sde.beta_max) == (0.2, 10)
        assert config.train.steps == Config().train.steps

    def test_another_kind_starts_from_its_own_defaults(self, tmp_path):
        file = write(tmp_path, "sde: {kind: vp, t_eps: 0.1}")
        config = load_config(file, {"sde.kind": "ve", "sde.sigma_max": "20"})
        assert config.sde == load_config(None, {"sde.kind": "ve", "sde.sigma_max": 20}).sde

    @pytest.mark.parametrize("names", [("sde", "sde.sigma_max"), ("sde.sigma_max", "sde")])
    def test_a_kind_and_its_keys_may_come_in_any_order(self, names):
        values = {"sde": "ve", "sde.sigma_max": "37.5"}
        found = load_config(None, {name: values[name] for name in names})
        assert found.sde == load_config(None, {"sde": {"kind": "ve", "sigma_max": 37.5}}).sde

    def test_a_name_for_a_section_without_kinds_is_refused(self):
        with pytest.raises(ConfigError, match=r"train.kind: unknown key"):
            load_config(None, {"train": "fast", "train.lr": "1"})

    def test_null_text_is_none(self):
        assert load_config(None, {"train.clip": "null"}).train.clip is None

    def test_frozen(self):
        config = Config()
        with pytest.raises(AttributeError):
            config.seed = 3
        with pytest.raises(AttributeError, match=r"lr: .*override"):
            config.train.lr = 3


class TestSamplers:
    @pytest.mark.parametrize(
        ("sampler", "words"),
        [
            ("{kind: lms, order: 5}", "sample.sampler.order: must be less than or equal to 4"),
            ("{kind: dpm_solver, order: 4}", "less than or equal to 3, got 4"),
            ("{kind: euler_a, eta: -0.1}", "sample.sampler.eta: must be greater than or equal"),
            ("{kind: heun, s_tmin: 3, s_tmax: 2}", "s_tmin=3, s_tmax=2"),
            ("{kind: restart, low: 1}", "low=1, high=0.3"),
            (
                "{kind: deis, prediction: x0}",
                "sampler.kind that has it: dpm_solver",
            ),
            (
                "{kind: unipc, prediction: noise}",
                "'v' or 'residual', got 'noise'",
            ),
            ("{kind: dpmpp_2m, publish: true}", "did you mean 'published'?"),
            ("dpmpp2m", "did you mean 'dpmpp_2m'?"),
        ],
    )
    def test_what_a_sampler_cannot_do_is_refused(self, tmp_path, sampler, words):
        assert words in refusal(tmp_path, f"sample: {{sampler: {sampler}}}")


def made(
    size: Annotated[int, Range(ge=2, multiple_of=2)],
    rate: float = 0.5,
    widths: tuple[Count, ...] = (1, 2),
    mode: Literal["a", "b"] = "a",
    place: Path | str | None = None,
    top: float = float("inf"),
    flag: bool = False,
) -> dict[str, object]:
    """An entry of a table.

    Args:
        size: a size.
        rate: a rate.
        widths: some widths.
        mode: a word.
        place: a file.
        top: a bound.
        flag: do something.
    """
    if rate > size:
        raise ValueError(f"need rate <= size, got rate={rate:g}, size={size}")
    return dict(locals())


class TestConstructors:
    """The constructor is the schema."""

    def test_every_entry_of_every_table_is_reached_and_described(self):
        """From a configuration, with keys of plain values, names and sections only."""
        reached: set[int] = set()

        def walk(name: str, argument: Argument) -> None:
            assert argument.about, f"{name} has no description"
            source = contents(argument)
            if isinstance(source, Named):
                source = source.table
            assert source is not None or is_plain(argument.type), name
            if source is None:
                return
            reached.add(id(source))
            for kind in source if isinstance(source, registry.Table) else [None]:
                if kind is None or source.constructs:
                    for key, inner in keys(source, kind).items():
                        walk(f"{name}[{kind}].{key}", inner)

        for key, argument in {**keys(Group((AutoencoderConfig,))), **keys(ROOT)}.items():
            walk(key, argument)
        tables = {
            key: table
            for key, table in registry.TABLES.items()
            if table.constructs
            and key not in ("step", "method", "dequantisation", "trace", "posterior")
        }
        assert {id(table) for table in tables.values()} <= reached

    @pytest.mark.parametrize("path", ["data", "sde", "network", "parameterization"])
    def test_a_name_of_ones_own_works_as_the_others_do(self, tmp_path, path, monkeypatch):
        table = registry.TABLES[path]
        monkeypatch.setattr(table, "_entries", dict(table._entries))
        registry.register(path, "mine", {"data": made, "sde": made}.get(path, made_of(path)))
        config = load_config(write(tmp_path, f"{path}: {{kind: mine, size: 4, top: null}}"))
        section = getattr(config, path)
        assert (section.kind, section.size, section.widths, section.top) == (
            "mine",
            4,
            (1, 2),
            None,
        )
        assert load_config(write(tmp_path, to_yaml(config))) == config
        message = refusal(tmp_path, f"{path}: {{kind: mine, size: 3}}")
        assert message == f"FILE: {path}.size: must be a multiple of 2, got 3"

    def test_a_constructor_is_the_check_and_named_with_its_section(self, tmp_path, monkeypatch):
        monkeypatch.setattr(registry.WEIGHTINGS, "_entries", dict(registry.WEIGHTINGS._entries))
        registry.register(registry.WEIGHTINGS, "mine", checked)
        words = refusal(tmp_path, "train: {weighting: {kind: mine, low: 3}}")
        assert words == "FILE: train.weighting: need low <= high, got low=3, high=2"
        config = load_config(None, {"train.weighting": "mine"})
        assert build(config.train.weighting) == (1.0, 2.0)
        assert build(config.train.weighting, high=7.0) == (1.0, 7.0)

    def test_what_is_not_given_is_said_when_it_is_built(self, monkeypatch):
        monkeypatch.setattr(registry.DATASETS, "_entries", dict(registry.DATASETS._entries))
        registry.register("DATASETS", "mine", made)
        section = Config(data="mine").data
        assert section.size is None
        with pytest.raises(ValueError, match="size is not given"):
            build(section)
        built = build(Config(data={"kind": "mine", "size": 2, "place": "~/x"}).data)
        assert built["place"] == Path("~/x").expanduser()
        assert built["top"] == float("inf")

    def test_names_are_not_taken_twice_nor_misspelt(self):
        with pytest.raises(ValueError, match="'vp' is there already"):
            registry.register("sde", "vp", made)
        with pytest.raises(ValueError, match="small letters"):
            registry.register("sde", "V P", made)
        with pytest.raises(registry.UnknownName, match="did you mean 'sde'"):
            registry.register("sed", "mine", made)
        with pytest.raises(ValueError, match="mine: need a constructor, got 3"):
            registry.register("sde", "mine", 3)

    def test_data_of_ones_own_come_in_any_form(self, monkeypatch):
        """Constructors of data may return whatever ``dataset_of`` reads."""
        monkeypatch.setattr(registry.DATASETS, "_entries", dict(registry.DATASETS._entries))
        registry.register("data", "mine", lambda: (torch.eye(4), ["a", "b"] * 2))
        found = build_dataset(Config(data="mine").data)
        assert (found.shape, found.classes) == ((4,), ("a", "b"))

    def test_a_network_of_ones_own_need_not_take_classes(self, monkeypatch):
        monkeypatch.setattr(registry.NETWORKS, "_entries", dict(registry.NETWORKS._entries))
        registry.register("network", "mine", lambda dim: torch.nn.Linear(dim, dim))
        data = build_dataset(Config(data="moons").data)
        assert build_model(Config(network="mine"), data).net.in_features == 2
        with pytest.raises(ConfigError, match="kind=mine takes no classes; set conditional"):
            build_model(Config(network="mine", conditional=True), data)

    def test_a_network_fits_before_there_are_data(self, tmp_path):
        assert "does not divide" in refusal(tmp_path, "network: {kind: dit, heads: 7}")

    @pytest.mark.parametrize("kind", [n for n in registry.NETWORKS if n != "diffusers"])
    def test_a_network_is_built_with_the_defaults_of_its_constructor(self, kind):
        config = load_config(None, {"network.kind": kind})
        given = {k: v for k, v in config.network.values.items() if k != "head"}
        assert all(given[a.name] == a.default for a in registry.NETWORKS.arguments(kind).values())

    def test_a_section_is_a_value(self):
        first, second = Config(train={"lr": 1e-3}), load_config(None, {"train.lr": "1e-3"})
        assert first == second
        assert hash(first.train) == hash(second.train)
        assert pickle.loads(pickle.dumps(first)) == first
        with pytest.raises(AttributeError, match="no key 'lrr'"):
            _ = first.train.lrr
        with pytest.raises(ConfigError, match=r"train\.lr: must be a number, got 'fast'"):
            Config(train={"lr": "fast"})


def made_of(path: str) -> object:
    """The entry with what else the table supplies."""

    def network(
        channels: int,
        classes: int | None = None,
        size: Annotated[int, Range(ge=2, multiple_of=2)] = 2,
        widths: tuple[Count, ...] = (1, 2),
        top: float = float("inf"),
    ) -> None:
        """A network."""

    return network if path == "network" else made


def checked(low: float = 1.0, high: float = 2.0) -> tuple[float, float]:
    """A weight between two bounds."""
    if low > high:
        raise ValueError(f"need low <= high, got low={low:g}, high={high:g}")
    return low, high


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("size", "4", 4),
        ("size", 4.0, 4),
        ("size", None, None),
        ("rate", "1e-3", 1e-3),
        ("rate", 3, 3.0),
        ("widths", "[1, 2,3]", (1, 2, 3)),
        ("widths", 7, (7,)),
        ("widths", [], ()),
        ("mode", "b", "b"),
        ("place", "016", "016"),
        ("top", None, None),
        ("flag", "yes", True),
        ("flag", "False", False),
    ],
)
def test_values_are_read_as_their_type(name, value, found):
    assert read_value(registry.tables.arguments(made)[name], value) == found


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("size", 4.5, "must be a whole number, got 4.5"),
        ("size", "016", "without a 0 before it, which YAML reads as octal, got '016'"),
        ("size", True, "must be a number (YAML reads yes, no"),
        ("size", 2**60, f"less than or equal to {2**53}"),
        ("size", str(2**53 + 1), f"less than or equal to {2**53}"),
        ("size", "1e300", f"less than or equal to {2**53}"),
        ("rate", "1:30", "must be a number, got '1:30'"),
        ("rate", float("nan"), "must be a finite number"),
        ("rate", None, "must be a number, got None"),
        ("widths", ["1", "x"], "must be a whole number, got 'x'"),
        ("widths", [0], "greater than or equal to 1, got 0"),
        ("mode", "c", "must be 'a' or 'b', got 'c'"),
        ("place", 3, "must be a path, got 3"),
        ("flag", 7, "must be true or false, got 7"),
        ("flag", "x" * 100, "xxx..."),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_value(name, value, words):
    with pytest.raises(Unreadable) as caught:
        read_value(registry.tables.arguments(made)[name], value)
    assert words in str(caught.value)


@pytest.mark.parametrize(("text", "words"), [("016", "octal, got '016'"), ("1:30", "'1:30'")])
def test_numbers_of_yaml_in_other_bases_are_no_surprise(tmp_path, text, words):
    assert words in refusal(tmp_path, f"network: {{kind: mlp, width: {text}}}")
    config = load_config(write(tmp_path, f"data: {{kind: folder, path: {text}}}"))
    assert config.data.path == text


@pytest.mark.parametrize(
    ("schema", "other"), [(Config, AutoencoderConfig), (AutoencoderConfig, Config)]
)
def test_a_file_of_the_other_kind_is_named(schema, other, tmp_path):
    file = write(tmp_path, to_yaml(other()))
    kinds = f"configures a run of kind {other.TRAINS}, not of kind {schema.TRAINS}; give"
    with pytest.raises(ConfigError, match=kinds):
        load_config(file, None, schema)
