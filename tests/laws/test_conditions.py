"""What is said is what the network is told: reading, encoding, dropping, and batching."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoresde import VP, ScoreModel
from scoresde.conditions import (
    Condition,
    FrozenText,
    Label,
    Picture,
    SegmentationMap,
    Tokens,
    Vector,
    joined,
    sizes,
)
from scoresde.data import Captions, Split
from scoresde.nn import EDM2, MLP, DiT, UNet, adm, ddpmpp, ncsnpp
from scoresde.parameterization import predictions, v
from scoresde.training.said import columns_read, said

F64 = torch.float64
T = torch.tensor(0.5, dtype=F64)
WORDS = ["a", "cat", "dog", "hat", "red"]


def all_conditions() -> dict[str, Condition]:
    torch.manual_seed(1)
    return {
        "kind": Label(["cat", "dog"]),
        "text": Tokens(WORDS, 4, width=8, heads=2),
        "place": Vector([0.0, 1.0], [1.0, 2.0]),
        "small": Picture((3, 6, 6), of="low", factor=2),
        "map": SegmentationMap(3, (6, 6)),
    }


SAID = {
    "kind": "dog",
    "text": "a red hat",
    "place": [0.5, -1.0],
    "small": torch.linspace(-1, 1, 27).reshape(3, 3, 3),
    "map": torch.arange(36).reshape(6, 6) % 3,
}
NETWORKS = {
    "unet": lambda **told: UNet(3, width=8, heads=2, **told),
    "unet without attention": lambda **told: UNet(3, width=8, heads=2, attention=(), **told),
    "dit": lambda **told: DiT(3, width=16, depth=2, heads=2, **told),
    "edm2": lambda **told: EDM2(
        3, width=8, multipliers=(1, 2), blocks=1, attention=(1,), head_channels=8, **told
    ),
    "edm2 without attention": lambda **told: EDM2(
        3, width=8, multipliers=(1, 2), blocks=1, attention=(), head_channels=8, **told
    ),
    **{
        make.__name__: lambda make=make, **told: make(
            3, width=8, multipliers=(1, 2), blocks=1, head_channels=None, attention=(1,), **told
        )
        for make in (adm, ddpmpp, ncsnpp)
    },
}


def model(name: str) -> ScoreModel:
    conditions = all_conditions()
    net = NETWORKS[name](**sizes(conditions))
    generator = torch.Generator().manual_seed(0)
    for p in net.parameters():  # nothing is initially zero
        torch.nn.init.normal_(p, std=0.3, generator=generator)
    return ScoreModel(net, VP(), v, conditions=conditions).double().eval()


def state(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(2), dtype=F64)


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    def test_each_condition_changes_the_prediction(self, name):
        m, x = model(name), state()
        with torch.no_grad():
            nothing = m.denoiser()(x, T)
            for condition, value in SAID.items():
                told = m.denoiser(**{condition: value})(x, T)
                assert (told - nothing).abs().amax() > 1e-4, condition

    def test_nothing_said_is_the_null_of_training(self, name):
        m, x = model(name), state()
        nulls = {n: c.null(3) for n, c in m.conditions.items()}
        with torch.no_grad():
            c = m.parameterization(m.sde, T)
            raw = m(x, T.expand(3), **nulls)
            torch.testing.assert_close(m.denoiser()(x, T), float(c.skip) * x + float(c.out) * raw)

    def test_one_value_for_all_is_one_for_each(self, name):
        m, x = model(name), state()
        each = {"text": ["a red hat"] * 3, "kind": ["dog"] * 3}
        with torch.no_grad():
            torch.testing.assert_close(
                m.denoiser(text="a red hat", kind="dog")(x, T), m.denoiser(**each)(x, T)
            )

    def test_samples_do_not_see_the_conditions_of_others(self, name):
        m, x = model(name), state()
        texts = ["a red hat", "cat", ""]
        with torch.no_grad():
            together = m.denoiser(text=texts)(x, T)
            for k, text in enumerate(texts):
                alone = m.denoiser(text=text)(x[k : k + 1], T)
                torch.testing.assert_close(together[k : k + 1], alone)
            some = m.denoiser(text=texts).among(torch.tensor([2, 0]), 3)
            torch.testing.assert_close(some(x[[2, 0]], T), together[[2, 0]])

    def test_several_conditions_are_one_call(self, name):
        m, x, calls = model(name), state(), []
        m.net.register_forward_pre_hook(lambda net, args: calls.append(len(args[0])))
        every = [m.denoiser(), m.denoiser(**SAID), m.denoiser(text=["cat", "dog", "hat"])]
        with torch.no_grad():
            found = predictions([d.predict for d in every], x, T.expand(3))
            assert calls == [9]
            for denoiser, one in zip(every, found, strict=True):
                torch.testing.assert_close(denoiser(x, T), one)


def test_words_behind_the_end_have_no_influence():
    tokens = all_conditions()["text"].double()
    short, long = tokens.read("cat"), tokens.read("cat")
    long[:, 2:] = 0
    told = tokens(torch.cat([short, long]))
    assert told.mask.tolist() == [[True, True, False, False, False]] * 2
    changed = tokens(short)
    with torch.no_grad():
        tokens.table.weight[0] += 1
        tokens.positions[2:] += 1
    again = tokens(short)
    torch.testing.assert_close(changed.embed, again.embed)
    torch.testing.assert_close(changed.context[:, :2], again.context[:, :2])


def test_the_order_of_words_matters():
    tokens = all_conditions()["text"]
    told = tokens(tokens.read(["cat hat", "hat cat"]))
    assert (told.embed[0] - told.embed[1]).abs().max() > 1e-2


def test_the_embedding_also_holds_the_words_without_their_order():
    tokens = all_conditions()["text"].double()
    both = tokens(tokens.read(["cat red hat", "hat cat red", "cat red"])).embed[:, 8:]
    torch.testing.assert_close(both[0], both[1])
    places = [tokens.places[word] for word in ("cat", "red")]
    expected = tokens.table.weight[[*places, 1]].sum(0) / math.sqrt(3)
    torch.testing.assert_close(both[2], expected)
    plain = Tokens(WORDS, 4, width=8, heads=2, pooled=False)
    assert plain(plain.read("cat")).embed is None
    assert sizes({"text": plain})["embed"] is None


def test_words_and_positions_start_at_one_size():
    tokens = Tokens([f"w{k}" for k in range(500)], 60, width=32)
    assert 0.9 < float(tokens.table.weight.detach().std()) < 1.1
    assert 0.9 < float(tokens.positions.detach().std()) < 1.1


def test_a_vector_is_standardised_and_says_what_is_missing():
    column = torch.randn(200, 2, dtype=F64) * torch.tensor([3.0, 0.1]) + torch.tensor([5.0, -2])
    vector = Vector(**Vector.measured(column))
    y = vector.read(column)
    torch.testing.assert_close(y.mean(0), torch.zeros(2, dtype=F64), atol=1e-12, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(2, dtype=F64))
    told = vector(vector.read([[5.0, None], [None, None]])).embed
    assert told[0, 2:].tolist() == [0, 1]
    assert torch.equal(told[1:], vector(vector.null(1)).embed)


def test_a_class_is_of_unit_size():
    label = Label(7)
    told = label(torch.cat([label.read([0, 6]), label.null(1)])).embed
    torch.testing.assert_close(told.square().mean(1), torch.ones(3))
    assert len(told.unique(dim=0)) == 3


def test_classes_named_by_numbers_are_names():
    label = Label(["3", "5"])
    assert label.read([5, "3"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="no class 0"):
        label.read(0)
    assert Label(["cat", "dog"]).read([1, "cat"]).tolist() == [1, 0]


def test_a_small_picture_is_the_means_of_a_large_one():
    picture = Picture((3, 6, 6), of="low", factor=3)
    x0 = torch.rand(2, 3, 6, 6)
    small = x0.reshape(2, 3, 2, 3, 2, 3).mean((3, 5))
    torch.testing.assert_close(picture.read(small), picture.derive(x0))
    grey = Picture((3, 6, 6), of="grey").derive(x0)
    torch.testing.assert_close(grey, x0.mean(1, keepdim=True))


def test_edges_are_the_slope_of_a_ramp():
    ramp = torch.arange(8.0).expand(1, 3, 8, 8) * 0.25
    edges = Picture((3, 8, 8), of="edges").derive(ramp)
    torch.testing.assert_close(edges[..., 1:-1], torch.full((1, 1, 8, 6), 0.25))
    assert not Picture((3, 8, 8), of="edges").derive(torch.ones(1, 3, 8, 8)).any()


def test_pixel_levels_become_model_units():
    picture = Picture((1, 2, 2), levels=256)
    levels = torch.tensor([[[0, 255], [127, 128]]], dtype=torch.uint8)
    expected = [[[-255 / 256, 255 / 256], [-1 / 256, 1 / 256]]]
    torch.testing.assert_close(picture.read(levels)[0], torch.tensor(expected))
    torch.testing.assert_close(picture.read(levels.to(torch.uint16))[0], torch.tensor(expected))
    assert torch.equal(picture.read([levels, levels]), picture.read(levels.expand(2, 1, 2, 2)))


def test_a_mask_has_two_levels():
    mask = torch.eye(2, dtype=torch.bool)[None, None]
    found = Picture(**Picture.measured(mask)).read(mask)
    torch.testing.assert_close(found, torch.where(mask, 0.5, -0.5))


def test_levels_saved_as_real_numbers_are_no_picture_in_model_units():
    with pytest.raises(ValueError, match=r"need real numbers in model units.*got 0 to 255"):
        Picture.measured(torch.tensor([0.0, 255.0]).reshape(1, 1, 1, 2))


@pytest.mark.parametrize("condition", all_conditions().items(), ids=lambda c: c[0])
def test_dropout_says_nothing(condition):
    name, made = condition
    made.dropout = 0.5
    x0 = torch.rand(400, 3, 6, 6)
    column = {
        "kind": torch.ones(400, dtype=torch.int64),
        "text": Captions.of(["a red hat"] * 400),
        "place": torch.ones(400, 2),
        "map": torch.ones(400, 6, 6, dtype=torch.int64),
    }.get(name)
    columns = {} if column is None else {name: column}
    split = columns_read(Split(x0, columns=columns), {name: made})
    full = said(split, x0, {name: made})[name]
    generator = torch.Generator().manual_seed(0)
    some = said(split, x0, {name: made}, generator)[name]
    null = made.null(1).expand_as(some)
    dropped = torch.isclose(some.double(), null.double(), equal_nan=True).reshape(400, -1).all(1)
    assert 150 < int(dropped.sum()) < 250
    assert torch.equal(some[~dropped], full[~dropped])


def test_one_of_several_captions_is_drawn():
    tokens = all_conditions()["text"]
    rows = [["cat", "dog"], ["hat"]] * 200
    split = columns_read(Split(torch.rand(400, 1, 2, 2), columns={"text": Captions.of(rows)}),
                         {"text": tokens})  # fmt: skip
    first = said(split, split.x, {"text": tokens})["text"]
    assert torch.equal(first, tokens.read(["cat", "hat"] * 200))
    tokens.dropout = 0.0
    generator = torch.Generator().manual_seed(0)
    drawn = said(split, split.x, {"text": tokens}, generator)["text"]
    cats = (drawn == tokens.read("cat")).all(1)
    dogs = (drawn == tokens.read("dog")).all(1)
    assert 70 < int(cats.sum()) < 130
    assert int((cats | dogs).sum()) == 200
    taken = split.take(torch.tensor([399, 0]))
    assert torch.equal(said(taken, taken.x, {"text": tokens})["text"], tokens.read(["hat", "cat"]))


@pytest.mark.parametrize(
    ("classes", "column", "words", "expected"),
    [
        (["dog", "cat"], [0, 1, 1], ["cat", "dog"], ["cat", "dog", "dog"]),
        (["cat", "dog", "eel"], [0, 1, 0], ["dog", "eel"], ["dog", "eel", "dog"]),
        (["3", "7"], [3, 7, 3], None, ["3", "7", "3"]),
        (["1", "2", "3"], [0, 1, 1], ["1", "3"], ["1", "3", "3"]),
        (["cat", "dog"], [1, 0, 1], None, ["dog", "cat", "dog"]),
        (["cat", "dog"], [1, 0, 1], ["0", "1"], ["dog", "cat", "dog"]),
    ],
)
@pytest.mark.parametrize("name", ["kind", "label"])
def test_a_class_of_the_data_is_that_of_the_model(name, classes, column, words, expected):
    """Where data and model number the classes in different ways; reading twice is reading once."""
    if name == "label" and words is None:  # a data set names them
        words = sorted(map(str, set(column)))
        column = [words.index(str(value)) for value in column]
    label = Label(classes)
    values = torch.tensor(column)
    named = {name: words} if words else {}
    x = torch.zeros(3, 2)
    split = Split(x, values) if name == "label" else Split(x, columns={name: values})
    once = columns_read(split, {name: label}, named)
    for read in (once, columns_read(once, {name: label})):
        assert torch.equal(said(read, x, {name: label})[name], label.read(expected))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (torch.tensor([0, 2, 1]), "kind: no class 2"),
        (torch.tensor([0.0, 0.5, 1.0]), "kind: need names or whole numbers"),
        (torch.zeros(3, 2, dtype=torch.int64), "kind: need names or whole numbers"),
    ],
)
def test_a_column_of_no_classes_is_refused(column, message):
    split = Split(torch.zeros(3, 2), columns={"kind": column})
    with pytest.raises(ValueError, match=message):
        columns_read(split, {"kind": Label(["cat", "dog"])})


def test_a_column_of_another_size_is_refused_by_name():
    split = Split(torch.zeros(3, 2), columns={"place": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="place: need 2 numbers"):
        columns_read(split, {"place": all_conditions()["place"]})


def test_sentences_without_words_are_no_vocabulary():
    with pytest.raises(ValueError, match="every sentence is empty; give sentences"):
        Tokens.measured(["", " "])


def test_a_number_that_no_network_can_take_is_refused():
    with pytest.raises(ValueError, match="too far from those of the training data"):
        Vector([0.0], [1.0]).read(1e300)


def test_contexts_follow_each_other():
    one = Tokens(WORDS, 4, width=8, heads=2)
    two = Tokens(WORDS, 2, width=8, heads=2)
    told = joined([one(one.read("a cat")), two(two.read(["dog", "hat", "a red"]))], 3)
    assert told.context.shape == (3, 5 + 3, 8)
    assert told.mask.sum(1).tolist() == [3 + 2, 3 + 2, 3 + 3]
    assert told.embed.shape == (3, one.embed + two.embed)
    with pytest.raises(ValueError, match="different widths"):
        sizes({"one": one, "two": Tokens(WORDS, 2, width=12, heads=2)})


def test_gradients_reach_the_condition():
    vector = Vector([0.0], [1.0])
    net = MLP(2, width=8, depth=1, embedding=4, embed=vector.embed)
    for p in net.parameters():
        torch.nn.init.normal_(p)
    m = ScoreModel(net, VP(), v, conditions={"theta": vector})
    x, t = torch.randn(5, 2), torch.full((5,), 0.3, dtype=F64)
    y = torch.zeros(5, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(m(x, t, theta=y).sum(), y)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": "a blue hat"}, "text: unknown word 'blue'; choose one of a, cat"),
        ({"text": "a redd hat"}, "text: unknown word 'redd'; did you mean 'red'"),
        ({"text": "a a a a a"}, "text: a sentence of 5 words, and the model reads 4"),
        ({"text": 3}, "text: need"),
        ({"kind": "dgo"}, "kind: no class 'dgo'; did you mean 'dog'"),
        ({"kind": 2}, "kind: no class 2"),
        ({"kind": -1}, "kind: no class -1"),
        ({"kind": 0.5}, "kind: need a class by name or place, got 0.5"),
        ({"kind": True}, "kind: need a class"),
        ({"place": [1.0]}, r"place: need 2 numbers, got \(1,\)"),
        ({"place": [1.0, math.nan]}, "place: need finite numbers"),
        ({"place": torch.tensor([1.0, math.inf])}, "place: need finite numbers"),
        ({"place": "here"}, "place: need numbers"),
        ({"place": [[1.0, 2.0], [3.0]]}, "place: need 2 numbers, or 2 for each sample"),
        ({"place": torch.ones(2, dtype=torch.complex64)}, "place: need real numbers"),
        ({"small": torch.ones(3, 6, 6, dtype=torch.complex64)}, "small: need a picture of real"),
        ({"small": torch.zeros(3, 5, 5)}, r"small: need a picture \(3, 6, 6\) or \(3, 3, 3\)"),
        ({"small": torch.full((3, 6, 6), math.nan)}, "small: need a picture of finite"),
        ({"small": torch.full((3, 6, 6), 255.0)}, "small: need real numbers in model units"),
        ({"small": torch.full((3, 6, 6), 256)}, "small: need pixel levels 0 to 255, got 256"),
        ({"small": "p.png"}, "small: need a picture of numbers, got str"),
        ({"map": {}}, "map: need a map of numbers"),
        ({"map": torch.full((6, 6), 3)}, "map: need classes 0 to 2, got 3 to 3"),
        ({"map": torch.zeros(6, 6)}, "map: need a map .* of whole numbers"),
        ({"texts": "a cat"}, "texts: this model has no such condition; did you mean 'text'"),
        ({"text": ["cat", "dog"], "kind": ["cat"] * 3}, "2 values beside 3 of another"),
    ],
)
def test_what_cannot_be_said_is_refused_before_a_network_call(given, message):
    m = model("unet")
    with pytest.raises(ValueError, match=message) as error:
        m.denoiser(**given)
    assert "\n" not in str(error.value)


def test_unknown_words_may_be_left_out():
    tokens = Tokens(WORDS, 4, width=8, heads=2, unknown="ignore")
    assert torch.equal(tokens.read("a blue cat"), tokens.read("a cat"))


def frozen(folder, **options) -> FrozenText:
    return FrozenText(folder, length=4, states=2, cache=folder / "cache", **options)


def test_a_padded_sentence_is_all_its_states_and_nothing_else(tmp_path, monkeypatch):
    """As Stable Diffusion tells it; by default half precision behind a mask, and a mean."""
    states = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)).numpy()

    def encoded(folder, sentences, length, padded):
        found = states if padded else states[:3].astype(np.float16)
        return [found for _ in sentences]

    (tmp_path / "model.safetensors").touch()
    for by in (encoded, None):  # then both are stored, each beside the other
        monkeypatch.setattr("scoresde.conditions.frozen_text.encoded", by)
        made = frozen(tmp_path, padded=True)
        told = made(made.read(["a cat", "a dog"]))
        assert torch.equal(told.context, torch.from_numpy(states).expand(2, 4, 2))
        assert (told.embed, told.mask) == (None, None)
        assert torch.equal(made(made.null(3)).context[2], told.context[0])
        plain = frozen(tmp_path)
        masked = plain(plain.read("a cat"))
        assert masked.mask.tolist() == [[True] * 3 + [False]]
        rounded = torch.from_numpy(states[:3]).half().float()
        assert torch.equal(masked.context[0, :3], rounded)
        torch.testing.assert_close(masked.embed[0], rounded.mean(0))
    assert sizes({"text": made}) == {"embed": None, "context": 2, "concat": 0}
    assert sizes({"text": plain}) == {"embed": 2, "context": 2, "concat": 0}
    with pytest.raises(ValueError, match="width: padded=true"):
        frozen(tmp_path, padded=True, width=8)


def test_a_condition_needs_a_name_of_its_own():
    with pytest.raises(ValueError, match="'mask' is an input of the network"):
        ScoreModel(MLP(2, embed=2), VP(), v, conditions={"mask": Vector([0.0], [1.0])})
    with pytest.raises(ValueError, match="'label' is an input of the network"):
        ScoreModel(MLP(2, embed=4, classes=3), VP(), v, conditions={"label": Label(3)})


def test_a_model_without_conditions_says_so():
    m = ScoreModel(MLP(2), VP(), v)
    with pytest.raises(ValueError, match="text: this model was trained without conditions"):
        m.denoiser(text="a cat")


def test_networks_refuse_what_they_were_not_built_for():
    x, noise = torch.zeros(2, 3, 4, 4), torch.zeros(2)
    net = UNet(3, width=8, heads=2)
    with pytest.raises(ValueError, match="built without embed"):
        net(x, noise, embed=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="built without context"):
        net(x, noise, context=torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="takes pictures"):
        net(x, noise, concat=torch.zeros(2, 1, 4, 4))
