"""Any denoiser of a program's own, from any library, as a model of this one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import Parameter, signature
from os import PathLike
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.arguments import nearest as suggestion
from scoresde.conditions import Condition
from scoresde.coordinates import Coordinate, Index
from scoresde.interop.models import SIGNED
from scoresde.interop.network import output_of
from scoresde.interop.schedulers import FILE, PREDICTIONS, Schedule, schedule_of
from scoresde.parameterization import Informed, Parameterization, ScoreModel, eps
from scoresde.sde import SDE, DiscreteVP
from scoresde.training.checkpoint import DataDescription

NAMES: Mapping[str, tuple[str, ...]] = {
    "label": ("class_labels", "y"),
    "context": ("encoder_hidden_states",),
    "mask": ("encoder_attention_mask",),
}
"""What networks of other libraries call what a network of this one is told."""


@final
class Wrapped(nn.Module):
    """A network of another library: (x, noise, **told) -> tensor.

    Args:
        module: the network, or any function of x, the noise level and keywords.
        classes: number of classes, where the label after the last one says nothing.
        whole: give the noise level as an integer.
    """

    wide_noise = True

    def __init__(
        self, module: Callable[..., Any], classes: int | None = None, whole: bool = False
    ) -> None:
        super().__init__()
        self.module = module
        self.classes = classes
        self.whole = whole
        function = module.forward if isinstance(module, nn.Module) else module
        taken = signature(function).parameters.values()
        self._names = {p.name for p in taken}
        self._any = any(p.kind is Parameter.VAR_KEYWORD for p in taken)

    def forward(self, x: Tensor, noise: Tensor, **told: Tensor | None) -> Any:
        if self.classes is not None and told.get("label") is None:
            told["label"] = torch.full((len(x),), self.classes, device=x.device)
        given = {self._name(name): value for name, value in told.items() if value is not None}
        return output_of(self.module(x, noise.long() if self.whole else noise, **given))

    def _name(self, name: str) -> str:
        """What the module calls an input; raises ValueError where it has none."""
        for its in (name, *NAMES.get(name, ())):
            if its in self._names:
                return its
        if self._any:
            return name
        raise ValueError(f"{name}: this network has no such input; leave it out")


def wrap(
    module: Callable[..., Any],
    schedule: Any,
    prediction: str | Parameterization | None = None,
    *,
    noise: Coordinate | None = None,
    scaled: bool | None = None,
    nearest: bool = False,
    variance: bool | None = None,
    classes: int | None = None,
    conditions: Mapping[str, Condition] | None = None,
    shape: Sequence[int] | None = None,
    data: DataDescription | None = None,
    codec: Any = None,
) -> ScoreModel:
    """A model around a network of another library, for every sampler and likelihood of this one.

        model = wrap(unet, DDPMScheduler(...))              # its process, what its output means
        model = wrap(net, betas, "v_prediction")            # net(x, i), a table of variances
        model = wrap(D, EDM(), "sample", noise=ratio, scaled=False)     # D(x, sigma), k-diffusion

    It is called as module(x, noise, **told) and returns a tensor, a tuple that begins with one, or
    an object with ``.sample``. It is used as it is, not copied; samplers evaluate it in eval mode.

    Args:
        module: the network, or any function like it.
        schedule: variances beta_i (a sequence, array or tensor, from the least noise on), a
            process of this library, a scheduler of diffusers, its config, or the path of its
            scheduler_config.json or of the folder with it.
        prediction: what the output is: epsilon, v_prediction, sample (x0), flow_prediction or
            score, or a parameterisation; by default what the scheduler says, or else epsilon.
        noise: what the network is told of the noise level (``scoresde.coordinates``); by default
            the index of a table, else what the scheduler or the parameterisation says.
        scaled: give the network x scaled to unit size, or x itself; by default as the scheduler or
            the parameterisation does. For a table they are the same.
        nearest: tell the network the nearest level of a table, as an integer.
        variance: whether a learned variance follows the output, in as many channels again.
        classes: number of classes, where the label after the last one says nothing; a network
            without such a label takes ``label`` all the same.
        conditions: conditions by name, which turn what is said into what the network is told.
        shape: shape of one sample, for pixels in [-1, 1].
        data: description of the data, in place of shape.
        codec: codec of the latents that the network sees.

    Raises ValueError for a schedule that is none, and for a prediction, a variance or a coordinate
    beside a scheduler that says another.
    """
    if not callable(module):
        raise ValueError(f"module: need a network, got {type(module).__name__}")
    found, named = schedule_from(schedule, nearest)
    base = found.parameterization
    told = base if isinstance(base, Informed) else None
    if prediction is not None:
        said = _prediction(prediction)
        theirs = told.base if told else base
        if named and said != theirs:
            raise ValueError(
                f"prediction: {prediction!r}, but the scheduler says {_name(theirs)}; leave it out"
            )
        base = replace(told, base=said) if told else said
    if noise is not None or scaled is not None:
        c = base if isinstance(base, Informed) else Informed(base, _own(base))
        base = replace(c, noise=noise or c.noise, scaled=c.scaled if scaled is None else scaled)
    if found.variance and variance is False:
        raise ValueError(
            "variance: False, but the scheduler says that it is learned; leave it out"
        )
    net = Wrapped(module, classes, nearest)
    learned = found.variance if variance is None else variance
    model = ScoreModel(net, found.sde, base, variance=learned, conditions=conditions)
    model.normalised = not found.distilled
    if data is None and shape is not None:
        data = DataDescription("wrapped", tuple(shape), SIGNED)
    model.data, model.codec = data, codec
    return model


def schedule_from(schedule: Any, nearest: bool = False) -> tuple[Schedule, bool]:
    """What is meant by ``schedule`` of ``wrap``, and whether it says what the output is."""
    if isinstance(schedule, Schedule):
        return schedule, True
    if isinstance(schedule, ScoreModel):
        model = schedule
        return Schedule(model.sde, model.parameterization, model.variance), True
    if isinstance(schedule, (str, PathLike)):
        path = Path(schedule)
        inside = [file for file in (path / FILE, path / "scheduler" / FILE) if file.is_file()]
        path = inside[0] if inside else path
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: no {FILE} that can be read ({error})") from None
        if not isinstance(config, dict):
            raise ValueError(
                f"{path}: need the fields of a scheduler, got {type(config).__name__}"
            )
        return _configured(config, nearest, str(path))
    if isinstance(getattr(schedule, "config", None), Mapping):
        name = type(schedule).__name__
        return _configured({**schedule.config, "_class_name": name}, nearest, name)
    if isinstance(schedule, Mapping):
        return _configured(schedule, nearest, FILE)
    if not isinstance(schedule, SDE):
        try:  # numpy also takes a table that was reversed by [::-1]
            known = schedule if isinstance(schedule, Tensor) else np.array(schedule, np.float64)
            table = torch.as_tensor(known, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            table = torch.zeros(0, 0)
        if table.ndim != 1:
            raise ValueError(
                "schedule: need variances, a process, a scheduler of diffusers, its config or the "
                f"path of its {FILE}, got {type(schedule).__name__}"
            )
        schedule = DiscreteVP(tuple(table.tolist()))
    if isinstance(schedule, DiscreteVP):
        index = Index(len(schedule.betas), nearest, "lam")
        return Schedule(schedule, Informed(eps, index)), False
    if nearest:
        raise ValueError("nearest: this process has no levels; leave it out")
    return Schedule(schedule, eps), False


def _configured(config: Mapping[str, Any], nearest: bool, where: str) -> tuple[Schedule, bool]:
    """The schedule of a config; of a table it may leave open what the output is."""
    found = schedule_of(config, nearest, where)
    table = isinstance(getattr(found.parameterization, "noise", None), Index)
    return found, not table or config.get("prediction_type") is not None


def _prediction(said: str | Parameterization) -> Parameterization:
    if not isinstance(said, str):
        return said
    if said not in PREDICTIONS:
        raise ValueError(f"prediction: unknown {said!r}; {suggestion(said, PREDICTIONS)}")
    return PREDICTIONS[said]


def _name(parameterization: Parameterization) -> str:
    names = [name for name, known in PREDICTIONS.items() if known == parameterization]
    return names[0] if names else type(parameterization).__name__


def _own(base: Parameterization) -> Coordinate:
    """What a parameterisation tells the network of the noise."""
    return lambda sde, t: base(sde, t).noise
