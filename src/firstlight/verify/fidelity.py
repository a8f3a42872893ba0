"""A model in one configuration beside the same model in another, token by token, over texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from firstlight.errors import RequestError
from firstlight.progress import ProgressFactory, progress
from firstlight.verify.divergence import Divergence, total

if TYPE_CHECKING:
    from firstlight.formats.base import Floats
    from firstlight.language_model import LanguageModel

# Rows of logits that are held of each model: 64 MiB of float32 where the vocabulary has 262,144.
CHUNK_TOKENS = 64


@dataclass(frozen=True)
class Configuration:
    """How a model is run; see `loading.load`.

    Attributes:
        device: backend.
        weights: storage format to convert to; None: as stored.
        state: dtype of keys and values; "auto": the usual one.
        exact: whether activations are kept in float32 where kernels might round them.
    """

    device: str = "cpu"
    weights: str | None = None
    state: str = "auto"
    exact: bool = False

    def __str__(self) -> str:
        parts = [self.device, f"weights {self.weights or 'as stored'}"]
        if self.state != "auto":
            parts.append(f"state {self.state}")
        return ", ".join([*parts, "exact"] if self.exact else parts)


# As near to the definition as is fast: `numpy` is the definition itself.
REFERENCE = Configuration(exact=True)


@dataclass(frozen=True)
class Fidelity:
    """What came of a comparison.

    Attributes:
        configuration, reference: what was compared with what.
        texts: by name.
    """

    configuration: Configuration
    reference: Configuration
    texts: Mapping[str, Divergence]

    @property
    def total(self) -> Divergence:
        """Over all texts, each token counting alike."""
        return total(self.texts.values())


def measure_fidelity(
    model: str | Path,
    configuration: Configuration,
    reference: Configuration = REFERENCE,
    texts: Mapping[str, str] | None = None,
    *,
    tokens: int | None = None,
    endpoint: str | None = None,
    update: bool = False,
    progress: ProgressFactory = progress,
) -> Fidelity:
    """Run a model in both configurations over the texts, and compare every prediction.

    Args:
        model, endpoint, update: as `loading.load` takes them.
        texts: by name; None: the built-in ones, of prose, code and Chinese.
        tokens: at most so many from the start of each text; and never more than the model's
            context holds. None: all.

    Raises:
        FirstlightError: the model cannot be loaded in one of the configurations, has no tokenizer
            that works, or a text has fewer than two tokens.
    """
    from firstlight.checkpoint.resolve import resolve_model
    from firstlight.verify.texts import BUILT_IN

    if tokens is not None and tokens < 2:
        raise RequestError("tokens", "a comparison needs two or more", "Choose a larger number")
    path = resolve_model(str(model), endpoint=endpoint, update=update)
    encoded = _encode(path, BUILT_IN if texts is None else texts, tokens)
    longest = max(map(len, encoded.values()))
    theirs, ours = (_load(path, each, longest) for each in (reference, configuration))
    found = {name: Divergence() for name in encoded}
    with progress("Comparing", total=sum(map(len, encoded.values())), unit="tokens") as advance:
        for name, token_ids in encoded.items():
            done = 0
            for expected, logits in _both(theirs, ours, token_ids):
                following = token_ids[done + 1 : done + len(expected) + 1]
                found[name].add(expected, logits, following)
                advance(len(expected))
                done += len(expected)
    return Fidelity(configuration, reference, found)


def _both(
    theirs: LanguageModel, ours: LanguageModel, token_ids: list[int]
) -> Iterator[tuple[Floats, Floats]]:
    """Logits of the same tokens from either model, a chunk at a time."""
    with (
        closing(theirs.engine.logits_in_chunks(token_ids)) as expected,
        closing(ours.engine.logits_in_chunks(token_ids)) as found,
    ):
        yield from zip(expected, found, strict=True)


def _encode(path: Path, texts: Mapping[str, str], tokens: int | None) -> dict[str, list[int]]:
    """Each text's token ids, cut to what the model's context holds."""
    from firstlight.checkpoint.checkpoint import open_checkpoint
    from firstlight.checkpoint.tokenizer_loading import load_tokenizer
    from firstlight.model.families.registry import make_spec

    if not texts:
        raise RequestError("texts", "there is none", "Give one, or leave it to the built-in ones")
    checkpoint = open_checkpoint(path)
    context_length = make_spec(checkpoint).context_length
    longest = context_length if tokens is None else min(tokens, context_length)
    tokenizer = load_tokenizer(checkpoint)
    encoded = {name: tokenizer.encode(text)[:longest] for name, text in texts.items()}
    for name, token_ids in encoded.items():
        if len(token_ids) < 2:
            raise RequestError(
                f"text {name}", "has fewer than two tokens", "Give a text that can be predicted"
            )
    return encoded


def _load(path: Path, configuration: Configuration, context_length: int) -> LanguageModel:
    from firstlight.loading import load

    return load(
        path,
        configuration.device,
        configuration.weights,
        context_length=context_length,
        state=configuration.state,
        exact=configuration.exact,
        token_budget=CHUNK_TOKENS,
        use="text",
    )
