"""What is said of samples: prompts and other conditions, what is said against, and guidance."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.guidance import free
from scoresde.guidance.free import Scale
from scoresde.parameterization import ScoreModel


@dataclass(frozen=True, eq=False)
class Values:
    """Users' values of a condition: one for all samples, or several, each for a block of them."""

    value: Any
    count: int

    def of(self, rows: Tensor, n: int) -> Any:
        """The value for all, or those of some of n samples."""
        if self.count == 1:
            return self.value
        places = rows * self.count // n
        if hasattr(self.value, "ndim"):
            return self.value[places]
        return [self.value[k] for k in places.tolist()]


@dataclass(frozen=True, eq=False)
class Said:
    """What is said of n samples of a model, and how much they are guided by it.

    Args:
        model: the model.
        cond: what is said, by name.
        negative: what is said against, by name; None says nothing.
        scale: scale of ``guidance.free``.
        interval: lowest and highest sigma / alpha of guidance.
        n: number of samples.
    """

    model: ScoreModel
    cond: Mapping[str, Values]
    negative: Mapping[str, Values] | None = None
    scale: Scale = 1.0
    interval: tuple[float, float] | None = None
    n: int = 0

    @property
    def count(self) -> int:
        """The most values of a condition; 1 if nothing is said."""
        both = [*self.cond.values(), *(self.negative or {}).values()]
        return max((values.count for values in both), default=1)

    def over(self, n: int) -> Said:
        """The same of n samples. Raises ValueError for fewer samples than values."""
        if self.count > n:
            what = "labels" if [*self.cond] == ["label"] else "values"
            raise ValueError(f"num: {n} samples for {self.count} {what}; ask for more samples")
        return replace(self, n=n)

    def part(self, rows: Sequence[int]) -> Said:
        """What is said of some of the samples, as of samples of their own."""
        parts = [
            said and {k: Values(said[k], 1 if v.count == 1 else len(rows)) for k, v in own.items()}
            for said, own in zip(self.of(rows), (self.cond, self.negative or {}), strict=True)
        ]
        return replace(self, cond=parts[0] or {}, negative=parts[1], n=len(rows))

    def denoiser(self, rows: Sequence[int]) -> Denoiser:
        """The denoiser of some samples."""
        cond, negative = self.of(rows)
        return free(self.model, cond, negative, self.scale, interval=self.interval)

    def of(self, rows: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What is said of some samples, and what is said against."""
        index = torch.tensor(rows)
        cond, negative = (
            None if said is None else {k: v.of(index, self.n) for k, v in said.items()}
            for said in (self.cond, self.negative)
        )
        return cond or {}, negative

    def labels(self) -> Tensor | None:
        """The place (n,) of the class of every sample; None where no class is said."""
        if (values := self.cond.get("label")) is None:
            return None
        read = self.model.read(label=values.of(torch.arange(self.n), self.n))["label"]
        return read.cpu().expand(self.n) if read is not None and read.ndim < 2 else None

    def each(self, row: int) -> dict[str, Any]:
        """What is said of one sample, by name."""
        index = torch.tensor([row])
        found = {name: values.of(index, self.n) for name, values in self.cond.items()}
        return {k: v if self.cond[k].count == 1 else v[0] for k, v in found.items()}


def said_of(
    model: ScoreModel,
    cond: Mapping[str, Any],
    negative: Mapping[str, Any] | str | None = None,
    scale: Scale = 1.0,
    interval: tuple[float, float] | None = None,
) -> Said:
    """Read what is said, and try it. Raises ValueError, naming the argument of ``draw``."""
    if isinstance(negative, str):
        negative = {sentence_condition(model, "negative"): negative}
    told = _read(model, cond)
    against = None if negative is None else _read(model, negative, "negative: ")
    if scale == 1:
        for name, given in {"negative": against, "guidance_interval": interval}.items():
            if given is not None:
                raise ValueError(f"{name}: without effect at guidance 1; give guidance, such as 3")
    elif not told and not against:
        remedy = "say something, or leave it out"
        if not model.conditions and model.classes is None:
            remedy = "this model was trained without conditions; leave it out"
        raise ValueError(f"guidance: {remedy}")
    require_said(model, told)
    found = Said(model, told, against, scale, interval)
    spoken = [*told.items(), *((f"negative {k}", v) for k, v in (against or {}).items())]
    several = {name: values.count for name, values in spoken if values.count > 1}
    if len(set(several.values())) > 1:
        listed = ", ".join(f"{count} of {name}" for name, count in several.items())
        raise ValueError(f"conditions have different numbers of values ({listed}); give as many")
    try:
        Said(model, told, against, scale, interval, found.count).denoiser([0])
    except ValueError as error:
        text = re.sub("^interval:", "guidance_interval:", str(error))
        text = re.sub("^scale:", "guidance:", text)
        raise ValueError(text) from None
    return found


def require_said(model: ScoreModel, said: Container[str] = (), remedy: str = "") -> None:
    """Raise ValueError for a condition, left out, that the model never learned to do without."""
    for name, condition in model.conditions.items():
        if condition.dropout == 0 and name not in said:
            raise ValueError(
                f"{name} is missing: this model never learned to do without it "
                f"(conditions.{name}.dropout=0){remedy}"
            )


def sentence_condition(model: ScoreModel, argument: str) -> str:
    """The name of the one condition that reads sentences. Raises ValueError if it is not one."""
    names = [str(name) for name, condition in model.conditions.items() if condition.sentences]
    if len(names) == 1:
        return names[0]
    if not model.conditions:
        raise ValueError(f"{argument}: this model was trained without conditions; leave it out")
    if not names:
        listed = ", ".join(model.conditions)
        raise ValueError(
            f"{argument}: no condition of this model reads sentences; it has {listed}"
        )
    raise ValueError(
        f"{argument}: {' and '.join(names)} both read sentences; say which, by its name"
    )


def _read(model: ScoreModel, said: Mapping[str, Any], where: str = "") -> dict[str, Values]:
    """The values by name, counted; those that are None are left out."""
    found = {}
    for name, value in said.items():
        if value is None:
            continue
        if (
            not isinstance(value, str)
            and not hasattr(value, "ndim")
            and hasattr(value, "__iter__")
        ):
            value = list(value)
        try:
            read = model.read(**{name: value})[name]
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}{error}") from None
        count = len(read) if read is not None and read.ndim else 1
        if count == 0:
            raise ValueError(f"{where}{name}: empty; give at least one value")
        if count == 1 and isinstance(value, list) and isinstance(value[0], str):
            value = value[0]
        found[name] = Values(value, count)
    return found
