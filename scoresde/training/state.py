"""What changes while training: weights, their averages, the optimiser, and updates made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoresde.parameterization import ScoreModel
from scoresde.training import ema
from scoresde.training.precision import LossScale
from scoresde.training.uncertainty import LearnedWeight


@dataclass
class TrainState:
    """What changes while training: weights, their averages, the optimiser, and updates made.

    ``ema`` is the average that is used; ``decays`` are further exponential ones by their decay,
    ``averages`` power-function ones by their width, in ascending order; ``scale`` is that of an
    fp16 loss; ``learned`` is the weight of every level, if one is learned.
    """

    model: ScoreModel
    ema: ScoreModel
    optimizer: torch.optim.Optimizer
    step: int = 0
    decays: dict[float, ScoreModel] = field(default_factory=dict)
    averages: dict[float, ScoreModel] = field(default_factory=dict)
    scale: LossScale = field(default_factory=LossScale)
    learned: LearnedWeight | None = None

    @property
    def models(self) -> list[ScoreModel]:
        """The model and every average of it."""
        return [self.model, self.ema, *self.decays.values(), *self.averages.values()]

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """That of the model, and that of the learned weight."""
        return [self.optimizer] + ([] if self.learned is None else [self.learned.optimizer])

    def gradients(self) -> list[Tensor]:
        """Those of the last backward pass, to be changed in place."""
        found = [p.grad for p in self.model.parameters() if p.grad is not None]
        return found + ([] if self.learned is None else self.learned.gradients())


def start(
    model: ScoreModel,
    optimizer: torch.optim.Optimizer,
    widths: Sequence[float] = (),
    decays: Sequence[float] = (),
) -> TrainState:
    """The state before the first update; the averages start at the weights.

    ``widths`` are those of power-function averages, ``decays`` those of exponential ones, to be
    kept beside the one of the plan.
    """
    return TrainState(
        model,
        ema.averaged(model),
        optimizer,
        decays={decay: ema.averaged(model) for decay in sorted(decays)},
        averages={sigma_rel: ema.averaged(model) for sigma_rel in sorted(widths)},
    )
