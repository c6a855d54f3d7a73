"""A sentence by a text model of somebody else, which stays as it is."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from scoresde.arguments import Count, Fraction, check
from scoresde.atomic import atomic_write
from scoresde.conditions.condition import Condition, Joined
from scoresde.conditions.tokens import sentences_of

NEEDS = "a text model is run by the package transformers; pip install scoresde[text]"


@final
class FrozenText(Condition):
    """The states of a frozen text model, such as that of CLIP or MiniLM, from a local folder.

    The folder is one of transformers, with config.json, tokenizer.json and weights, or one with
    the folders tokenizer and text_encoder of a Stable Diffusion model. Nothing is downloaded. y
    are the states (n, length, d) in half precision, NaN behind the end of a sentence; they are
    computed once and stored by sentence. ``context`` is a linear map of them, or with ``width``
    null they themselves; ``embed`` is the mean over the words. With ``padded`` y are the states of
    all ``length`` tokens in float32, padding included, and the network is told them alone, without
    a mask, as in Stable Diffusion. Raises ValueError for a folder that is none, and for ``padded``
    with a width.

    Args:
        folder: folder of the text model.
        length: most tokens of a sentence, its start and end included.
        width: width of the context; null for that of the text model.
        padded: tell the network what Stable Diffusion tells it: the states of a sentence padded to
            the length, and nothing more; needed to export the model.
        cache: folder of the stored states; by default one for temporary files.
        dropout: fraction of the training examples without their sentence.
        states: width of the states of the text model.
    """

    sentences = True

    def __init__(
        self,
        folder: Path,
        *,
        length: Count = 77,
        width: Count | None = None,
        padded: bool = False,
        cache: Path | None = None,
        dropout: Fraction = 0.1,
        states: Count | None = None,
    ) -> None:
        super().__init__()
        check(FrozenText, {k: v for k, v in locals().items() if k != "self"})
        if padded and width is not None:
            raise ValueError("width: padded=true tells the states as they are; leave it out")
        self.folder, self.length, self.dropout = Path(folder).expanduser(), length, dropout
        self.padded = padded
        self.cache = Path(cache or Path(tempfile.gettempdir()) / "scoresde-text").expanduser()
        self.states = states or width_of(self.folder)
        self.context = width or self.states
        self.embed = 0 if padded else self.states
        self.project = nn.Identity() if width is None else nn.Linear(self.states, width)

    @staticmethod
    def measured(values: Any, folder: Path | None = None, **settings: Any) -> dict[str, Any]:
        if folder is None:
            raise ValueError("the folder of the text model is not given")
        return {"states": width_of(Path(folder).expanduser())}

    def read(self, values: Any) -> Tensor:
        """A sentence or several. Sentences whose states are not stored are encoded."""
        sentences = sentences_of(values)
        different = list(dict.fromkeys(sentences))
        places = [self._place(sentence) for sentence in different]
        missing = [k for k, place in enumerate(places) if not place.is_file()]
        for first in range(0, len(missing), 64):
            some = missing[first : first + 64]
            found = encoded(self.folder, [different[k] for k in some], self.length, self.padded)
            for k, states in zip(some, found, strict=True):
                places[k].parent.mkdir(parents=True, exist_ok=True)
                atomic_write(places[k], partial(_save, states))
        table = torch.full((len(different), self.length, self.states), math.nan)
        table = table if self.padded else table.half()
        for row, place in zip(table, places, strict=True):
            states = np.load(place, allow_pickle=False)
            row[: len(states)] = torch.from_numpy(states)
        index = {sentence: k for k, sentence in enumerate(different)}
        return table[[index[sentence] for sentence in sentences]]

    def takes(self) -> str:
        return f"a sentence of at most {self.length} tokens, read by {self.folder.name}"

    def null(self, n: int) -> Tensor:
        """The states of the empty sentence."""
        return self.read("").expand(n, -1, -1)

    def forward(self, y: Tensor) -> Joined:
        if self.padded:
            return Joined(context=y)
        mask = ~torch.isnan(y[..., 0])
        dtype = next((p.dtype for p in self.project.parameters()), torch.float32)
        states = y.masked_fill(~mask[:, :, None], 0).to(dtype)
        mean = states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return Joined(embed=mean, context=self.project(states), mask=mask)

    def _place(self, sentence: str) -> Path:
        name = hashlib.sha256(sentence.encode()).hexdigest()
        model = hashlib.sha256(f"{self.folder.resolve()} {_stamp(self.folder)}".encode())
        kind = f"{self.length}{'-padded' if self.padded else ''}"
        return self.cache / f"{model.hexdigest()[:16]}-{kind}" / name[:2] / f"{name}.npy"


def width_of(folder: Path) -> int:
    """The width of the states of a text model. Raises ValueError, naming the folder."""
    config: Any = opened(folder)[1].config
    return int(getattr(config, "text_config", config).hidden_size)


def encoded(
    folder: Path, sentences: Sequence[str], length: int, padded: bool = False
) -> list[np.ndarray]:
    """The last hidden states (tokens, d) of each sentence, in half precision.

    With ``padded`` (length, d), those of the padding too, in float32; the text model attends to
    all. Raises ValueError for a sentence of more than ``length`` tokens, and for a text model that
    reads fewer than it is to be padded to.
    """
    tokenizer, model = opened(folder)
    most = min(length, int(getattr(model.config, "max_position_embeddings", length)))
    if padded and most < length:
        raise ValueError(
            f"length={length}: the text model in {folder} reads {most}; set it to that"
        )
    counts = [len(ids) for ids in tokenizer(list(sentences), verbose=False)["input_ids"]]
    for sentence, count in zip(sentences, counts, strict=True):
        if count > most:
            raise ValueError(
                f"a sentence of {count} tokens, and the text model reads {most}: "
                f"{sentence[:40]!r}; shorten it"
            )
    fill = {"padding": "max_length", "max_length": length} if padded else {"padding": True}
    found = tokenizer(list(sentences), return_tensors="pt", **fill)
    names = ("input_ids",) if padded else ("input_ids", "attention_mask")
    with torch.no_grad():
        states = model(**{name: found[name] for name in names}).last_hidden_state
    if padded:
        return list(states.numpy())
    return [row[:n].half().numpy() for row, n in zip(states, counts, strict=True)]


def opened(folder: Path) -> tuple[Any, Any]:
    """The tokenizer and the text model of a folder, opened once. Raises ValueError."""
    key = f"{folder.resolve()} {_stamp(folder)}"
    if key not in _OPEN:
        encoder, words = _parts(folder)
        found = tokenizer_in(words), encoder_in(encoder)
        _OPEN.clear()  # one at a time in memory
        _OPEN[key] = found
    return _OPEN[key]


def tokenizer_in(folder: Path, kind: str = "AutoTokenizer") -> Any:
    """The tokenizer in a folder, of a class of transformers. Raises ValueError."""
    return _pretrained(folder, kind)


def encoder_in(
    folder: Path,
    kind: str | None = None,
    dtype: torch.dtype = torch.float32,
    variant: str | None = None,
) -> Any:
    """The frozen text model in a folder, each weight read once. Raises ValueError.

    Args:
        folder: folder with config.json and weights in safetensors.
        kind: class of transformers; by default that of the encoder that the configuration names.
        dtype: dtype of the weights.
        variant: variant of the weights, such as fp16.
    """
    if kind is None:
        named = str(_pretrained(folder, "AutoConfig").model_type)
        kind = "CLIPTextModel" if named.startswith("clip") else _ENCODERS.get(named, "AutoModel")
    options = {"use_safetensors": True, "variant": variant, "output_loading_info": True}
    model, told = _pretrained(folder, kind, dtype=dtype, **options)
    # They would be random, with a warning only. No state depends on the pooler of BERT.
    if missing := sorted(name for name in told["missing_keys"] if "pooler" not in name):
        raise ValueError(
            f"{folder}: {len(missing)} weights of {kind} are missing, such as {missing[0]}; get "
            "the whole folder"
        )
    return model.eval().requires_grad_(False)


_ENCODERS = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel", "mt5": "MT5EncoderModel"}
"""Models that have a decoder too."""


def _pretrained(folder: Path, kind: str, **options: Any) -> Any:
    """What a class of transformers reads from a folder, and from nowhere else."""
    try:
        import transformers
    except ImportError:
        raise ValueError(NEEDS) from None
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; get the whole model")
    try:
        return getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, **options
        )
    except Exception as error:  # transformers, tokenizers and safetensors raise many types
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder}: no folder of a text model ({text})") from None


def _parts(folder: Path) -> tuple[Path, Path]:
    """Folders of the encoder and of the tokenizer: beside each other in a pipeline."""
    if (folder / "text_encoder").is_dir():
        return folder / "text_encoder", folder / "tokenizer"
    beside = folder.with_name(folder.name.replace("text_encoder", "tokenizer"))
    return folder, beside if beside.is_dir() else folder


_OPEN: dict[str, tuple[Any, Any]] = {}


def _stamp(folder: Path) -> str:
    """Names, sizes and times of the weights, which change with them."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("text_encoder/*.safetensors")])
    if not files:
        raise ValueError(f"{folder}: no folder of a text model (no .safetensors); check the path")
    return " ".join(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)


def _save(states: np.ndarray, file: Path) -> None:
    with file.open("wb") as opened:
        np.save(opened, states, allow_pickle=False)
