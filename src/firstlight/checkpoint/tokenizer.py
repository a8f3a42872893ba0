"""What every tokenizer offers, wherever it comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

from firstlight.checkpoint.text_stream import ByteErrors, LeadingSpace, TextStream

if TYPE_CHECKING:
    from firstlight.checkpoint.chat_template import ChatTemplate


class Tokenizer(ABC):
    """Turns text into token ids and back. Safe to use from several threads at once.

    Attributes:
        vocabulary_size: ids are below it. A model's output layer may have more rows, as padding;
            ids from there have no text.
        beginning_id: the token that marks the beginning of a text, if there is one.
        end_ids: tokens that end a text or a turn, by the tokenizer's own account; a model's
            generation defaults may name more.
        special_ids: tokens that steer the model and are no part of the text.
        chat_template: how a conversation becomes a prompt, if the publisher says.
    """

    vocabulary_size: int
    beginning_id: int | None
    end_ids: frozenset[int]
    special_ids: frozenset[int]
    chat_template: ChatTemplate | None

    _byte_errors: ByteErrors = "replace"
    _leading_space: LeadingSpace = "keep"

    @abstractmethod
    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of `text`.

        Half a surrogate pair, which is no text, counts as U+FFFD.

        Args:
            text: any text, of any length.
            add_special: put in front (or behind) what the model was trained to expect there,
                usually the beginning token.
            parse_special: take "<|im_end|>" and the like as the tokens they name. False for text
                from a stranger who should not be able to end a turn.

        Raises:
            TokenizerError: the tokenizer's own data fails on this text.
        """

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of one token, perhaps only a part of a character; of a special token its
        name; b"" for an id without a token."""

    def decode(self, ids: Iterable[int], skip_special: bool = True, continues: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: of any length.
            skip_special: leave out special tokens instead of writing their names.
            continues: the ids go on from an earlier text. Some tokenizers put a space before
                every text; it is left out here, unless the text continues.
        """
        stream = self.stream(skip_special, continues)
        return "".join(map(stream.push, ids)) + stream.finish()

    def stream(
        self,
        skip_special: bool = True,
        continues: bool = False,
        kept_ids: frozenset[int] = frozenset(),
    ) -> TextStream:
        """As `decode`, for ids that come one at a time; `kept_ids` are written even if special."""
        return TextStream(
            self.token_bytes,
            self.special_ids - kept_ids if skip_special else (),
            self._byte_errors,
            "keep" if continues else self._leading_space,
        )


def without_lone_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined and each half that stands alone replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
