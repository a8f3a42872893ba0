"""A loaded model: text in, text out."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from firstlight.backends.base import Backend
from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.checkpoint.tokenizer import Tokenizer
from firstlight.engine.engine import Engine
from firstlight.engine.parameters import SamplingParameters, StopConditions, check_whole
from firstlight.engine.scoring import PromptScores, TokenScore
from firstlight.errors import RequestError, TokenizerError
from firstlight.formats.base import Floats
from firstlight.generation import Generation, Piece
from firstlight.model.spec import ModelSpec

if TYPE_CHECKING:
    from firstlight.streaming import StreamDriver

DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True)
class ScoredText:
    """How likely a text is under the model.

    Attributes:
        token_ids: of the text, with the special tokens that the model expects.
        scores: of each token from the second on, given those before it.
    """

    token_ids: list[int]
    scores: list[TokenScore]

    @property
    def log_probabilities(self) -> list[float]:
        """Of each token from the second on."""
        return [score.log_probability for score in self.scores]

    @property
    def log_probability(self) -> float:
        """Of the whole after its first token."""
        return sum(self.log_probabilities)


class LanguageModel:
    """What `firstlight.load` gives.

    Attributes:
        checkpoint: the files.
        spec: what the model is.
        tokenizer: text to token ids and back; None where the checkpoint has none that works. Then
            only token ids can be used, and text is refused with the reason.
        engine: runs the sequences.
        backend: the chip that it runs on.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        tokenizer: Tokenizer | TokenizerError,
        engine: Engine,
        backend: Backend,
    ) -> None:
        self.checkpoint = checkpoint
        self.spec = spec
        self.tokenizer = None if isinstance(tokenizer, TokenizerError) else tokenizer
        self._tokenizer_error = tokenizer if isinstance(tokenizer, TokenizerError) else None
        self.engine = engine
        self.backend = backend
        self._driver: StreamDriver | None = None

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int | None = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] = (),
        ignore_end: bool = False,
        log_probabilities: int | None = None,
        seed: int | None = None,
        **sampling: Any,
    ) -> Generation:
        """Continue a prompt.

        Args:
            prompt: text, to which the tokenizer adds the special tokens that the model expects;
                or token ids, taken as they are.
            max_tokens: at most so many new tokens; None: until the model ends the text or the
                context is full.
            stop: strings that end the text and are not part of it.
            ignore_end: go on past the model's own end tokens.
            log_probabilities: give each token's log probability, and those of so many likeliest.
            seed: makes sampling repeatable; None: drawn anew.
            sampling: fields of `SamplingParameters`; those not given come from the model's own
                generation config, and without one the likeliest token is taken.

        Returns:
            A `Generation`: iterate it for pieces as they come, or read its `text`.

        Raises:
            RequestError: a parameter is out of range, or the prompt does not fit.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if self.tokenizer is not None and not ignore_end:
            stops += self.checkpoint.generation.stop_strings
        conditions = StopConditions(max_tokens, frozenset() if ignore_end else self.end_ids, stops)
        if stops and self.tokenizer is None:
            raise RequestError("stop", "needs a tokenizer, and this model has none", "Leave it out")
        return Generation(
            self.engine,
            self.tokenizer,
            self.encode(prompt) if isinstance(prompt, str) else list(prompt),
            self.sampling(seed=seed, **sampling),
            conditions,
            log_probabilities,
        )

    def generate_many(
        self, prompts: Iterable[str | Sequence[int]], **parameters: Any
    ) -> list[Generation]:
        """Continue many prompts at once: whichever is iterated, all go on together.

        A seed is every prompt's own, so each gives what it would give alone. Parameters as
        `generate`.

        Returns:
            One `Generation` for each prompt, in order.

        Raises:
            RequestError: as `generate`; then none of them is begun.
        """
        generations: list[Generation] = []
        try:
            for prompt in prompts:
                generations.append(self.generate(prompt, **parameters))
        except BaseException:
            for generation in generations:
                generation.close()
            raise
        return generations

    async def stream(self, prompt: str | Sequence[int], **parameters: Any) -> AsyncIterator[Piece]:
        """Continue a prompt in asynchronous code; any number of streams at once.

        A thread does the computing, while the event loop is free. Leaving the loop over the pieces
        and closing the iterator (`contextlib.aclosing`) ends the generation and frees its state.
        Parameters as `generate`; for a conversation, the prompt is `encode_chat(messages)`.

        Raises:
            FirstlightError: as `generate`, when the first piece is asked for; or no next token
                could be chosen, after the pieces before it.
        """
        from firstlight.streaming import StreamDriver  # asyncio takes its time to import

        if self._driver is None:
            self._driver = StreamDriver(self.engine)
        stream = self._driver.open(lambda: self.generate(prompt, **parameters))
        try:
            async for piece in stream:
                yield piece
        finally:
            stream.close()

    def logprobs(
        self, texts: Iterable[str | Sequence[int]], likeliest: int = 0
    ) -> list[ScoredText]:
        """How likely texts are, many computed at once; memory does not grow with their length.

        Args:
            texts: text, to which the tokenizer adds the special tokens that the model expects; or
                token ids, taken as they are.
            likeliest: for each token give so many of the likeliest in its place as well.

        Raises:
            RequestError: a text does not fit, or `likeliest` is out of range.
        """
        check_whole("likeliest", likeliest, 0, self.spec.vocabulary_size)
        encoded = [self.encode(each) if isinstance(each, str) else list(each) for each in texts]
        scored = [PromptScores(token_ids, likeliest) for token_ids in encoded]
        sequences = []
        try:
            for each in scored:
                sequences.append(
                    self.engine.add(
                        each.token_ids,
                        SamplingParameters(),
                        StopConditions(max_tokens=0),
                        receive_prompt_logits=each,
                    )
                )
            while any(sequence.finish is None for sequence in sequences):
                self.engine.step()
        finally:
            for sequence in sequences:
                self.engine.remove(sequence)
        return [ScoredText(list(each.token_ids), each.scores) for each in scored]

    def chat(self, messages: Sequence[Mapping[str, Any]], **parameters: Any) -> Generation:
        """Answer a conversation; messages have "role" and "content". Parameters as `generate`.

        Raises:
            TokenizerError: the model has no chat template, or the template objects.
        """
        return self.generate(self.encode_chat(messages), **parameters)

    def logits(self, token_ids: Sequence[int]) -> Floats:
        """The model's logits after each token: float32 [tokens, vocabulary].

        Raises:
            RequestError: no tokens, too many, or ids outside the vocabulary.
        """
        return self.engine.logits(token_ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens that the model expects."""
        return self._need_tokenizer().encode(text)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, up to where the answer starts."""
        tokenizer = self._need_tokenizer()
        if tokenizer.chat_template is None:
            raise no_chat_template(self.checkpoint)
        return tokenizer.encode(tokenizer.chat_template.render(messages), add_special=False)

    def sampling(self, seed: int | None = None, **given: Any) -> SamplingParameters:
        """Sampling parameters: what is given, else the model's own defaults.

        Raises:
            RequestError: an unknown name or a value out of range.
        """
        unknown = given.keys() - SamplingParameters.__dataclass_fields__.keys()
        if unknown:
            known = ", ".join(SamplingParameters.__dataclass_fields__)
            raise RequestError(sorted(unknown)[0], "is no sampling parameter", f"Known: {known}")
        defaults = self.checkpoint.generation.sampling()
        chosen = {key: value for key, value in given.items() if value is not None}
        parameters = SamplingParameters(**{**defaults, **chosen})
        return replace(parameters, seed=secrets.randbits(63) if seed is None else seed)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        own = self.tokenizer.end_ids if self.tokenizer is not None else frozenset()
        return own | frozenset(self.checkpoint.generation.stop_token_ids)

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            assert self._tokenizer_error is not None
            raise self._tokenizer_error
        return self.tokenizer


def no_chat_template(checkpoint: Checkpoint) -> TokenizerError:
    """The error for a conversation with a model that is not made for it."""
    return TokenizerError(
        checkpoint.location,
        "the model has no chat template: it is a base model, which continues text",
        "Use `firstlight run` or `generate`, or an instruction-tuned model",
    )
