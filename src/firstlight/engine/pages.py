"""Pages of state: who holds which, for every stream group of a model.

A page holds `page_tokens` consecutive positions of every stream of one group. Groups differ in
window, so a sliding layer's pages go free while a full layer's are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from firstlight.errors import InsufficientMemoryError
from firstlight.model.stream import StreamGroup

NO_PAGE = -1


@dataclass
class PageTable:
    """One sequence's pages: for each group, the page of each run of `page_tokens` positions."""

    pages: list[list[int]]

    def held(self, group: int) -> int:
        """How many pages of a group the sequence holds now."""
        return sum(page != NO_PAGE for page in self.pages[group])


class PageAllocator:
    """Free pages of each stream group, handed to sequences and taken back.

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
        # Taken from the end, so that low pages are used first and memory is touched in order.
        self._free = [list(range(capacity - 1, -1, -1)) for capacity in capacities]

    def new_table(self) -> PageTable:
        """The table of a sequence that holds nothing yet."""
        return PageTable([[] for _ in self.groups])

    def free_pages(self, group: int) -> int:
        """How many pages of a group are free."""
        return len(self._free[group])

    def extend(self, table: PageTable, length: int) -> None:
        """Give the sequence pages up to `length` positions; all or none.

        Raises:
            InsufficientMemoryError: too few pages are free. Nothing has changed then.
        """
        pages_needed = -(-length // self.page_tokens)
        missing = [max(0, pages_needed - len(pages)) for pages in table.pages]
        for group, count in enumerate(missing):
            if count > len(self._free[group]):
                raise InsufficientMemoryError(
                    f"state of {length} tokens",
                    f"{count} more pages are needed and {len(self._free[group])} of "
                    f"{self.capacities[group]} are free",
                    "Load the model with a larger context_length, or shorten the prompt",
                )
        for group, count in enumerate(missing):
            table.pages[group].extend(self._free[group].pop() for _ in range(count))

    def slide(self, table: PageTable, position: int) -> None:
        """Free the pages that no position from `position` on can see."""
        for group, spec in enumerate(self.groups):
            if spec.window is None:
                continue
            pages = table.pages[group]
            index = min(max(0, position - spec.window + 1) // self.page_tokens, len(pages))
            # Pages go from the front only, so those before one that is gone are gone as well. A
            # step thus looks at what it frees, and not at the whole sequence again.
            while index > 0 and pages[index - 1] != NO_PAGE:
                index -= 1
                self._give_back(table, group, index)

    def can_cut(self, table: PageTable, length: int) -> bool:
        """Whether the sequence can be cut back to `length` tokens and go on from there.

        It cannot where a sliding group has freed positions that the next token would see, or the
        page that it would be written to; the tokens must then be replayed.
        """
        for group, spec in enumerate(self.groups):
            if spec.window is None:
                continue
            first = max(0, length - spec.window + 1) // self.page_tokens
            last = -(-length // self.page_tokens)
            if NO_PAGE in table.pages[group][first:last]:
                return False
        return True

    def cut(self, table: PageTable, length: int) -> None:
        """Forget every position from `length` on."""
        kept = -(-length // self.page_tokens)
        for group, pages in enumerate(table.pages):
            for index in range(kept, len(pages)):
                self._give_back(table, group, index)
            del pages[kept:]

    def release(self, table: PageTable) -> None:
        """Take back every page of the sequence."""
        self.cut(table, 0)

    def table_array(self, tables: list[PageTable], group: int) -> NDArray[np.int32]:
        """The tables as the ops take them: int32 [sequences, pages], short ones filled up."""
        width = max((len(table.pages[group]) for table in tables), default=0)
        array = np.full((len(tables), width), NO_PAGE, np.int32)
        for row, table in enumerate(tables):
            pages = table.pages[group]
            array[row, : len(pages)] = pages
        return array

    def _give_back(self, table: PageTable, group: int, index: int) -> None:
        page = table.pages[group][index]
        if page != NO_PAGE:
            self._free[group].append(page)
            table.pages[group][index] = NO_PAGE
