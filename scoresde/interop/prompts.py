"""Prompts of published pipelines: the ids of their tokenisers, and their frozen text encoders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.conditions import Condition
from scoresde.conditions.condition import Joined
from scoresde.conditions.frozen_text import tokenizer_in
from scoresde.conditions.tokens import sentences_of
from scoresde.interop.folder import Folder, FolderError
from scoresde.interop.modules import module_of
from scoresde.training.safe_files import printable

T5_LENGTH = 256
"""Tokens of T5 in the pipeline of Stable Diffusion 3."""
SILENT = -1
"""The id in the place of all tokens where nothing is said and the states are zeros."""


class Reader(NamedTuple):
    """A tokeniser of transformers, its frozen text encoder, and the number of ids of a prompt."""

    tokenizer: Any
    encoder: Any
    length: int


def reader(
    folder: Folder, number: str = "", dtype: torch.dtype = torch.float32, length: int | None = None
) -> Reader:
    """What reads prompts in the parts text_encoder and tokenizer of a pipeline. Raises ValueError.

    Args:
        folder: folder of the pipeline.
        number: what stands behind the names of the parts, such as _2.
        dtype: dtype of the weights.
        length: ids of a prompt; by default as many as the tokeniser says.
    """
    encoder, words = f"text_encoder{number}", f"tokenizer{number}"
    for part, classes in ((encoder, ENCODERS), (words, TOKENIZERS)):
        if (found := folder.part(part)) is None:
            raise FolderError(f"{folder.path}: {part} is missing; get the whole folder")
        if found[0] != "transformers" or found[1] not in classes:
            raise FolderError(
                f"{folder.path}: {part} is a {printable(found[1])} of {printable(found[0])}, and "
                f"prompts are read by {' or '.join(classes)} of transformers"
            )
    model = module_of(folder, encoder, dtype)
    if getattr(model.config, "use_attention_mask", False):
        raise FolderError(
            f"{folder.path / encoder / 'config.json'}: use_attention_mask hides the padding from "
            "the encoder, which is not supported"
        )
    tokenizer = tokenizer_in(folder.path / words, folder.index[words][1])
    most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 2**20))
    if length is None and most == 2**20:
        raise FolderError(
            f"{folder.path / words / 'tokenizer_config.json'}: no model_max_length, and so no "
            "length of a prompt; give it there"
        )
    return Reader(tokenizer, model, int(most) if length is None else length)


ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")


class Prompt(Condition):
    """A sentence as a pipeline of diffusers reads it: ids padded to a length, and their states.

    y (n, L) are the ids of all tokenisers side by side. A prompt of more tokens is refused, where
    the pipelines leave out its end with a warning; with ``cut`` set it is left out here too. The
    last ``skip`` layers of CLIP are left out, of the prompt and of what is said against (their
    clip_skip is of the prompt only). The encoders are frozen, and stay in evaluation mode.

    Args:
        readers: tokenisers and encoders, in the order of the pipeline.
    """

    sentences = True
    dropout = 0.1  # of Stable Diffusion
    skip: int = 0
    cut: bool = False

    def __init__(self, readers: Sequence[Reader]) -> None:
        super().__init__()
        self.tokenizers = [each.tokenizer for each in readers]
        self.lengths = [each.length for each in readers]
        self.encoders: Any = nn.ModuleList(each.encoder for each in readers)
        self.train(False)

    @staticmethod
    def measured(values: Any, **settings: Any) -> dict[str, Any]:
        raise ValueError("a prompt of a pipeline is not decided by data; load its folder")

    def train(self, mode: bool = True) -> Prompt:
        return super().train(False)  # T5 has dropout

    def read(self, values: Any) -> Tensor:
        """A sentence or several. Raises ValueError for one of more tokens than are read."""
        sentences = sentences_of(values)
        pairs = zip(self.tokenizers, self.lengths, strict=True)
        return torch.cat([self._ids(each, length, sentences) for each, length in pairs], 1)

    def _ids(self, tokenizer: Any, length: int, sentences: list[str]) -> Tensor:
        whole = tokenizer(sentences, verbose=False).input_ids
        for sentence, ids in zip(sentences, whole, strict=True):
            if len(ids) > length and not self.cut:
                lost = tokenizer.decode(ids[length - 1 : -1])
                raise ValueError(
                    f"a prompt of {len(ids)} tokens with its start and end, and the text encoder "
                    f"reads {length}: it would not see {lost[:40]!r}; shorten {sentence[:40]!r}"
                )
        found = tokenizer(sentences, padding="max_length", max_length=length, truncation=True)
        return torch.tensor(found.input_ids)

    def takes(self) -> str:
        most = min(self.lengths)
        return f"a sentence of at most {most} tokens, its start and end included"

    def null(self, n: int) -> Tensor:
        """The ids of the empty prompt."""
        return self.read("").expand(n, -1)

    @abstractmethod
    def forward(self, y: Tensor) -> Joined: ...


@final
class OnePrompt(Prompt):
    """The last states of one encoder: Stable Diffusion 1 and 2, arXiv 2112.10752."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        super().__init__(readers)
        self.context = int(self.encoders[0].config.hidden_size)

    def forward(self, y: Tensor) -> Joined:
        encoder = self.encoders[0]
        if not self.skip:
            return Joined(context=encoder(y)[0])
        states = encoder(y, output_hidden_states=True).hidden_states[-1 - self.skip]
        return Joined(context=getattr(encoder, "text_model", encoder).final_layer_norm(states))


