"""Finding state that another sequence has computed already, by what it was computed from.

A token's state depends on the tokens up to it, on the frequencies of its rotary embedding, and on
nothing else. So the contents of a page have as their key the digest of its tokens chained to the
key of the page before it, which starts from everything else that must be equal. Whoever has the
same key has the same contents, bit for bit where a backend's bits do not depend on the batch.
"""

from __future__ import annotations

import hashlib

import numpy as np

from firstlight.engine.pages import PageAllocator
from firstlight.engine.sequence import Sequence
from firstlight.model.rope import frequency_regime
from firstlight.model.spec import ModelSpec

_DIGEST_BYTES = 32  # collisions cannot be made, so nobody can have another's state handed to them


class PrefixCache:
    """Pages of all sequences by the tokens that they hold the state of.

    Args:
        spec: of the model.
        pages: whose pages these are.
        enabled: where not, nothing is ever found.
    """

    def __init__(self, spec: ModelSpec, pages: PageAllocator, enabled: bool = True) -> None:
        self.enabled = enabled
        self._spec = spec
        self._pages = pages

    def keys(self, sequence: Sequence, count: int) -> list[bytes]:
        """At least the first `count` pages' keys of a sequence that has tokens for so many."""
        keys, size = sequence.pages.keys, self._pages.page_tokens
        while len(keys) < count:
            start = len(keys) * size
            before = keys[-1] if keys else self._root(sequence)
            tokens = np.array(sequence.token_ids[start : start + size], np.int32).tobytes()
            keys.append(hashlib.blake2b(before + tokens, digest_size=_DIGEST_BYTES).digest())
        return keys

    def cached_pages(self, sequence: Sequence) -> int:
        """How many of a sequence's first pages can be had, so that at least one token is left to
        compute.

        In a group with a window only the pages that the next token sees need be there.
        """
        if not self.enabled or sequence.receive_prompt_logits is not None:
            return 0
        most = (sequence.length - 1) // self._pages.page_tokens
        keys = self.keys(sequence, most)
        pools = self._pages.pools
        windows = [group.window for group in self._pages.groups]
        runs = [0] * len(pools)  # how many pages that end here are there without a gap
        best = 0
        for count in range(1, most + 1):
            key, usable = keys[count - 1], True
            for group, pool in enumerate(pools):
                runs[group] = runs[group] + 1 if pool.find(key) is not None else 0
                first = self._pages.first_seen(group, count * self._pages.page_tokens)
                usable = usable and runs[group] >= count - first
                if not runs[group] and windows[group] is None:
                    return best
            if usable:
                best = count
        return best

    def publish(self, sequence: Sequence) -> range:
        """Let the pages that are computed whole be found; which of its pages are so from now."""
        count = sequence.computed // self._pages.page_tokens
        before = sequence.pages.published
        if not self.enabled or count <= before:
            return range(0)
        self.keys(sequence, count)
        self._pages.publish(sequence.pages, count)
        return range(before, count)

    def _root(self, sequence: Sequence) -> bytes:
        """What must be equal beside the tokens."""
        regime = frequency_regime(self._spec, sequence.length_floor)
        return hashlib.blake2b(repr((sequence.tenant, regime)).encode()).digest()
