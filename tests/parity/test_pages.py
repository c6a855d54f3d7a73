"""The blocks of the pages on other libraries, run against them.

pip install -e ".[dev,parity]" -c constraints.txt && pytest -m parity
"""

import pickle
import sys
import types
import warnings

import pytest
import torch
from safetensors import safe_open

import scoresde as ss
from scoresde.progress import silent
from tests.parity.folders import folder
from tests.test_docs import ROOT
from tests.test_readme import blocks

pytestmark = pytest.mark.parity


def test_the_block_of_the_page_on_folders_draws(diffusers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(diffusers, tmp_path, "ddpm").rename("ddpm-cifar10-32")
    (block,) = blocks(ROOT / "docs" / "diffusers.md", "python")
    names = {"ss": ss}
    exec(block, names)
    assert names["drawn"].x.shape == (16, 3, 8, 8)


def test_the_recipe_for_snapshots_of_edm_and_the_export_run(diffusers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe, export = blocks(ROOT / "docs" / "interop.md", "python")

    class SongUNet(torch.nn.Linear):
        @property
        def init_kwargs(self):
            return {"img_resolution": 8}

    # Pickles name their classes.
    module = types.ModuleType("edm_networks")
    module.SongUNet, SongUNet.__module__ = SongUNet, "edm_networks"
    SongUNet.__qualname__ = "SongUNet"
    monkeypatch.setitem(sys.modules, "edm_networks", module)
    with open("network-snapshot.pkl", "wb") as file:
        pickle.dump({"ema": SongUNet(2, 2)}, file)
    exec(recipe, {})
    with safe_open("edm.safetensors", framework="pt") as file:
        assert '"class": "SongUNet"' in file.metadata()["init"]
        assert sorted(file.keys()) == ["bias", "weight"]

    config = {
        "data": "digits",
        "sde": "discrete_vp",
        "parameterization": {"kind": "v", "noise": "index"},
        "network": {"kind": "adm", "width": 128, "multipliers": [1, 1], "blocks": 1},
    }
    config["network"] |= {"attention": [1]}
    ss.train(config, out="runs/mine", steps=1, progress=silent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"ss": ss, "DiffusionPipeline": diffusers.DiffusionPipeline}
        exec(export, names)
    assert type(names["pipe"]).__name__ == "DDPMPipeline"
