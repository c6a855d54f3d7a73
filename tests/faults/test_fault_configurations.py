"""Faults 1 to 6: configurations and flags. Exit 2, one line, nothing written and nothing run."""

from __future__ import annotations

import pytest

from scoresde.cli.main import main
from tests.cli.test_train import command


@pytest.fixture
def refusal(refused, tmp_path):
    """The line that ``scoresde train`` refuses a file with; it names the file."""

    def of(text: str | bytes) -> str:
        file = tmp_path / "run.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        line = refused("train", "--config", file, "--out", tmp_path / "run")
        assert str(file) in line
        assert not (tmp_path / "run").exists()
        return line

    return of


def test_fault_01_an_unknown_key(refusal):
    assert "train.lrr: unknown key; did you mean 'lr'?" in refusal("train: {lrr: 1}")


def test_fault_02_wrong_types_and_kinds_are_all_listed_with_their_values(refusal):
    line = refusal("train: {lr: -1, batch: many, ema: 2}\nsde: {kind: vpp}\nconditional: 7")
    for part in ("train.lr: must be greater than 0, got -1", "train.batch", "'many'", "train.ema"):
        assert part in line
    assert "sde.kind: unknown kind 'vpp'; did you mean 'vp'?" in line
    assert "conditional" in line
    assert "got 7" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\ntrain: {lr: 1\nsde: vp", "line 3"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "not a text file"),
        ("- seed: 1\n", "found a list"),
        ("seed: 1\nseed: 2", "line 2: duplicate key 'seed'"),
        ("train:\n  lr: 1\n  lr: 2", "line 3: duplicate key 'lr'"),
    ],
)
def test_fault_03_files_that_are_no_configuration(refusal, text, words):
    assert words in refusal(text)


def test_fault_03_a_missing_file_and_an_empty_one(refused, tmp_path, capsys):
    missing = tmp_path / "none.yaml"
    assert f"{missing}: no such file" in refused("train", "--config", missing, "--out", "x")
    (tmp_path / "empty.yaml").write_text("")
    printed = []
    for extra in ([], ["--config", str(tmp_path / "empty.yaml")]):
        assert main([*command(tmp_path / "run", "--dry-run"), *extra]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


@pytest.mark.parametrize(
    "tag", ["object/apply:pathlib.Path.touch ['{}']", "object/new:os.system ['touch {}']"]
)
def test_fault_04_a_tag_that_would_run_code(refusal, tmp_path, tag):
    marker = tmp_path / "marker"
    assert "line 1: could not determine a constructor" in refusal(
        f"seed: !!python/{tag.format(marker)}"
    )
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sde: {beta_min: 20, beta_max: 10}", ("beta_min=20", "beta_max=10")),
        ("sde: {kind: ve, sigma_min: 60}", ("sigma_min=60", "sigma_max=50")),
        ("sde: {t_eps: 2}", ("t_eps=2", "t_max=1")),
        ("train: {batch: 16, accumulate: 3}", ("batch=16", "accumulate=3")),
        ("data: {kind: folder, channels: 2}", ("data.channels", "got 2")),
    ],
)
def test_fault_05_an_inconsistent_pair(refusal, text, parts):
    # Before data are read: there are none.
    line = refusal(f"{text}\n" if text.startswith("data") else f"{text}\ndata: {{kind: idx}}")
    assert all(part in line for part in parts)


def test_fault_05_a_network_that_does_not_take_the_data(refused, tmp_path):
    line = refused("train", "--out", tmp_path / "run", "--data", "moons")
    assert "network.kind=unet needs images (C, H, W), but data moons is (2,)" in line
    assert not (tmp_path / "run").exists()


def test_fault_06_a_misspelt_flag(refused, tmp_path):
    for flag, meant in (("--train.lrr", "--train.lr"), ("--resum", "--resume")):
        line = refused("train", "--out", tmp_path / "run", flag, "1e-3")
        assert f"{flag}: unknown option; did you mean '{meant}'?" in line
    assert not (tmp_path / "run").exists()


# Beside the table ------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
MERGES = LAUGHS.replace("[x, x]", "{lr: 1}").replace("[*", "{<<: [*").replace("]\n", "]}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "aliases make more than"),
        (MERGES, "aliases make more than"),
        ("train: &t {lr: *t}", "aliases make more than"),
        ("[" * 3000, "nested too deeply"),
        ("? [a, b]\n: 1", "line 1: a key that is no word"),
        ("seed: 2001-99-99", "line 1: '2001-99-99' is no"),
        ("seed: !!bool perhaps", "line 1: 'perhaps' is no"),
        ("seed: " + "9" * 5000, "line 1: '999"),
        ("x" * 2_000_000, "more than 1,000,000 bytes"),
        ('"a\\nb": 1', "'a\\nb': unknown key"),
    ],
)
def test_files_that_grow_or_stumble_are_refused_in_a_line(refusal, text, words):
    line = refusal(text)
    assert words in line
    assert len(line) < 1000


def test_aliases_are_welcome(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("seed: &n 3\ndata: {kind: moons, seed: *n}\nnetwork: mlp\n")
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("seed: 3") == 2


def test_as_many_problems_are_listed_as_one_reads(refusal):
    line = refusal("\n".join(f"x{i}: 1" for i in range(200)))
    assert "and 150 more" in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"seed: {2**70}", f"seed: must be less than or equal to {2**53}, got {2**70}"),
        (
            "sde: {kind: discrete_vp, levels: 10000000000}",
            "sde.levels: must be less than or equal",
        ),
    ],
)
def test_fault_02_numbers_that_no_memory_holds(refusal, text, words):
    assert words in refusal(text)
