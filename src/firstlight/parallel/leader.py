"""The first rank: it divides a model, and has the others compute what it computes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from firstlight.backends.base import Backend
from firstlight.checkpoint.checkpoint import Checkpoint
from firstlight.errors import FirstlightError, RequestError
from firstlight.formats.base import Format
from firstlight.model.batch import Batch
from firstlight.model.decoder import Decoder, State
from firstlight.model.spec import ModelSpec
from firstlight.model.weights import Weights
from firstlight.ops import RankGroup, Tensor
from firstlight.parallel.followers import COLLECTIVE_SECONDS, Followers
from firstlight.parallel.messages import Hidden, Join, Load, Loaded, Logits, NewState, Opened
from firstlight.parallel.parts import rank_part


class Leader:
    """The first of a model's ranks, while it loads. Used as a context, ends the others where
    loading fails.

    Args:
        name: what the user calls the devices together.
        devices: of every rank.
        exact, tuned: as in `messages.Launch`.
    """

    def __init__(self, name: str, devices: Sequence[str], *, exact: bool, tuned: bool) -> None:
        self.name = name
        self.followers = Followers(name, devices, exact=exact, tuned=tuned)

    def __enter__(self) -> Leader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.followers.close()

    def parts(
        self, spec: ModelSpec, checkpoint: Checkpoint, target: Format | None
    ) -> tuple[ModelSpec, ModelSpec]:
        """What the first rank has of a model, and what the last has, which is the most.

        Raises:
            FirstlightError: so many ranks cannot share it.
        """
        ranks = self.followers.ranks
        first, last = (
            rank_part(spec, checkpoint, target, rank, ranks, self.name) for rank in (0, ranks - 1)
        )
        return first, last

    def available_memory(self, backend: Backend) -> int:
        """Bytes that every rank has: those of the one that has least, or its share of what all
        have together.

        Raises:
            FirstlightError: a rank's device does not work.
        """
        answers = self.followers.answers(Opened)
        found = [each.available for each in answers if isinstance(each, Opened)]
        least = min(backend.available_memory(), *found)
        return least // self.followers.ranks if backend.on_host else least

    def load(self, model: str, checkpoint: Checkpoint, weights: str | None, cache: bool) -> None:
        """Have the others load their parts, while this process loads its own."""
        self.followers.tell(Load(model, str(checkpoint.location), weights, cache))

    def decoder(self, spec: ModelSpec, weights: Weights, backend: Backend) -> LeadingDecoder:
        """The decoder that all ranks are; waits until they have loaded their parts.

        Raises:
            FirstlightError: a rank could not.
        """
        followers = self.followers
        followers.answers(Loaded)
        followers.tell(Join())
        try:
            group = backend.join_ranks(
                0, followers.ranks, Path(followers.folder), COLLECTIVE_SECONDS
            )
        except FirstlightError:
            raise
        except Exception as error:
            raise followers.failed(error) from error
        followers.on_end(group.leave)
        return LeadingDecoder(spec, weights, backend, group, followers)


class LeadingDecoder(Decoder):
    """A decoder whose every call all ranks make together.

    After one has failed in the midst of a call, nobody knows how far the others are: then all are
    ended, and every further call is the same error.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        backend: Backend,
        group: RankGroup,
        followers: Followers,
    ) -> None:
        super().__init__(spec, weights, backend, group)
        self.followers = followers

    def check(self) -> None:
        self.followers.check()

    def new_state(self, pages: tuple[int, ...], page_tokens: int, dtype: str) -> State:
        with self._together(NewState(pages, page_tokens, dtype)):
            return super().new_state(pages, page_tokens, dtype)

    def hidden(self, batch: Batch, state: State) -> Tensor:
        message = Hidden(
            _bytes(batch.token_ids),
            _bytes(batch.positions),
            _bytes(batch.lengths),
            _bytes(batch.row_starts),
            [_bytes(table) for table in batch.page_tables],
            batch.page_tokens,
        )
        with self._together(message):
            return super().hidden(batch, state)

    def logits(self, hidden: Tensor, wanted: NDArray[np.int32]) -> Tensor:
        with self._together(Logits(_bytes(wanted))):
            return super().logits(hidden, wanted)

    @contextmanager
    def _together(self, message: NewState | Hidden | Logits) -> Iterator[None]:
        with _interrupts_held():
            self.followers.tell(message)
            try:
                yield
            except Exception as error:
                raise self.followers.failed(error) from error


def check_shared(name: str, speculation: object, tune: float | None) -> None:
    """RequestError where options do not go with several devices."""
    if speculation == "mtp":
        raise RequestError(
            "speculation mtp", f"is not there yet over several devices ({name})", "Use auto or off"
        )
    if tune:
        raise RequestError(
            "tune",
            f"kernels are not tuned over several devices at once ({name})",
            "Tune on one of them first: firstlight tune MODEL --device DEVICE",
        )


def _bytes(array: NDArray[np.int32]) -> bytes:
    return np.ascontiguousarray(array, np.int32).tobytes()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Have a Ctrl-C wait until the block is done: no rank may stop in the midst of a step."""
    held: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)
