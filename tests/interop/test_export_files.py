"""The folder of an export appears whole or not at all, and replaces only what it wrote."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from safetensors import SafetensorError

import scoresde as ss
from scoresde.cli.main import main
from scoresde.data import Scaling
from scoresde.interop.about import ABOUT, KIND
from scoresde.interop.folder import INDEX
from scoresde.interop.native import configuration, diffusers, inlined
from scoresde.nn import MLP, UNet
from scoresde.parameterization import eps
from scoresde.runs.export import require_free, save
from scoresde.training.checkpoint import DataDescription
from tests.cli.conftest import IMAGES, save_model

PICTURES = DataDescription("toy", (1, 8, 8), Scaling(256))


class Parts:
    """What is written, in place of modules: ``fails`` after its first files."""

    def __init__(self, text, fails=False):
        self.text, self.fails = text, fails

    def save(self, folder):
        (folder / ABOUT).write_text(json.dumps({"kind": KIND, "text": self.text}))
        (folder / "unet").mkdir()
        (folder / "unet" / "weights").write_text(self.text)
        if self.fails:
            raise KeyboardInterrupt
        (folder / INDEX).write_text("{}")


def contents(folder):
    return {p.name: p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_a_half_written_export_is_never_left(tmp_path):
    place = tmp_path / "deep" / "out"
    with pytest.raises(KeyboardInterrupt):
        save(Parts("a", fails=True).save, place)
    assert not list(place.parent.iterdir())
    save(Parts("a").save, place)
    before = contents(place)
    with pytest.raises(KeyboardInterrupt):
        save(Parts("b", fails=True).save, place)
    assert contents(place) == before
    assert list(place.parent.iterdir()) == [place]
    save(Parts("b").save, place)
    assert contents(place)["weights"] == "b"
    assert list(place.parent.iterdir()) == [place]
    assert (place / "unet" / "weights").stat().st_mode == (place / ABOUT).stat().st_mode


def test_a_full_disk_is_named_with_the_place(tmp_path):
    class Full:
        def save(self, folder):
            raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match=r"free some space.*out") as error:
        save(Full().save, tmp_path / "out")
    assert error.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path, monkeypatch):
    place, link = tmp_path / "out", tmp_path / "link"
    save(Parts("a").save, place)
    link.symlink_to(place)
    save(Parts("b").save, link)
    assert link.is_symlink()
    assert contents(place)["weights"] == "b"
    assert sorted(tmp_path.iterdir()) == [link, place]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    require_free(Path(), overwrite=False)
    save(Parts("c").save, Path())
    assert contents(tmp_path / "here")["weights"] == "c"


def test_a_distilled_model_is_not_written_as_one_with_a_likelihood(tmp_path):
    model = ss.ScoreModel(UNet(1), ss.DiscreteVP(), eps)
    model.data, model.normalised = PICTURES, False
    with pytest.raises(ValueError, match="distilled"):
        ss.export(model, tmp_path / "out")


def test_only_an_export_is_replaced_and_only_if_asked(tmp_path):
    place = tmp_path / "out"
    require_free(place, overwrite=False)
    place.mkdir()
    require_free(place, overwrite=False)
    save(Parts("a").save, place)
    with pytest.raises(ValueError, match="overwrite=True"):
        require_free(place, overwrite=False)
    require_free(place, overwrite=True)
    (place / ABOUT).write_text("{}")
    with pytest.raises(ValueError, match="no export of scoresde"):
        require_free(place, overwrite=True)
    with pytest.raises(ValueError, match="no export of scoresde"):
        require_free(place / ABOUT, overwrite=True)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (lambda: ss.ScoreModel(MLP(2), ss.VP(), eps), None, "pictures"),
        (lambda: ss.ScoreModel(UNet(1), ss.VP(), eps), PICTURES, "UNet has no twin"),
        (
            lambda: ss.ScoreModel(UNet(1), ss.VP(), eps),
            DataDescription("toy", (1, 8, 8), Scaling(256, 0, 1)),
            r"in \[0, 1\]",
        ),
    ],
)
def test_a_model_without_a_twin_is_named_and_nothing_is_written(tmp_path, model, data, words):
    found = model()
    found.data = data
    with pytest.raises(ValueError, match=words):
        ss.export(found, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_command_says_which_network_to_train(tmp_path, capsys):
    run = save_model(tmp_path / "run.pt", IMAGES | {"data.kind": "digits"})
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", "diffusers", str(out)]) == 2
    error = capsys.readouterr().err
    assert "train network.kind adm, dit or diffusers" in error
    assert error.count("\n") == 1
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("")
    assert main(["export", str(run), "--to", "diffusers", str(out), "--overwrite"]) == 2
    assert "no export of scoresde" in capsys.readouterr().err
    assert main(["export", str(run), str(out), "--to", "flax"]) == 2


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("UNet3D", "neither a class"),
        ('{"_class_name": "os.system"}', "not trained"),
        ('{"_class_name": ["UNet2DModel"]}', "not trained"),
        ("{", "no config.json"),
        ("[]", "neither a class"),
        ('{"in_channels": 3}', "no config.json"),
    ],
)
def test_only_listed_classes_are_built(model, words):
    with pytest.raises(ValueError, match=words):
        configuration(model)
    with pytest.raises(ValueError, match=words):
        diffusers(3, model=model)


def test_a_class_has_only_its_own_sizes_and_needs_the_index():
    with pytest.raises(ValueError, match="patch: UNet2DModel"):
        diffusers(3, patch=2)
    with pytest.raises(ValueError, match="multipliers: DiTTransformer2DModel"):
        diffusers(3, model="DiTTransformer2DModel", multipliers=(1, 2))
    with pytest.raises(ValueError, match="noise=index"):
        diffusers(3, indexed=False)
    with pytest.raises(ValueError, match="square"):
        diffusers(3, model="DiTTransformer2DModel", image_size=(8, 4))
    assert inlined("UNet2DModel") == "UNet2DModel"
