"""The state of a training: weights, their averages and the optimiser."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from scoresde.parameterization import ScoreModel
from scoresde.training import averages, fsdp
from scoresde.training.learned_weight import LearnedWeight
from scoresde.training.loss_aware import LossHistory
from scoresde.training.plan import Plan
from scoresde.training.precision import LossScale, lay_out
from scoresde.training.times import LossAware
from scoresde.training.vlb import require_trained

Model = TypeVar("Model", bound=nn.Module)


@dataclass
class State(Generic[Model]):
    """What every training changes.

    Args:
        model: what is trained.
        ema: its average.
        optimizer: optimiser of the model.
        step: number of updates made.
        scale: loss scale of fp16.
    """

    model: Model
    ema: Model
    optimizer: torch.optim.Optimizer
    step: int = 0
    scale: LossScale = field(default_factory=LossScale)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """All optimisers."""
        return [self.optimizer]

    def others(self) -> list[Tensor]:
        """The gradients of the last backward pass apart from those of the model."""
        return []

    def gradients(self) -> list[Tensor]:
        """The gradients of the last backward pass, to be changed in place."""
        found = [p.grad for p in self.model.parameters() if p.grad is not None]
        return found + self.others()


@dataclass
class TrainState(State[ScoreModel]):
    """The state of the training of a score model.

    Args:
        decays: further exponential averages by decay, in ascending order.
        averages: power-function averages by width, in ascending order.
        learned: learned weight of the loss.
        history: latest losses of the levels, for loss-aware times.
    """

    decays: dict[float, ScoreModel] = field(default_factory=dict)
    averages: dict[float, ScoreModel] = field(default_factory=dict)
    learned: LearnedWeight | None = None
    history: LossHistory | None = None

    @staticmethod
    def of(model: ScoreModel, plan: Plan, device: torch.device | None = None) -> TrainState:
        """The state before the first update; the averages equal the weights.

        With ``plan.shard`` the model moves to ``device``; otherwise it stays on its own. Raises
        ValueError where nothing trains the variance of the model, or it has none to train.
        """
        require_trained(model.variance, plan.objective)
        if plan.channels_last:
            lay_out(model)

        def average() -> ScoreModel:
            return averages.averaged(model)

        def optimizer() -> torch.optim.Optimizer:
            parameters, decay = model.parameters(), plan.weight_decay
            return plan.optimizer(parameters, lr=plan.lr, weight_decay=decay, fused=True)

        state = TrainState(
            model,
            average(),
            optimizer(),
            decays={decay: average() for decay in sorted(plan.ema[1:])},
            averages={sigma_rel: average() for sigma_rel in sorted(plan.posthoc)},
        )
        if plan.shard:
            for each in state.models:
                fsdp.split(each.net, plan.rank, device or model.device)
                each.conditions.to(device or model.device)
            state.optimizer = optimizer()
        if plan.learned_weight:
            state.learned = LearnedWeight(device or model.device)
        if isinstance(plan.times, LossAware):
            state.history = LossHistory(plan.times)
        if plan.compile:
            model.net.compile()  # the averages, copied before, are not compiled
        return state

    @property
    def models(self) -> list[ScoreModel]:
        """The model and all its averages."""
        return [self.model, self.ema, *self.decays.values(), *self.averages.values()]

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimisers of the model and of the learned weight."""
        return [self.optimizer] + ([] if self.learned is None else [self.learned.optimizer])

    def others(self) -> list[Tensor]:
        """The gradients of the learned weight."""
        return [] if self.learned is None else self.learned.gradients()
