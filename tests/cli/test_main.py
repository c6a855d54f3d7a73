"""The command line: help without torch, exit codes, one line an error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scoresde import __version__, registry
from scoresde.arguments import arguments
from scoresde.cli import info, sample
from scoresde.cli import options as cli_options
from scoresde.cli.flags import UsageError, parse
from scoresde.cli.main import COMMANDS, main
from scoresde.cli.options import InfoOptions, SampleOptions, TrainOptions
from scoresde.config import Config, ConfigError, load_config
from scoresde.config.sections import Group, options

HELP = """
import sys
from scoresde.cli.main import main
for argv in {commands}:
    assert main(argv) == {code}, argv
    heavy = {{"torch", "numpy", "matplotlib", "PIL"}} & set(sys.modules)
    assert not heavy, (argv, heavy)
"""


def fresh_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def refusal(capsys, *argv: str, code: int = 2) -> str:
    """The one line on stderr of a command that fails with ``code``."""
    assert main(list(argv)) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("scoresde: error: ")
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.out + captured.err
    return captured.err


class TestHelp:
    def test_needs_no_torch(self):
        start = time.monotonic()
        done = fresh_python(HELP.format(commands=[["--help"], [], ["--version"]], code=0))
        assert done.returncode == 0, done.stderr
        assert "usage: scoresde" in done.stdout
        assert time.monotonic() - start < 5  # under a second on an idle machine
        done = fresh_python(HELP.format(commands=[["trian"]], code=2))
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
    def test_waiting_threads_sleep_unless_told_otherwise(self, monkeypatch, given, kept):
        """Torch reads it when it is loaded, so the command sets it before."""
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        if given is not None:
            monkeypatch.setenv("OMP_WAIT_POLICY", given)
        assert main(["--version"]) == 0
        assert os.environ["OMP_WAIT_POLICY"] == kept

    def test_shows_the_values_of_the_file_and_the_choices(self, tmp_path, capsys):
        file = tmp_path / "run.yaml"
        file.write_text("sde: {kind: ve, sigma_max: 37.5}")
        assert main(["train", "--config", str(file), "--train.lr", "3e-3", "--help"]) == 0
        page = " ".join(capsys.readouterr().out.split())
        assert "now: 37.5" in page
        assert "now: 0.003" in page
        assert "(batch >= 1; default: 128)" in page
        assert "beta_min" not in page
        assert all(name in page for name in registry.SDES)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_a_page_has_lines_of_80_columns_and_every_option_a_description(self, capsys, name):
        assert main([name, "--help"]) == 0
        page = capsys.readouterr().out
        assert page.startswith(f"usage: scoresde {name}")
        assert all(len(line) <= 80 for line in page.splitlines())
        options = getattr(cli_options, COMMANDS[name].options)
        for argument in arguments(options).values():
            assert argument.about, f"{name}: {argument.name} has no description"
        # A flag stands alone, or with its value, before at least two spaces and its description.
        for before, after in pairwise(page.splitlines()):
            if re.match(r"  --", before):
                text = re.sub(r"^  --[\w.-]+( [A-Z]+)?\s*", "", before) or after
                assert re.search(r"\w \w|\w", text.strip()), before

    def test_a_negated_flag_says_what_it_does(self, capsys):
        assert main(["sample", "--help"]) == 0
        page = capsys.readouterr().out
        assert re.search(r"--sample.no-denoise +do not end with the denoised state", page)
        assert main(["sample", "--sample.no-denoise", "--help"]) == 0
        assert re.search(r"--sample.denoise +end with the denoised state", capsys.readouterr().out)

    def test_keys_say_whose_values_they_show(self, capsys):
        for name, words in (("train", "of --config and the"), ("sample", "the run replace these")):
            main([name, "--help"])
            assert f"{words} " in capsys.readouterr().out
        main(["info", "--help"])
        assert "\n  PATH   " in capsys.readouterr().out

    def test_ranges_choices_and_defaults_are_shown(self, capsys):
        assert main(["train", "--sde", "discrete_vp", "--train.clip=null", "--help"]) == 0
        page = " ".join(capsys.readouterr().out.split())
        assert "length of the table of variances (2 <= levels <= 1e+06; default: 1000)" in page
        assert "(one of independent, antithetic, stratified; default: stratified)" in page
        assert "--train.clip NUMBER" in page

    def test_python_m(self):
        done = subprocess.run(
            [sys.executable, "-m", "scoresde", "--version"], capture_output=True, text=True
        )
        assert done.stdout == f"{__version__}\n"

    def test_no_command_prints_the_commands(self, capsys):
        assert main([]) == 0
        page = capsys.readouterr().out
        assert all(name in page for name in COMMANDS)


class TestFlags:
    def test_configuration_keys_become_overrides(self):
        argv = ["--train.lr", "1e-4", "--sde.beta-max=10", "--network.multipliers", "1", "2"]
        argv += ["--train.no-keep-best", "--network.attention", "--resume", "--conditional"]
        argv += ["--train.times.kind", "lognormal", "--train.times.mean", "-1.5", "--out", "runs"]
        options, overrides = parse(
            TrainOptions, argv, "scoresde train", COMMANDS["train"].sections
        )
        config = load_config(None, overrides)
        assert options == TrainOptions(out=Path("runs"), resume=True)
        assert (config.train.lr, config.sde.beta_max, config.train.times.mean) == (1e-4, 10, -1.5)
        assert (config.network.multipliers, config.network.attention) == ((1, 2), ())
        assert (config.train.keep_best, config.conditional) == (False, True)

    def test_a_section_may_be_set_to_a_kind(self):
        _, overrides = parse(TrainOptions, ["--sde", "ve"], "scoresde train", ["sde"])
        assert overrides == {"sde.kind": "ve"}

    @pytest.mark.parametrize("text", ["1,2,4", "[1, 2, 4]", "(1,2,4)"])
    def test_a_list_may_be_written_in_one_word(self, text):
        flags = ["--network.multipliers", text]
        _, overrides = parse(TrainOptions, flags, "scoresde train", ["network"])
        assert load_config(None, overrides).network.multipliers == (1, 2, 4)

    def test_a_list_may_be_null(self):
        flags = ["--network.kind", "diffusers", "--network.attention", "null"]
        _, overrides = parse(TrainOptions, flags, "scoresde train", ["network"])
        assert overrides["network.attention"] == "null"

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["--train.lrr", "3"], "--train.lrr: unknown option; did you mean '--train.lr'?"),
            (["--resme"], "--resme: unknown option; did you mean '--resume'?"),
            (["--train.lr"], "--train.lr: takes one value"),
            (["--train.lr", "1", "2"], "--train.lr: takes one value, got 1 2"),
            (["--train.no-keep-best", "3"], "--train.no-keep-best: takes no value"),
            (["stray"], "stray: unexpected argument"),
            (["--train.no-steps"], "--train.no-steps: unknown option"),
            (["--train.keep-best", "3"], "--train.keep-best: takes true or false, got 3"),
            (["--resume", "x"], "x: unexpected argument"),
            (["--out"], "--out: takes one value, got none"),
            (["--out", "-x"], "begins with a dash is written --out=-x"),
            (["--out="], "--out: empty"),
            (["--sde.kind", ""], "--sde.kind: empty"),
        ],
    )
    def test_what_is_unknown_is_refused(self, argv, words):
        with pytest.raises(UsageError) as caught:
            parse(TrainOptions, argv, "scoresde train", COMMANDS["train"].sections)
        assert str(caught.value).startswith(words) or words in str(caught.value)

    def test_a_command_takes_its_own_sections_only(self):
        with pytest.raises(UsageError, match=r"--train\.lr: unknown option"):
            parse(SampleOptions, ["--train.lr", "3"], "scoresde sample", ["sample"])

    def test_a_value_may_begin_with_a_dash_after_an_equals_sign(self):
        sections = COMMANDS["train"].sections
        options, overrides = parse(
            TrainOptions, ["--out=-x", "--train.times.mean=-1"], "", sections
        )
        assert options.out == Path("-x")
        assert overrides == {"train.times.mean": "-1"}
        assert parse(TrainOptions, ["--train.times.mean", "-1"], "", sections)[1] == overrides

    def test_a_truth_value_may_be_spelt_out_and_is_not_a_place(self):
        options, _ = parse(InfoOptions, ["--json", "runs/x"], "scoresde info")
        assert options == InfoOptions(path=Path("runs/x"), json=True)
        _, overrides = parse(TrainOptions, ["--train.dither", "false"], "", ["train"])
        assert not load_config(None, overrides).train.dither

    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["--num", "few"], "--num: must be a whole number, got 'few'"),
            (["--num", "0"], "--num: must be greater than or equal to 1, got .0."),
        ],
    )
    def test_an_option_is_checked_as_a_key_is(self, argv, words):
        with pytest.raises(UsageError, match=words):
            parse(SampleOptions, ["--checkpoint", "a", "--out", "b", *argv], "scoresde sample")

    def test_a_missing_option_is_named(self):
        with pytest.raises(UsageError, match="--out is missing"):
            parse(SampleOptions, ["--checkpoint", "x"], "scoresde sample", ["sample"])


WORDS = ["--config", "--out", "--resume", "--device", "vp", "1", "-1", "nan", "1e999", "null", ""]


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_command_line_is_read_or_refused(data):
    known = [f"--{path}" for path, _ in options(Group((Config,)))]
    word = st.one_of(st.sampled_from(known), st.sampled_from(WORDS), st.text(max_size=6))
    flag = st.text(max_size=6).map("--{}".format)
    argv = data.draw(st.lists(st.one_of(word, flag), max_size=6))
    argv = [token for token in argv if token.split("=")[0] not in ("-h", "--help")]
    with suppress(UsageError, ConfigError):
        load_config(None, parse(TrainOptions, argv, "scoresde", COMMANDS["train"].sections)[1])


class TestExitCodes:
    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["trian"], "unknown command 'trian'; did you mean 'train'?"),
            (["train", "--config", "none.yaml", "--out", "x"], "none.yaml: no such file"),
            (["train", "--out", "x", "--train.steps", "0"], "--train.steps: must be greater"),
            (["train", "--out", "x", "--train.lr", "fast"], "--train.lr: must be a number"),
            (["train", "--out", "x", "--sde", "vpp"], "--sde.kind: unknown kind 'vpp'"),
            (["train", "--out", "x", "--sde.beta_max", "0.01"], "beta_min=0.1, beta_max=0.01"),
            (["train", "--out", "x", "--data", "idx"], "--data.path"),
            (["train", "--out", "x", "--data", "idx", "--data.path", "lost"], "lost: no such"),
            (["train", "--out", "x", "--data", "moons"], "network.kind=unet needs images"),
            (["train", "--out", "x", "--data.path", "y"], "the data.kind that has it: idx"),
            (["train"], "--out is missing"),
            (["sample", "--checkpoint", "none.pt", "--out", "x"], "none.pt: no such file"),
            (["likelihood", "--checkpoint", "none.pt"], "none.pt: no such file"),
            (["compare", "--checkpoint", "none.pt"], "none.pt: no such file"),
            (["verify", "--sampler", "heun"], "did you mean '--samplers'?"),
            (["info", "--jsn"], "did you mean '--json'?"),
            (["sample", "--sampler", "heun"], "did you mean '--sample.sampler'?"),
        ],
    )
    def test_bad_input_is_one_line_and_two(self, tmp_path, monkeypatch, capsys, argv, words):
        monkeypatch.chdir(tmp_path)
        assert words in refusal(capsys, *argv)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (ValueError("bad\ninput"), 2, "bad input"),
            (FileNotFoundError(2, "No such file", "a.npz"), 2, "a.npz: No such file"),
            (RuntimeError("gave up\n  at last"), 1, "gave up at last"),
            (OSError(28, "No space left on device"), 1, "No space left on device"),
            (KeyError("x"), 1, "KeyError: 'x'; --debug prints the traceback"),
            (KeyboardInterrupt(), 130, "interrupted"),
        ],
    )
    def test_every_error_has_its_code(self, monkeypatch, capsys, error, code, words):
        def fail(options: InfoOptions, overrides: object) -> int:
            raise error

        monkeypatch.setattr(info, "run", fail)
        assert words in refusal(capsys, "info", code=code)

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            ("no_ema: too late", "error: --no-ema: too late"),
            ("label and num exclude each other", "error: --class and num exclude"),
            ("sample.steps is odd", "error: --sample.steps is odd"),
            ("x holds samples; give overwrite=True", "error: x holds samples; give --overwrite\n"),
            ("train.shard=True fails", "error: train.shard=True fails"),
            ("nobody: is not an option", "error: nobody: is not"),
        ],
    )
    def test_arguments_of_the_library_are_printed_as_flags(
        self, monkeypatch, capsys, message, words
    ):
        def fail(options: SampleOptions, overrides: object) -> int:
            raise ValueError(message)

        monkeypatch.setattr(sample, "run", fail)
        assert words in refusal(capsys, "sample", "--checkpoint", "a", "--out", "b")

    def test_debug_lets_the_traceback_through(self, monkeypatch):
        def fail(options: InfoOptions, overrides: object) -> int:
            raise RuntimeError("here")

        monkeypatch.setattr(info, "run", fail)
        with pytest.raises(RuntimeError, match="here"):
            main(["info", "--debug"])


class TestInfo:
    def test_json_covers_every_table(self, capsys):
        assert main(["info", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert set(found["processes"]) == set(registry.SDES)
        assert set(found["parameterizations"]) == set(registry.PARAMETERIZATIONS)
        assert set(found["samplers"]) == set(registry.STEPS) | {"ode", "sde"}
        assert set(found["grids"]) == set(registry.GRIDS)
        assert set(found["data"]) == set(registry.DATASETS)
        assert {"frechet", "kid", "two_sample", "copies"} <= set(found["metrics"])
        assert all(line for table in found.values() for line in table.values())
        assert found["samplers"]["heun"].endswith("(order 2, 2 calls per step)")
        assert found["samplers"]["dpmpp_2m_sde"].endswith("(weak order 2, 1 call per step)")

    def test_the_page_has_a_line_for_every_name(self, capsys):
        assert main(["info"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        names = {words[0] for words in lines if len(words) > 1}
        assert set(registry.SDES) | set(registry.SAMPLERS) | set(registry.WEIGHTINGS) <= names


@pytest.mark.filterwarnings("ignore::UserWarning:torchdiffeq")
def test_train_then_sample_then_likelihood(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "samples"
    flags = "--data moons --data.train 200 --data.test 10 --network mlp --network.width 16"
    flags += " --network.depth 1 --train.steps 10 --train.batch 32 --device cpu"
    assert main(["train", "--out", str(run), *flags.split()]) == 0
    assert main(["sample", "--checkpoint", str(run), "--out", str(out), "--num", "5"]) == 0
    assert main(["likelihood", "--checkpoint", str(run), "--json", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed[printed.index("{") :])
    assert report["examples"] == 10
    assert json.loads((out / "sample.json").read_text())["checkpoint"].startswith(str(run))
