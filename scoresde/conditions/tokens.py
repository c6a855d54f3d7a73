"""A sentence, by a vocabulary of its own or of a tokenizer, and a transformer that is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.arguments import Count, Fraction, Natural, Range, check, nearest
from scoresde.conditions.condition import Condition, Joined

PAD, END, FIRST = 0, 1, 2
"""Places of nothing, of the end of a sentence, and of the first word."""


@final
class Tokens(Condition):
    """The states of a small transformer on the words of a sentence, trained with the model.

    Every sentence has an end, and nothing said is the end alone. ``context`` are the states of
    words and end. ``embed``, if ``pooled``, is the state at the end, and beside it the sum of the
    n words over sqrt(n). Words and their positions start at one size. Words are lower-case runs of
    letters and digits, or single signs. Raises ValueError for sizes out of range, and an unknown
    word where it is read.

    Args:
        words: the vocabulary; of a tokenizer the number of its tokens.
        longest: words of the longest sentence.
        tokenizer: a tokenizer.json, in place of a vocabulary of the data's words; needs pip
            install scoresde[text].
        width: width of the states.
        depth: layers of the transformer.
        heads: heads of its attention.
        pooled: also add the sentence as a whole to the noise level: what it names is learned
            sooner, but the order of its words later.
        unknown: an unknown word is refused, or left out.
        dropout: fraction of the training examples without their sentence.
        rules: the text of the tokenizer.json.
    """

    sentences = True

    def __init__(
        self,
        words: Sequence[str] | int,
        longest: Count,
        *,
        tokenizer: Path | None = None,
        width: Annotated[int, Range(ge=4)] = 64,
        depth: Natural = 2,
        heads: Count = 4,
        pooled: bool = True,
        unknown: Literal["refuse", "ignore"] = "refuse",
        dropout: Fraction = 0.1,
        rules: str | None = None,
    ) -> None:
        super().__init__()
        check(Tokens, {k: v for k, v in locals().items() if k not in ("self", "words", "rules")})
        self.rules = rules
        self.words = () if isinstance(words, int) else tuple(words)
        self.places = {word: FIRST + k for k, word in enumerate(self.words)}
        count = words if isinstance(words, int) else len(words)
        if count < 1 or (rules is None and len(self.places) < count):
            raise ValueError("need a vocabulary of different words")
        self.longest, self.unknown, self.dropout = longest, unknown, dropout
        self.pooled, self.context = pooled, width
        self.embed = 2 * width if pooled else 0
        self.table = nn.Embedding(FIRST + count, width)
        self.positions = nn.Parameter(torch.randn(longest + 1, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))

    @staticmethod
    def measured(values: Any, tokenizer: Path | None = None, **settings: Any) -> dict[str, Any]:
        sentences = [s for value in values for s in ([value] if isinstance(value, str) else value)]
        if tokenizer is not None:
            rules = _rules(Path(tokenizer).expanduser())
            made = _tokenizer(rules)
            longest = max(
                len(e.ids) for e in made.encode_batch(sentences, add_special_tokens=False)
            )
            return {"words": made.get_vocab_size(), "longest": max(longest, 1), "rules": rules}
        split = [split_words(sentence) for sentence in set(sentences)]
        words = sorted({word for sentence in split for word in sentence})
        if not words:
            raise ValueError("every sentence is empty; give sentences, or leave the condition out")
        return {"words": words, "longest": max(1, max(map(len, split), default=1))}

    def read(self, values: Any) -> Tensor:
        """A sentence or several; "" says nothing. Raises ValueError for unknown words."""
        return torch.tensor([self._ids(s) for s in sentences_of(values)], dtype=torch.int64)

    def takes(self) -> str:
        some = f" ({', '.join([w for w in self.words if w.isalnum()][:10])}, ...)"
        count = len(self.table.weight) - FIRST
        kind = f"tokens of a vocabulary of {count}" if self.rules else f"of {count} words{some}"
        return f"a sentence of at most {self.longest} {kind}"

    def _ids(self, sentence: str) -> list[int]:
        if self.rules is not None:
            found = _tokenizer(self.rules).encode(sentence, add_special_tokens=False).ids
            ids = [FIRST + k for k in found]
        else:
            words = split_words(sentence)
            strange = [word for word in words if word not in self.places]
            if strange and self.unknown == "refuse":
                raise ValueError(f"unknown word {strange[0]!r}; {nearest(strange[0], self.words)}")
            ids = [self.places[word] for word in words if word in self.places]
        if len(ids) > self.longest:
            raise ValueError(
                f"a sentence of {len(ids)} words, and the model reads {self.longest}: "
                f"{sentence[:40]!r}; shorten it"
            )
        return [*ids, END, *[PAD] * (self.longest - len(ids))]

    def null(self, n: int) -> Tensor:
        return torch.tensor([[END, *[PAD] * self.longest]]).repeat(n, 1)

    def forward(self, y: Tensor) -> Joined:
        mask = y != PAD
        words = self.table(y)
        h = words + self.positions
        for layer in self.layers:
            h = layer(h, mask)
        h = F.layer_norm(h, h.shape[-1:])
        if not self.pooled:
            return Joined(context=h, mask=mask)
        end = h[torch.arange(len(y), device=y.device), (y == END).int().argmax(1)]
        bag = (words * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).sqrt()
        return Joined(embed=torch.cat([end, bag], 1), context=h, mask=mask)


class Layer(nn.Module):
    """Self-attention over the words where ``mask`` is true, then a perceptron, on (B, L, width).

    Attention Is All You Need, arXiv 1706.03762, with normalisation first.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads={heads} does not divide width={width}")
        self.heads = heads
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        qkv = torch.unflatten(self.qkv(F.layer_norm(h, h.shape[-1:])), 2, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, mask[:, None, None, :])
        h = h + self.project(mixed.transpose(1, 2).flatten(2))
        result: Tensor = h + self.outer(F.gelu(self.inner(F.layer_norm(h, h.shape[-1:]))))
        return result


def sentences_of(values: Any) -> list[str]:
    """One sentence or several, as a list. Raises ValueError for anything else."""
    found = (
        [values] if isinstance(values, str) or not hasattr(values, "__iter__") else list(values)
    )
    if stray := [value for value in found if not isinstance(value, str)]:
        raise ValueError(f"need a sentence, or several, got {stray[0]!r}")
    if not found:
        raise ValueError("need a sentence, or several, got none")
    return found


def split_words(sentence: str) -> list[str]:
    """The words of a sentence: lower-case runs of letters and digits, and single other signs."""
    return re.findall(r"\w+|[^\w\s]", sentence.lower())


def _rules(path: Path) -> str:
    """The text of a tokenizer.json. Raises ValueError, naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no tokenizer.json ({error}); check the path") from None
    return text


def _tokenizer(rules: str) -> Any:
    """The tokenizer of a tokenizer.json, built once for each text."""
    if rules not in _TOKENIZERS:
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ValueError(
                "a tokenizer.json is read by the package tokenizers; pip install scoresde[text]"
            ) from None
        try:
            _TOKENIZERS[rules] = Tokenizer.from_str(rules)
        except Exception as error:  # tokenizers raises Exception itself
            raise ValueError(f"no rules of a tokenizer ({error}); check tokenizer.json") from None
    return _TOKENIZERS[rules]


_TOKENIZERS: dict[str, Any] = {}
