"""``ss.draw`` under prompts, conditions and guidance."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import scoresde as ss
from scoresde import guidance, parameterization
from scoresde.conditions import Label, Tokens, Vector, sizes
from scoresde.nn import MLP
from scoresde.samplers import per_sample_noise, recommended

WORDS = ["a", "blue", "hat", "red"]


class Net(MLP):
    """An embedding tells it all that it needs."""

    def forward(self, x, noise, *, embed, context=None, mask=None):
        return super().forward(x, noise, embed=embed)


PROMPTS = ["a red hat", "a blue hat", "hat"]


def model(**more) -> ss.ScoreModel:
    """A model of random weights, told a sentence, two numbers and a class."""
    torch.manual_seed(0)
    conditions = {
        "text": Tokens(WORDS, 3, width=8, heads=2),
        "place": Vector([0.0, 1.0], [1.0, 2.0]),
        "label": Label(["cat", "dog"]),
        **more,
    }
    conditions = {name: made for name, made in conditions.items() if made is not None}
    net = Net(3, width=8, depth=1, embed=sizes(conditions)["embed"])
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.5)
    made = ss.ScoreModel(net, ss.VP(), parameterization.v, conditions=conditions)
    return made.requires_grad_(False).eval()


def drawn(m: ss.ScoreModel, num: int | None = None, **said) -> ss.runs.draw.Drawn:
    return ss.draw(m, num, nfe=5, shape=(3,), **said)


def test_it_is_the_sampler_with_the_guided_denoiser():
    m, (step, grid) = model(), recommended(5)
    found = drawn(m, 2, prompt="a red hat", negative="hat", guidance=2.5)
    noise = per_sample_noise(range(2))
    x = noise(torch.empty(2, 3)) * float(m.sde.prior().stddev)
    denoiser = guidance.free(m, {"text": "a red hat"}, {"text": "hat"}, 2.5)
    assert torch.equal(found.x, ss.sample(denoiser, x, grid(m.sde, 4), step, noise))


@pytest.mark.parametrize("step", [None, "heun", "euler_a"])
def test_a_sample_is_a_function_of_its_seed_and_what_is_said_of_it(step):
    m, places = model(), torch.tensor([[0.0, 1], [2, 3], [-1, 0]])
    said = {"negative": {"label": ["cat", "dog", "dog"]}, "guidance": 2.0, "step": step}
    many = ss.draw(
        m,
        7,
        prompt=PROMPTS,
        cond={"place": places},
        shape=(3,),
        batch=3,
        seeds=range(4, 11),
        **said,
    )
    block = [0, 0, 0, 1, 1, 2, 2]
    for row in (2, 3, 6):
        k = block[row]
        said["negative"] = {"label": ["cat", "dog", "dog"][k]}
        one = ss.draw(
            m, prompt=PROMPTS[k], cond={"place": places[k]}, shape=(3,), seeds=[4 + row], **said
        )
        torch.testing.assert_close(many.x[row : row + 1], one.x, atol=1e-5, rtol=0)
        assert many.said[row]["text"] == one.said[0]["text"] == PROMPTS[k]
        assert torch.equal(many.said[row]["place"], places[k])


def test_the_number_of_samples_is_that_of_the_values():
    m = model()
    assert len(drawn(m, prompt=PROMPTS)) == 3
    assert len(drawn(m, prompt="hat")) == len(drawn(m, prompt=["hat"])) == 64
    assert len(drawn(m, cond={"place": [[0.0, 1.0], [1.0, 1.0]]})) == 2
    assert drawn(m, 4, label="all").label.tolist() == [0, 0, 1, 1]
    assert drawn(m, label=["dog", "cat", 1]).label.tolist() == [1, 0, 1]
    assert drawn(m, 2, prompt="hat").label is None


def test_without_guidance_it_is_the_plain_conditional_and_at_0_the_unconditional():
    m = model()
    same = drawn(m, 2, prompt="hat", guidance=0.0)
    assert torch.equal(same.x, drawn(m, 2).x)
    assert not torch.equal(same.x, drawn(m, 2, prompt="hat").x)
    # From the noise of the first step on, the interval leaves nothing to guide.
    outside = drawn(m, 2, prompt="hat", guidance=5.0, guidance_interval=(1e6, 1e7))
    torch.testing.assert_close(outside.x, drawn(m, 2, prompt="hat").x)


def test_a_guided_step_is_one_call_of_twice_the_batch():
    m, calls = model(), []
    m.net.register_forward_pre_hook(lambda net, args: calls.append(len(args[0])))
    assert drawn(m, 4, prompt="hat", guidance=3.0).nfe == 5
    assert calls == [8] * 5


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"prompt": "a green hat"}, "text: unknown word 'green'"),
        ({"prompt": []}, "text: need a sentence, or several, got none"),
        ({"prompt": "hat", "cond": {"text": "a"}}, "prompt: cond has text too"),
        ({"cond": {"txt": "a"}}, "txt: this model has no such condition; did you mean 'text'"),
        ({"cond": {"place": [1.0]}}, "place: need 2 numbers"),
        ({"cond": "hat"}, "cond: need a mapping of conditions by name, got 'hat'"),
        ({"label": "cow"}, "label: no class 'cow'"),
        ({"label": "cat", "cond": {"label": "dog"}}, "label: cond has it too"),
        ({"prompt": "hat", "negative": "hat"}, "negative: without effect at guidance 1"),
        ({"prompt": "hat", "guidance_interval": (0, 1)}, "guidance_interval: without effect"),
        ({"guidance": 3.0}, "guidance: say something, or leave it out"),
        ({"prompt": "hat", "guidance": float("nan")}, "guidance: need a finite number"),
        (
            {"prompt": "hat", "guidance": 2.0, "guidance_interval": (5, 1)},
            "guidance_interval: need 0 <= low < high",
        ),
        (
            {"prompt": "hat", "guidance": 2.0, "negative": {"hue": 1}},
            "negative: hue: this model has no such condition",
        ),
        (
            {"prompt": "hat", "guidance": 2.0, "negative": "moon"},
            "negative: text: unknown word 'moon'",
        ),
        ({"prompt": PROMPTS, "label": [0, 1]}, r"\(3 of text, 2 of label\); give as many"),
        (
            {"prompt": PROMPTS, "guidance": 2.0, "negative": {"text": PROMPTS[:2]}},
            r"\(3 of text, 2 of negative text\); give as many",
        ),
        ({"prompt": PROMPTS, "num": 2}, "num: 2 samples for 3 values; ask for more"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_before_a_network_call(said, message):
    m = model()
    m.net.register_forward_pre_hook(lambda net, args: pytest.fail("a network call"))
    with pytest.raises(ValueError, match=message) as error:
        drawn(m, **said)
    assert "\n" not in str(error.value)


def test_a_model_that_takes_nothing_says_so():
    m = ss.ScoreModel(MLP(3, width=8, depth=1), ss.VP(), parameterization.v)
    for said, name in (
        ({"prompt": "a"}, "prompt"),
        ({"negative": "a", "guidance": 2.0}, "negative"),
        ({"guidance": 2.0}, "guidance"),
        ({"cond": {"place": 1}}, "place"),
    ):
        with pytest.raises(ValueError, match=f"^{name}: this model was trained without cond"):
            drawn(m, **said)


def test_a_prompt_needs_one_condition_of_sentences():
    with pytest.raises(ValueError, match="prompt: no condition of this model reads sentences; it"):
        drawn(model(text=None), prompt="a")
    two = model(other=Tokens(WORDS, 3, width=8, heads=2))
    with pytest.raises(ValueError, match="prompt: text and other both read sentences"):
        drawn(two, prompt="a")
    assert len(drawn(two, 2, cond={"other": "a"})) == 2


def test_a_condition_without_dropout_has_to_be_said():
    m = model(text=Tokens(WORDS, 3, width=8, heads=2, dropout=0.0))
    with pytest.raises(ValueError, match="text is missing: this model never learned"):
        drawn(m)
    assert len(drawn(m, 2, prompt="hat")) == 2
    with pytest.raises(ValueError, match=r"text is missing.*nothing said"):
        drawn(m, prompt="hat", step="heun", grid="optimised")
    with pytest.raises(ValueError, match="text: this model was trained without dropout"):
        drawn(m, 2, prompt="hat", guidance=2.0)


def test_classes_of_a_table_are_guided():
    torch.manual_seed(0)
    net = MLP(3, width=8, depth=1, classes=2)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.5)
    m = ss.ScoreModel(net, ss.VP(), parameterization.v).requires_grad_(False)
    found = drawn(m, label=[0, 1], guidance=3.0, negative={"label": 1})
    assert found.label.tolist() == [0, 1]
    assert not torch.equal(found.x[:1], drawn(m, 1, label=[0]).x)
    # The second is guided from class 1 to class 1.
    torch.testing.assert_close(found.x[1:], drawn(m, seeds=[1], cond={"label": 1}).x)
