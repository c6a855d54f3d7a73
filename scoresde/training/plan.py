"""What does not change while training."""

from __future__ import annotations

from dataclasses import dataclass, field

from scoresde.training.augment import Augmentation
from scoresde.training.distributed import Share
from scoresde.training.losses import Weight
from scoresde.training.precision import Precision
from scoresde.training.schedules import LearningRate
from scoresde.training.times import Draw, Times


@dataclass(frozen=True)
class Plan:
    """What does not change while training.

    ``steps`` counts updates from the start of the run, ``batch`` examples per update; ``times``
    of ``draw`` give t, ``weight`` weighs x0_hat (None: the network output). ``classes`` is the
    number of classes of a conditional model, whose labels become ``classes``, that is no label,
    each with probability ``label_dropout``. ``clip`` bounds the gradient norm (None: no bound).
    ``dither`` is that of ``dequantised``; ``augment`` changes the images. The gradient of a batch
    is summed over ``accumulate`` parts of it, in ``precision``, and over the processes that
    ``share`` it. The next ``prefetch`` batches are drawn meanwhile. Raises ValueError for numbers
    out of range.
    """

    steps: int
    batch: int
    seed: int
    times: Times
    draw: Draw
    weight: Weight | None
    learning_rate: LearningRate
    ema_decay: float = 0.999
    clip: float | None = 1.0
    classes: int | None = None
    label_dropout: float = 0.0
    dither: bool = True
    augment: Augmentation | None = None
    accumulate: int = 1
    precision: Precision = "float32"
    prefetch: int = 0
    share: Share = field(default_factory=Share)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch) < 1 or self.seed < 0:
            found = f"steps={self.steps}, batch={self.batch}, seed={self.seed}"
            raise ValueError(f"need steps >= 1, batch >= 1 and seed >= 0, got {found}")
        if not (0 <= self.ema_decay <= 1 and 0 <= self.label_dropout <= 1):
            found = f"ema_decay={self.ema_decay:g}, label_dropout={self.label_dropout:g}"
            raise ValueError(f"need ema_decay and label_dropout in [0, 1], got {found}")
        if self.accumulate < 1 or self.batch % (self.accumulate * self.share.size):
            raise ValueError(
                f"batch={self.batch} cannot be split into accumulate={self.accumulate} equal "
                f"parts on each of {self.share.size} processes; make it a multiple of them"
            )
        if self.prefetch < 0:
            raise ValueError(f"need prefetch >= 0, got prefetch={self.prefetch}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"need clip > 0 or None, got clip={self.clip:g}")
