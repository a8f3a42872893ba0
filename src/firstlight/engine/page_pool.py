"""The pages of one stream group: in use, free, or free with contents that may be used again."""

from __future__ import annotations

from collections import OrderedDict


class PagePool:
    """Pages 0 to capacity - 1, each held by any number of sequences.

    A page whose contents have a key can be found by it. When nobody holds it any longer it is free,
    and its contents stay until it is given out anew, which happens to the one that was let go first
    and only when no other page is free.

    Args:
        capacity: how many pages there are.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        # Taken from the end, so that low pages are used first and memory is touched in order.
        self._blank = list(range(capacity - 1, -1, -1))
        self._cached: OrderedDict[int, bytes] = OrderedDict()  # free pages with contents, by age
        self._holders = [0] * capacity
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._blank) + len(self._cached)

    def take(self) -> int:
        """A free page, whose contents are lost; IndexError or KeyError where there is none."""
        if self._blank:
            page = self._blank.pop()
        else:
            page, key = self._cached.popitem(last=False)
            del self._page_of[key], self._key_of[page]
        self._holders[page] = 1
        return page

    def give_back(self, page: int) -> None:
        """Undo one `take` or `share`."""
        self._holders[page] -= 1
        if self._holders[page]:
            return
        key = self._key_of.get(page)
        if key is None:
            self._blank.append(page)
        else:
            self._cached[page] = key

    def find(self, key: bytes) -> int | None:
        """The page with these contents."""
        return self._page_of.get(key)

    def share(self, page: int) -> None:
        """Hold a page that was found."""
        if not self._holders[page]:
            del self._cached[page]
        self._holders[page] += 1

    def publish(self, page: int, key: bytes) -> None:
        """Let a page that is held be found; another one with the same contents stays the one."""
        if page not in self._key_of and self._page_of.setdefault(key, page) == page:
            self._key_of[page] = key

    def withdraw(self, page: int) -> None:
        """Contents of a page that is held are about to change: it can no longer be found."""
        key = self._key_of.pop(page, None)
        if key is not None:
            del self._page_of[key]

    def shared(self, page: int) -> bool:
        """Whether more than one sequence holds it."""
        return self._holders[page] > 1

    def holders(self, page: int) -> int:
        """How many sequences hold it."""
        return self._holders[page]

    @property
    def cached(self) -> int:
        """Free pages whose contents can still be found."""
        return len(self._cached)
