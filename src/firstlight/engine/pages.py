"""Pages of state: who holds which, for every stream group of a model.

A page holds `page_tokens` consecutive positions of every stream of one group. Groups differ in
window, so a sliding layer's pages go free while a full layer's are kept.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from firstlight.engine.page_pool import PagePool
from firstlight.errors import InsufficientMemoryError
from firstlight.model.stream import StreamGroup, first_seen

NO_PAGE = -1


@dataclass(eq=False)
class PageTable:
    """One sequence's pages.

    Attributes:
        pages: for each group, the page of each run of `page_tokens` positions, as 32-bit integers,
            which a step copies faster than a list.
        keys: of the contents of the first runs, as far as anyone has asked (`prefix_cache`).
        published: so many of the first pages can be found by their keys, or could not be kept.
    """

    pages: list[array[int]]
    keys: list[bytes] = field(default_factory=list)
    published: int = 0

    def held(self, group: int) -> int:
        """How many pages of a group the sequence holds now."""
        return len(self.pages[group]) - self.pages[group].count(NO_PAGE)


class PageAllocator:
    """Pages of each stream group, handed to sequences, shared between them, and taken back.

    Args:
        groups: of the decoder.
        capacities: pages there are, for each group.
        page_tokens: token positions per page.
    """

    def __init__(
        self, groups: tuple[StreamGroup, ...], capacities: tuple[int, ...], page_tokens: int
    ) -> None:
        self.groups = groups
        self.capacities = capacities
        self.page_tokens = page_tokens
        self.pools = tuple(PagePool(capacity) for capacity in capacities)

    def new_table(self) -> PageTable:
        """The table of a sequence that holds nothing yet."""
        return PageTable([array("i") for _ in self.groups])

    def free_pages(self, group: int) -> int:
        """How many pages of a group nobody holds."""
        return self.pools[group].free

    def pages_of(self, length: int) -> int:
        """Runs of positions that so many tokens lie in."""
        return -(-length // self.page_tokens)

    def reaches(self, table: PageTable, length: int) -> bool:
        """Whether the sequence has had pages for so many positions already."""
        return len(table.pages[0]) * self.page_tokens >= length

    def can_extend(self, table: PageTable, length: int) -> bool:
        """Whether `extend` would succeed."""
        needed = self.pages_of(length)
        return all(
            needed - len(pages) <= pool.free
            for pages, pool in zip(table.pages, self.pools, strict=True)
        )

    def extend(self, table: PageTable, length: int) -> None:
        """Give the sequence pages up to `length` positions; all or none.

        Raises:
            InsufficientMemoryError: too few pages are free. Nothing has changed then.
        """
        needed = self.pages_of(length)
        if all(len(pages) >= needed for pages in table.pages):
            return
        for pages, pool in zip(table.pages, self.pools, strict=True):
            if needed - len(pages) > pool.free:
                raise InsufficientMemoryError(
                    f"state of {length} tokens",
                    f"{needed - len(pages)} more pages are needed and {pool.free} of "
                    f"{pool.capacity} are free",
                    "Load the model with a larger state_memory, or shorten the prompt",
                )
        for pages, pool in zip(table.pages, self.pools, strict=True):
            while len(pages) < needed:
                pages.append(pool.take())

    def first_seen(self, group: int, length: int) -> int:
        """The first run of positions that the token at position `length` sees, in a group."""
        spec = self.groups[group]
        return first_seen(spec.window, spec.run, length) // self.page_tokens

    def adopt(self, table: PageTable, count: int) -> None:
        """Give an empty table the first `count` runs' pages, found by its keys, in each group as
        far back as the next token sees; `PrefixCache.cached_pages` says that they are there."""
        for group, (pages, pool) in enumerate(zip(table.pages, self.pools, strict=True)):
            first = min(self.first_seen(group, count * self.page_tokens), count)
            pages.extend([NO_PAGE] * first)
            for key in table.keys[first:count]:
                page = pool.find(key)
                assert page is not None
                pool.share(page)
                pages.append(page)
        table.published = count

    def publish(self, table: PageTable, count: int) -> None:
        """Let the first `count` runs' pages be found by the table's keys."""
        for pages, pool in zip(table.pages, self.pools, strict=True):
            for index in range(table.published, count):
                if pages[index] != NO_PAGE:
                    pool.publish(pages[index], table.keys[index])
        table.published = max(table.published, count)

    def slide(self, table: PageTable, position: int) -> None:
        """Free the pages that no position from `position` on can see."""
        for group, spec in enumerate(self.groups):
            if spec.window is None:
                continue
            pages = table.pages[group]
            index = min(self.first_seen(group, position), len(pages))
            # Pages go from the front only, so those before one that is gone are gone as well. A
            # step thus looks at what it frees, and not at the whole sequence again.
            while index > 0 and pages[index - 1] != NO_PAGE:
                index -= 1
                self.pools[group].give_back(pages[index])
                pages[index] = NO_PAGE

    def can_cut(self, table: PageTable, length: int) -> bool:
        """Whether the sequence can be cut back to `length` tokens and go on from there.

        It cannot where a sliding group has freed positions that the next token would see, or the
        page that it would be written to, nor where others hold that page; the tokens must then be
        replayed.
        """
        last, inside = self.pages_of(length), length % self.page_tokens
        for group, (pages, pool) in enumerate(zip(table.pages, self.pools, strict=True)):
            if NO_PAGE in pages[self.first_seen(group, length) : last]:
                return False
            if inside and (pages[last - 1] == NO_PAGE or pool.shared(pages[last - 1])):
                return False
        return True

    def cut(self, table: PageTable, length: int) -> None:
        """Forget every position from `length` on."""
        kept, whole = self.pages_of(length), length // self.page_tokens
        for pages, pool in zip(table.pages, self.pools, strict=True):
            # The last first, so that of pages that can be found again the first are kept longest:
            # a prefix is of use from its beginning only.
            while len(pages) > kept:
                page = pages.pop()
                if page != NO_PAGE:
                    pool.give_back(page)
            if whole < kept <= len(pages) and pages[whole] != NO_PAGE:
                pool.withdraw(pages[whole])
        del table.keys[whole:]
        table.published = min(table.published, whole)

    def release(self, table: PageTable) -> None:
        """Take back every page of the sequence."""
        self.cut(table, 0)

    def table_array(self, tables: list[PageTable], group: int) -> NDArray[np.int32]:
        """The tables as the ops take them: int32 [sequences, pages], short ones filled up."""
        width = max((len(table.pages[group]) for table in tables), default=0)
        rows = np.full((len(tables), width), NO_PAGE, np.int32)
        for row, table in zip(rows, tables, strict=True):
            pages = table.pages[group]
            row[: len(pages)] = pages
        return rows
