"""Codecs in files: what was written comes back, and anything else is refused."""

from __future__ import annotations

import json

import pytest
import torch

import scoresde as ss
from scoresde.data import Scaling
from scoresde.latent import KLAutoencoder
from scoresde.latent.files import codec_digest, read_codec, save_codec, stored
from scoresde.training import CheckpointError, DataDescription, export_weights
from scoresde.training.checkpoint import Checkpoint, write_tensors

DATA = DataDescription("toy", (3, 8, 8), Scaling(256))


def codec(**arguments) -> KLAutoencoder:
    torch.manual_seed(0)
    made = KLAutoencoder(3, 2, **{"widths": (4, 8), "groups": 2, "law": "gaussian", **arguments})
    made.latents_mean.normal_()
    made.latents_std.uniform_(0.5, 2)
    made.data, made.adversarial = DATA, True
    return made


def test_everything_comes_back(tmp_path):
    file, made = tmp_path / "codec.safetensors", codec()
    save_codec(file, made, 7)
    found = ss.load_codec(file)
    assert read_codec(file).step == 7
    assert (found.data, found.adversarial, found.law) == (DATA, True, made.law)
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    x = torch.rand(2, 3, 8, 8)
    for one, other in zip(found.encode(x), made.encode(x), strict=True):
        assert torch.equal(one, other)
    z = torch.randn(2, 2, 2, 2)
    assert torch.equal(found.decode(found.unstandardised(z)), made.decode(made.unstandardised(z)))
    given = codec()
    assert ss.load_codec(file, given) is given
    assert codec_digest(found) == codec_digest(made) == read_codec(file).digest


def test_the_digest_knows_every_weight_buffer_and_word():
    digests = {codec_digest(codec())}
    for change in (
        lambda c: c.latents_std.mul_(1 + 1e-6),
        lambda c: c.encoder.first.bias.data.add_(1e-6),
        lambda c: setattr(c, "adversarial", False),
        lambda c: setattr(c, "data", DataDescription("toy", (3, 8, 8), Scaling(16))),
        lambda c: c.arguments.update(law="logistic"),
    ):
        changed = codec()
        change(changed)
        digests.add(codec_digest(changed))
    assert len(digests) == 6
    renamed = codec()
    renamed.data = DataDescription("another name", (3, 8, 8), Scaling(256))
    assert codec_digest(renamed) in digests


def test_a_codec_that_is_not_finite_is_not_written(tmp_path):
    file, made = tmp_path / "codec.safetensors", codec()
    save_codec(file, made)
    before = file.read_bytes()
    made.latents_std[0] = float("nan")
    with pytest.raises(CheckpointError, match="not written, NaN or infinity in latents_std"):
        save_codec(file, made)
    assert file.read_bytes() == before


@pytest.mark.parametrize("position", [100, 2000, -5])
def test_damage_is_found(tmp_path, position):
    file = tmp_path / "codec.safetensors"
    save_codec(file, codec())
    found = bytearray(file.read_bytes())
    found[position] ^= 1
    file.write_bytes(found)
    with pytest.raises(CheckpointError, match=r"codec\.safetensors: damaged"):
        ss.load_codec(file)


def test_other_files_and_descriptions_are_refused_in_one_line(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        ss.load_codec(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no codec; give .*ss.load"):
        ss.load_codec(tmp_path)
    export_weights(tmp_path / "w.safetensors", Checkpoint({}, DATA, 1, {}, {}, {}))
    with pytest.raises(CheckpointError, match=r"not a scoresde-codec file; ss\.load reads it"):
        ss.load_codec(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="need a Codec, got int"):
        ss.load_codec(tmp_path, 3)
    about, file = stored(codec()).about, tmp_path / "odd.safetensors"
    made = json.loads(about["autoencoder"])
    for changed, words in (
        ({**made, "kind": "none"}, "unknown kind 'none'"),
        ({**made, "widths": [4, -8]}, "widths"),
        ({**made, "patch": 1e9}, "patch"),
        ({**made, "channels": "3"}, "damaged"),
        ({**made, "shell": "rm"}, "unknown key"),
        ({**made, "widths": [8, 8]}, "weights of another network"),
        ([], "damaged"),
    ):
        text = {**about, "autoencoder": json.dumps(changed)}
        write_tensors(file, "scoresde-codec", text, stored(codec()).tensors)
        with pytest.raises(ValueError, match=words) as caught:
            ss.load_codec(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