@final
class TwoPrompts(Prompt):
    """Two encoders side by side: Stable Diffusion XL, arXiv 2307.01952.

    ``context`` are the states before the last layer of both, ``embed`` is the projected state at
    the end of the second. With ``silent`` both are zeros where nothing is said, which differs from
    the empty prompt (force_zeros_for_empty_prompt).
    """

    def __init__(self, readers: Sequence[Reader], silent: bool) -> None:
        super().__init__(readers)
        self.silent = silent
        self.context = sum([int(each.config.hidden_size) for each in self.encoders])
        self.embed = int(self.encoders[-1].config.projection_dim)

    def null(self, n: int) -> Tensor:
        return torch.full((n, sum(self.lengths)), SILENT) if self.silent else super().null(n)

    def forward(self, y: Tensor) -> Joined:
        said = y[:, :1] != SILENT
        states, pooled = clip_states(
            self.encoders, y.clamp(min=0).split(self.lengths, 1), self.skip
        )
        return Joined(embed=pooled[-1] * said, context=states * said[:, :, None])


@final
class ThreePrompts(Prompt):
    """Two encoders of CLIP, then T5: Stable Diffusion 3, arXiv 2403.03206.

    ``context`` are the states before the last layer of both, lengthened by zeros to ``width``, and
    after them those of T5, or zeros without T5. ``embed`` are the projected states at the ends.
    """

    def __init__(self, readers: Sequence[Reader], width: int) -> None:
        super().__init__(readers)
        self.context = self.width = width
        self.embed = sum([int(each.config.projection_dim) for each in self.encoders[:2]])

    def forward(self, y: Tensor) -> Joined:
        ids = y.split(self.lengths, 1)
        states, pooled = clip_states(self.encoders[:2], ids[:2], self.skip)
        states = F.pad(states, (0, self.width - states.shape[2]))
        if len(self.encoders) > 2:
            others = self.encoders[2](ids[2])[0]
        else:
            others = states.new_zeros(len(y), T5_LENGTH, self.width)
        return Joined(embed=torch.cat(pooled, 1), context=torch.cat([states, others], 1))


def clip_states(encoders: Any, ids: Sequence[Tensor], skip: int) -> tuple[Tensor, list[Tensor]]:
    """States (n, L, d) before the last layer, side by side, and the projected ones of the end."""
    found = [
        encoder(each, output_hidden_states=True)
        for encoder, each in zip(encoders, ids, strict=True)
    ]
    states = torch.cat([each.hidden_states[-2 - skip] for each in found], 2)
    return states, [each[0] for each in found if each[0].ndim == 2]


@final
class Frame(Condition):
    """What Stable Diffusion XL is told of sizes, in pixels, arXiv 2307.01952, section 2.2.

    Six numbers: height and width of the original, top and left of its crop, height and width that
    are wanted. Nothing said is ``size``, height and width of the pictures, without a crop.
    """

    size: tuple[int, ...] = (1024, 1024)
    embed = 6
    dropout = 0.1  # it may be left out

    @staticmethod
    def measured(values: Any, **settings: Any) -> dict[str, Any]:
        raise ValueError("sizes of a pipeline are not decided by data; load its folder")

    def read(self, values: Any) -> Tensor:
        try:
            found = torch.as_tensor(values, dtype=torch.float64)
        except (TypeError, ValueError):
            raise ValueError(f"need six numbers, got {values!r}") from None
        found = found[None] if found.ndim == 1 else found
        if found.ndim != 2 or found.shape[1] != 6 or not bool(found.isfinite().all()):
            raise ValueError(f"need {self.takes()}, got {values!r}")
        return found

    def written(self, text: str) -> list[float]:
        try:
            return [float(part) for part in text.split(",")]
        except ValueError:
            raise ValueError(f"need {self.takes()}, got {text!r}") from None

    def takes(self) -> str:
        return "six numbers: original height, width, crop top, left, wanted height, width"

    def null(self, n: int) -> Tensor:
        return self.read([*self.size, 0, 0, *self.size]).expand(n, -1)

    def forward(self, y: Tensor) -> Joined:
        return Joined(embed=y)
