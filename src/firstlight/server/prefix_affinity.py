"""Which replica has computed how a prompt begins, so that the next turn of a chat goes there."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from firstlight.replica.messages import SequenceRequest

_SHORTEST = 64
_MOST_ENTRIES = 8192


class PrefixAffinity:
    """Remembers the holders of prefixes of 64, 128, 256, ... tokens, the latest few thousand.

    A prompt that shares n tokens with an earlier one so finds who has at least half of them, for
    the price of hashing it twice. What is found is a hint: whether the state is still there, and
    whether two prefixes only hash alike, changes where a request is computed and nothing else.
    """

    def __init__(self) -> None:
        self._holders: OrderedDict[int, Hashable] = OrderedDict()

    def holder(self, model: str, request: SequenceRequest) -> Hashable | None:
        """Who was last given the longest prefix of this prompt that anybody was given."""
        for key in reversed(_keys(model, request)):
            holder = self._holders.get(key)
            if holder is not None:
                return holder
        return None

    def note(self, model: str, request: SequenceRequest, holder: Hashable) -> None:
        """Remember who computes this prompt."""
        for key in _keys(model, request):
            self._holders[key] = holder
            self._holders.move_to_end(key)
        while len(self._holders) > _MOST_ENTRIES:
            self._holders.popitem(last=False)


def _keys(model: str, request: SequenceRequest) -> list[int]:
    """Hashes of the prompt's prefixes, the shortest first."""
    prompt_ids, keys = request.prompt_ids, []
    length = _SHORTEST
    while length <= len(prompt_ids):
        keys.append(hash((model, request.tenant, tuple(prompt_ids[:length]))))
        length *= 2
    return keys
