"""Modules of diffusers and transformers, built of a config.json, with weights read once."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from scoresde.interop.folder import Folder, FolderError, fitted
from scoresde.training.safe_files import brief, first_few, printable

CLASSES: Mapping[str, str] = {
    "UNet2DModel": "diffusers",
    "UNet2DConditionModel": "diffusers",
    "DiTTransformer2DModel": "diffusers",
    "SD3Transformer2DModel": "diffusers",
    "AutoencoderKL": "diffusers",
    "VQModel": "diffusers",
    "CLIPTextModel": "transformers",
    "CLIPTextModelWithProjection": "transformers",
    "T5EncoderModel": "transformers",
}
"""The library of every class that is built; no other is."""


def library(name: str) -> Any:
    """diffusers or transformers. Raises FolderError where it is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise FolderError(
            f"{name} is missing ({brief(error)}); pip install scoresde[diffusers]"
        ) from error


def module_of(folder: Folder, part: str, dtype: torch.dtype = torch.float32) -> Any:
    """The module of a part with its weights in ``dtype``, in evaluation mode without gradients.

    Of a bare folder the weights are on the device meta. Raises FolderError for a class that is not
    in ``CLASSES``, and for weights that do not fit the configuration.
    """
    found = folder.part(part)
    if found is None:
        raise FolderError(
            f"{folder.path}: a {folder.pipeline} without {part}; use a complete copy"
        )
    name, config = found[1], folder.json(f"{part}/config.json")
    if name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        name = "DiTTransformer2DModel"  # its name before diffusers 0.29
    if CLASSES.get(name) != found[0]:
        raise FolderError(
            f"{folder.path}: {part} is {printable(f'{found[0]}.{found[1]}')}, which is not read; "
            f"these are: {', '.join(CLASSES)}"
        )
    where, files = folder.path / part, folder.files(part)
    cls = getattr(library(found[0]), name)
    try:
        with hollow():
            module = _built(cls, found[0], config)
    except Exception as error:  # constructors raise whatever they stumble over
        raise FolderError(f"{where / 'config.json'}: {name}: {brief(error)}") from error
    if found[0] == "diffusers":
        known = {*signature(cls.__init__).parameters, "_class_name", "_diffusers_version"}
        said = [key for key, value in config.items() if value is not None]
        if stray := [k for k in said if k not in known and not k.startswith("_")]:
            folder.notes.append(
                f"{where / 'config.json'}: {name} of this version has no {first_few(stray)}; "
                "ignored"
            )
    tied = set(getattr(module, "_tied_weights_keys", None) or ())
    if not folder.bare:
        wide = getattr(cls, "_keep_in_fp32_modules", None) or []
        tensors = renamed(folder.weights(part), module)
        for key, value in tensors.items():
            if value.is_floating_point():
                kept = any(word in key.split(".") for word in wide)
                to = torch.promote_types(dtype, torch.float32) if kept else dtype
                tensors[key] = value.to(to)
        buffers = {key for key, _ in module.named_buffers()}
        shapes = {key: value.shape for key, value in module.state_dict().items()}
        fitted(tensors, shapes, buffers | tied, files[0])
        module.load_state_dict(tensors, strict=False, assign=True)
    if tied:
        module.tie_weights()
    for owner in module.modules():
        for key, buffer in owner.named_buffers(recurse=False):
            if buffer.is_floating_point():
                owner._buffers[key] = buffer.to(dtype)
    return module.eval().requires_grad_(False)


def _built(cls: Any, source: str, config: dict[str, Any]) -> Any:
    if source == "diffusers":
        return cls.from_config(config)
    return cls(cls.config_class.from_dict(config))


@contextmanager
def hollow() -> Iterator[None]:
    """Modules that this thread builds have their parameters on the device meta.

    Their buffers are real, since files do not hold all of them.
    """
    here = threading.get_ident()

    def emptied(module: nn.Module, name: str, value: Any) -> Any:
        if value is None or threading.get_ident() != here:
            return None
        return nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)

    handle = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        handle.remove()


OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def renamed(tensors: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The tensors under the names of today.

    Attention had other names before diffusers 0.17, and the keys of text encoders a prefix and a
    buffer of positions before transformers 5.
    """
    own = module.state_dict().keys()
    found = {}
    for name, value in tensors.items():
        new = name
        if new not in own and (old := re.fullmatch(r"(.*)\.(\w+)\.(weight|bias)", new)):
            new = f"{old[1]}.{OLD_ATTENTION.get(old[2], old[2])}.{old[3]}"
            new = new if new in own else name
        if new not in own:
            new = name.removeprefix("text_model.")
        if new in own or not name.endswith("position_ids"):
            found[new if new in own else name] = value
    return found
