"""Text out of token ids, one id at a time, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Container
from typing import Literal

ByteErrors = Literal["replace", "firstlight-replace-each-byte"]
"""What stands for bytes that are no UTF-8.

"replace": one U+FFFD for each maximal part of a character that cannot go on (Unicode 16.0,
section 3.9, "Constraints on Conversion Processes"), as byte-level tokenizers do.
"firstlight-replace-each-byte": one U+FFFD for each byte, as SentencePiece does for byte tokens.
"""

LeadingSpace = Literal["keep", "drop one", "drop in first token"]
"""What becomes of the space at the very start, which some tokenizers add to every text."""


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("firstlight-replace-each-byte", _replace_each_byte)


class TextStream:
    """Turns the ids of one text into that text, as soon as each character is whole.

    All that `push` and `finish` return, joined, is what `Tokenizer.decode` gives for all ids. The
    work for an id does not depend on how many came before.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        hidden_ids: Container[int] = (),
        byte_errors: ByteErrors = "replace",
        leading_space: LeadingSpace = "keep",
    ) -> None:
        """`token_bytes` gives the bytes of an id, b"" if there is no such token; `hidden_ids` are
        left out of the text."""
        self._token_bytes = token_bytes
        self._hidden_ids = hidden_ids
        self._decoder = codecs.getincrementaldecoder("utf-8")(byte_errors)
        self._leading_space = leading_space

    def push(self, token_id: int) -> str:
        """The text that this id finishes; "" while a character's last bytes are still to come."""
        if token_id in self._hidden_ids:
            return ""
        data = self._token_bytes(token_id)
        if self._leading_space == "drop in first token" and data:
            data = data.replace(b" ", b"")
            self._leading_space = "keep"
        return self._without_leading_space(self._decoder.decode(data))

    def finish(self) -> str:
        """What is still held back: U+FFFD for a character whose last bytes never came.

        The stream then stands at the start of a text that goes on from here.
        """
        text = self._without_leading_space(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        return text

    def _without_leading_space(self, text: str) -> str:
        if self._leading_space == "drop one" and text:
            self._leading_space = "keep"
            return text[text[0] == " " :]
        return text
