"""Sentences by tokenizers and text models of others, made here and read from local folders.

pip install -e ".[dev,parity]" -c constraints.txt && pytest -m parity
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from scoresde import VP, ScoreModel
from scoresde.conditions import FrozenText, Tokens, sizes
from scoresde.conditions.frozen_text import encoder_in
from scoresde.nn import UNet
from scoresde.parameterization import v
from tests.parity.stable_diffusion_folders import END, START, tokenizer_files, vocabulary
from tests.parity.stable_diffusion_folders import t5 as t5_of

pytestmark = pytest.mark.parity
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "hat", "cat"]


def tokenizer_of(words=WORDS) -> "tokenizers.Tokenizer":
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def bert(folder) -> None:
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=12,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(), pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)


def clip(folder) -> None:
    """The two folders of a Stable Diffusion model."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=12, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_of(), pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder / "tokenizer")


def old_clip(folder) -> None:
    """The same as they were before transformers 5: four files of words, and other keys."""
    clip(folder)
    made = transformers.CLIPTextConfig.from_pretrained(folder / "text_encoder")
    shutil.rmtree(folder / "tokenizer")
    tokenizer_files(folder / "tokenizer")
    ids = vocabulary()
    made.vocab_size, made.bos_token_id, made.eos_token_id = len(ids), ids[START], ids[END]
    model = transformers.CLIPTextModel(made)
    model.save_pretrained(folder / "text_encoder")
    file = folder / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name}": value for name, value in load_file(file).items()}
    save_file({**tensors, "text_model.embeddings.position_ids": torch.arange(12)[None]}, file)


def t5(folder) -> None:
    """The third encoder of Stable Diffusion 3."""
    torch.manual_seed(0)
    words, model = t5_of(16)
    model.save_pretrained(folder / "text_encoder")
    words.save_pretrained(folder / "tokenizer")


@pytest.fixture(params=[bert, clip, old_clip, t5])
def folder(request, tmp_path):
    request.param(tmp_path / "model")
    return tmp_path / "model"


def condition(folder, **options) -> FrozenText:
    return FrozenText(folder, length=12, cache=folder.parent / "cache", **options)


def test_states_are_those_of_the_text_model(folder):
    made = condition(folder)
    sentences = ["a red hat", "cat", "a red hat"]
    told = made(made.read(sentences))
    encoder, words = folder / "text_encoder", folder / "tokenizer"
    if encoder.is_dir():
        config = transformers.AutoConfig.from_pretrained(encoder)
        kind = (
            transformers.T5EncoderModel
            if config.model_type == "t5"
            else transformers.CLIPTextModel
        )
        model = kind.from_pretrained(encoder, local_files_only=True)
        read = transformers.AutoTokenizer.from_pretrained(words, local_files_only=True)
    else:
        model = transformers.BertModel.from_pretrained(folder, local_files_only=True)
        read = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for k, sentence in enumerate(sentences):
        found = read(sentence, return_tensors="pt")
        with torch.no_grad():
            states = model.eval()(found["input_ids"]).last_hidden_state[0]
        n = len(states)
        assert int(told.mask[k].sum()) == n
        # Half precision stores them.
        torch.testing.assert_close(told.context[k, :n].float(), states, atol=3e-3, rtol=0)
        assert not told.context[k, n:].any()


def test_padded_states_are_those_of_all_tokens_without_a_mask(folder):
    made = condition(folder, padded=True)
    encoder = folder / "text_encoder"
    words = transformers.AutoTokenizer.from_pretrained(
        folder / "tokenizer" if encoder.is_dir() else folder, local_files_only=True
    )
    ids = words("a red hat", padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    model = encoder_in(encoder if encoder.is_dir() else folder)
    with torch.no_grad():
        states = model(ids).last_hidden_state
    told = made(made.read(["cat", "a red hat"]))
    torch.testing.assert_close(told.context[1:], states, atol=1e-5, rtol=0)
    assert (told.mask, told.embed) == (None, None)


def test_a_text_model_reads_the_length_that_is_padded_to(tmp_path):
    clip(tmp_path / "model")
    with pytest.raises(ValueError, match=r"length=77: the text model in .* reads 12"):
        FrozenText(tmp_path / "model", cache=tmp_path, padded=True).read("a cat")


def test_a_sentence_is_encoded_once(folder, monkeypatch):
    first = condition(folder).read(["a cat", "a hat"])
    from scoresde.conditions import frozen_text

    monkeypatch.setattr(frozen_text, "encoded", lambda *args: pytest.fail("encoded again"))
    again = condition(folder, states=16).read(["a hat", "a cat"])
    torch.testing.assert_close(again, first.flip(0), equal_nan=True)


def test_nothing_said_is_the_empty_sentence(folder):
    made = condition(folder)
    torch.testing.assert_close(made.null(2), made.read(["", ""]), equal_nan=True)


def test_a_long_sentence_is_refused(folder):
    with pytest.raises(ValueError, match=r"a sentence of \d+ tokens, and the text model reads 12"):
        condition(folder).read(" ".join(["cat"] * 12))


def test_a_network_attends_to_the_states(folder):
    made = condition(folder, width=8)
    net = UNet(1, width=8, heads=2, **sizes({"text": made}))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model = ScoreModel(net, VP(), v, conditions={"text": made}).eval()
    assert not [name for name in model.state_dict() if "embeddings" in name]  # the text model's
    x, t = torch.randn(2, 1, 4, 4), torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        red, green = (model.denoiser(text=f"a {c} hat")(x, t) for c in ("red", "green"))
    assert (red - green).abs().amax() > 1e-4


def test_a_folder_without_a_text_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no folder of a text model \(no .safetensors\)"):
        FrozenText(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="no folder of a text model"):
        FrozenText(tmp_path)


def test_an_encoder_is_found_beside_its_tokenizer(tmp_path):
    t5(tmp_path / "model")
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / "model" / part).rename(tmp_path / "model" / f"{part}_3")
    third = condition(tmp_path / "model" / "text_encoder_3")
    assert third(third.read("a red cat")).context.shape == (1, 12, 16)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    clip(tmp_path / "model")
    file = tmp_path / "model" / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    del tensors["final_layer_norm.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"1 weights of CLIPTextModel are missing, such as final"):
        condition(tmp_path / "model")


def test_a_tokenizer_file_is_a_vocabulary(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer_of().save(str(path))
    decided = Tokens.measured(["a red hat", "a cat"], tokenizer=path)
    assert decided["words"] == len(WORDS)
    assert decided["longest"] == 3
    path.unlink()  # the checkpoint holds its text
    made = Tokens(**json.loads(json.dumps(decided)), tokenizer=path, width=8, heads=2)
    assert made.read("a red hat").tolist() == [[2 + 4, 2 + 5, 2 + 7, 1]]
    assert made.table.num_embeddings == 2 + len(WORDS)


def test_a_damaged_tokenizer_file_is_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json: no tokenizer.json"):
        Tokens.measured(["a"], tokenizer=path)
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer"):
        Tokens.measured(["a"], tokenizer=path)
