"""Weights split between processes: the updates of whole ones, and state dicts that go both ways.

Each test starts two processes of this file, which compare what they have and fail if it differs.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from scoresde import VP, ScoreModel, parameterization
from scoresde.data import Scaling, Split
from scoresde.nn import UNet
from scoresde.training import Plan, TrainState, averages, fit, fsdp, held_out_loss
from scoresde.training.distributed import Rank
from scoresde.training.times import LogSNR
from tests.cli.test_processes import ended, free_port

PLAN = Plan(
    steps=4,
    batch=8,
    optimizer=torch.optim.AdamW,
    lr=1e-2,
    weight_decay=0.01,
    clip=0.1,
    times=LogSNR(),
    seed=3,
)
SPLIT = Split(torch.randint(0, 17, (20, 5), generator=torch.Generator().manual_seed(1)).float())


class Block(nn.Module):
    """A residual block with a scalar gain and sizes that two processes cannot halve."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 3), nn.Linear(3, 5)
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.gain * self.second(torch.tanh(self.first(x)))


class Net(nn.Module):
    """Three blocks and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.out = nn.Linear(5, 5)

    def forward(
        self, x: torch.Tensor, noise: torch.Tensor, label: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = x + noise[:, None]
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def state_of(share: Rank, *, split: bool, least: int = 1):
    """A state after no step, its weights whole or split."""
    torch.manual_seed(0)
    model = ScoreModel(Net(), VP(), parameterization.v)
    state = TrainState.of(model, replace(PLAN, posthoc=(0.1,), ema=(0.999, 0.9)))
    if split:
        for each in state.models:
            fsdp.split(each.net, share, torch.device("cpu"), least)
        state.optimizer = adam(model)
    return state


def adam(model: nn.Module) -> torch.optim.Optimizer:
    decay = PLAN.weight_decay
    return torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=decay, fused=True)


def trained(state, share: Rank, **changes):
    """Losses and norms of the updates of a state."""
    plan = replace(PLAN, rank=share, **changes)
    return [torch.stack([m.loss, m.grad_norm]) for m in fit(state, plan, SPLIT, Scaling(None))]


def close(one, other) -> None:
    for a, b in zip(one.models, other.models, strict=True):
        whole = fsdp.gathered(b.state_dict())
        for name, value in a.state_dict().items():
            torch.testing.assert_close(whole[name], value, rtol=0, atol=1e-6)


def same_updates(share: Rank) -> None:
    """Whole and split weights take the same steps, and so do averages and the norm."""
    for changes in ({}, {"clip": None}, {"accumulate": 2}, {"precision": "bf16"}):
        whole, split = state_of(share, split=False), state_of(share, split=True)
        expected, found = (trained(state, share, **changes) for state in (whole, split))
        torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-5, atol=0)
        close(whole, split)


def parts_are_parts(share: Rank) -> None:
    """A process has half of the numbers, in blocks of their own; scalars it has whole."""
    state = state_of(share, split=True)
    trained(state, share)
    has = sum(p.numel() for p in fsdp.parts(state.model.parameters()))
    every = sum(p.numel() for p in state.model.parameters())
    assert has < 0.65 * every, (has, every)
    for each in state.models:
        blocks = [m for m in each.net.modules() if hasattr(m, "unshard")]
        assert len(blocks) == 4, blocks
        gains = [p for p in each.parameters() if p.ndim == 0]
        assert len(gains) == 3
        assert fsdp.parts(gains) == gains
    moments = fsdp.parts(v["exp_avg"] for v in state.optimizer.state_dict()["state"].values())
    assert sum(m.numel() for m in moments) == has
    alone = state_of(share, split=True, least=10**6)
    assert sum(hasattr(m, "unshard") for m in alone.model.net.modules()) == 1


def there_and_back(share: Rank) -> None:
    """What was split goes on whole, and the other way round, to the same weights."""
    straight = state_of(share, split=False)
    trained(straight, share)
    for first, second in ((True, False), (False, True), (True, True)):
        one, other = state_of(share, split=first), state_of(share, split=second)
        trained(one, share, steps=2)
        for a, b in zip(one.models, other.models, strict=True):
            stored = fsdp.gathered(a.state_dict())
            assert not any(hasattr(v, "device_mesh") for v in stored.values())
            b.load_state_dict(fsdp.scattered(stored, b.state_dict()))
        moments = fsdp.gathered(one.optimizer.state_dict())
        found = fsdp.scattered_optimizer(moments, other.model.parameters())
        other.optimizer.load_state_dict(found)
        other.step = one.step
        trained(other, share)
        close(straight, other)


def averages_of_parts(share: Rank) -> None:
    """The average of parts is the part of the average, also of a process that has none."""
    torch.manual_seed(0)
    one = Net()
    other = copy.deepcopy(one)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    whole = copy.deepcopy(one)
    averages.update(whole, other, 0.7)
    for net in (one, other):
        fsdp.split(net, share, torch.device("cpu"), 1)
    averages.update(one, other, 0.7)
    for name, value in fsdp.gathered(one.state_dict()).items():
        torch.testing.assert_close(value, whole.state_dict()[name])


def a_unet_of_many_blocks(share: Rank) -> None:
    """A network of the library, its blocks split each by itself and computed again backwards."""
    x = torch.randint(0, 17, (20, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    found = []
    for split in (False, True):
        torch.manual_seed(0)
        net = UNet(1, width=8, multipliers=(1, 2), blocks=1, attention=(1,), recompute=True)
        model = ScoreModel(net, VP(), parameterization.v)
        state = TrainState.of(model, PLAN)
        if split:
            for each in state.models:
                fsdp.split(each.net, share, torch.device("cpu"), 1000)
            assert sum(hasattr(m, "unshard") for m in net.modules()) > 4
            state.optimizer = adam(model)
        plan = replace(PLAN, rank=share)
        found.append([m.grad_norm for m in fit(state, plan, Split(x.byte()), Scaling(17))])
        loss = held_out_loss(state.ema, Split(x.byte()), Scaling(17), draws=1)
        found[-1].append(torch.tensor(loss))
    whole, split = map(torch.stack, found)
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=0)


CHECKS = (same_updates, parts_are_parts, there_and_back, averages_of_parts, a_unet_of_many_blocks)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_in_two_processes(check):
    every = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    root = str(Path(__file__).parents[2])
    every |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    line = [sys.executable, __file__, check.__name__]
    found = [
        subprocess.Popen(line, env=os.environ | every | {"RANK": rank}, cwd=root, **pipes)
        for rank in "01"
    ]
    done = ended(found)
    assert [code for code, _, _ in done] == [0, 0], done


def test_whole_weights_are_their_own_parts():
    net = Net()
    assert all(a is b for a, b in zip(fsdp.parts(net.parameters()), net.parameters(), strict=True))
    state = net.state_dict()
    assert all(fsdp.gathered(state)[k] is v for k, v in state.items())
    assert all(fsdp.scattered(state, state)[k] is v for k, v in state.items())


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    {check.__name__: check for check in CHECKS}[sys.argv[1]](
        Rank(distributed.get_rank(), distributed.get_world_size())
    )
    distributed.destroy_process_group()
