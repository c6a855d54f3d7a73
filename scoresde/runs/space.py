"""The space that a model runs on: the numbers of its data, or the latents of its codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from scoresde.data import Scaling
from scoresde.latent import Codec, tiles
from scoresde.latent.files import StoredCodec
from scoresde.latent.latents import latent_scaling
from scoresde.parameterization import ScoreModel
from scoresde.posterior import Nonlinear, Operator
from scoresde.runs.instrument import require_finite
from scoresde.training.checkpoint import DataDescription, Embedded
from scoresde.training.held_out import evaluating


def state_shape(model: ScoreModel, shape: Sequence[int] | None = None) -> tuple[int, ...]:
    """The shape of the state of one example, by default one of the model's data.

    Raises ValueError for pictures that the codec cannot encode.
    """
    shape = tuple(model.data.shape if shape is None else shape)
    return shape if model.codec is None else tuple(model.codec.latent_shape(shape))


def described_state(data: DataDescription, codec: Codec | None) -> DataDescription:
    """The description of what a model of these data, with a codec or without, runs on."""
    if codec is None:
        return data
    return replace(data, shape=codec.latent_shape(data.shape), scaling=latent_scaling(codec))


def embedded(codec: StoredCodec) -> Embedded:
    """A codec as checkpoints hold it."""
    return Embedded(dict(codec.tensors), codec.about)


def to_state(
    model: ScoreModel,
    data: Tensor,
    noise: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Examples (B, ...) in units of the data as states: in model units, or standardised latents.

    Pixel levels become the middles of their bins, and pictures the means of their latents, or with
    ``noise`` latents drawn with it.
    """
    scaling: Scaling | None = getattr(model.data, "scaling", None)
    if model.codec is None:
        return data.to(dtype) if scaling is None else scaling.encode(data, dtype=dtype)
    return encoded(model, data.float() if scaling is None else scaling.encode(data), noise).to(
        dtype
    )


def encoded(model: ScoreModel, x: Tensor, noise: Tensor | None = None) -> Tensor:
    """The standardised latents of pictures in model units: means, or drawn with ``noise``."""
    codec = _near(model)
    with evaluating(codec), torch.no_grad():
        mean, std = tiles.encode(codec, x.to(model.device, codec.latents_mean.dtype))
        z = mean if noise is None else mean + std * noise.to(mean)
    return codec.standardised(z).to(x.device, x.dtype)


def to_data(model: ScoreModel, state: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """States (B, ...) in units of the data: the inverse of ``to_state``, as far as there is one.

    Latents are decoded, in tiles if they are large. ``shape`` is that of one picture, by default
    one of the model's data.
    """
    with torch.no_grad():
        x = pictures(model, state, shape)
    if model.codec is not None:  # a picture that is no number would be black
        dtype = next((p.dtype for p in model.codec.parameters()), None)
        require_finite(x, "codec", "after decoding", dtype)
    return x if model.data is None else model.data.scaling.decode(x)


def pictures(model: ScoreModel, state: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """States (B, ...) as examples in model units of the data, with their gradient."""
    if model.codec is None:
        return state
    shape = getattr(model.data, "shape", None) if shape is None else shape
    if not len(state):
        return state.new_empty(0, *(shape or state.shape[1:]))
    codec = _near(model)
    dtype = codec.latents_mean.dtype
    with evaluating(codec):
        x = tiles.decode(codec, codec.unstandardised(state.to(model.device, dtype)))
    x = x if shape is None else x[..., : shape[-2], : shape[-1]]  # of a codec that pads
    return x.to(state.device, state.dtype)


def of_states(model: ScoreModel, operator: Operator) -> Operator:
    """An operator of pictures in model units as one of states: for latents after the decoder."""
    if model.codec is None:
        return operator
    _near(model)
    return operator @ Nonlinear(partial(pictures, model), state_shape(model))


def _near(model: ScoreModel) -> Codec:
    """The codec of a model of latents, where the model is."""
    codec: Codec = model.codec
    # A module must not be moved within torch.func.vjp, which would leave its tensors in the trace.
    return codec if codec.latents_mean.device == model.device else codec.to(model.device)
