"""What all mechanisms to wait for events have in common: their verbs, and what a wait has found."""

from __future__ import annotations

from _collections_abc import Iterable
from abc import ABC, abstractmethod
from itertools import repeat


class Poller(ABC):
    """One mechanism to wait for events. An event mask is that of poll(2) on all of them.

    What fails raises an `OSError` that names the call and the fd: EBADF for a dead one, EEXIST for one
    that is watched already, ENOENT for one that isn't watched, EMFILE, ENFILE and ENOMEM.
    """

    __slots__ = ("_fd", "batch", "pairs")

    def __init__(self) -> None:
        self._fd = -1
        self.batch: list[int] = []
        """The fds that the last wait found. The loop goes through it as it is, and may drop the rest
        by `clear()`."""
        self.pairs: Iterable[tuple[int, int]] = ()
        """What the last wait found, with masks, where `wait_bare` answered None."""

    @abstractmethod
    def open(self) -> None:
        """Make the mechanism's descriptor, unless an earlier call has: nothing before makes a system
        call."""

    @abstractmethod
    def register(self, fd: int, events: int) -> None:
        """Watch a descriptor."""

    @abstractmethod
    def holds(self, fd: int, events: int) -> bool:
        """Whether the descriptor that is watched under this number is still open."""

    @abstractmethod
    def modify(self, fd: int, old: int, new: int) -> None:
        """Watch a descriptor for another mask."""

    @abstractmethod
    def unregister(self, fd: int, events: int) -> None:
        """Watch a descriptor no longer."""

    def wait(self, timeout_ms: int) -> Iterable[tuple[int, int]]:
        """The (fd, event mask) of each ready descriptor. Blocks for at most so many milliseconds, for
        ever where they are negative; a signal ends it with nothing ready."""
        found = self.wait_bare(timeout_ms)
        return self.pairs if found is None else zip(found, repeat(1))  # POLLIN

    @abstractmethod
    def wait_bare(self, timeout_ms: int) -> Iterable[int] | None:
        """The same, as the bare fds where all are readable and nothing else: most batches are, and
        no pair is made. Else None, and what `wait` gives is in `pairs`."""

    def fileno(self) -> int:
        """The mechanism's own descriptor; -1 where it has none."""
        return self._fd

    @abstractmethod
    def close(self) -> None:
        """Close the descriptor, once."""

    def _found(self, masks: dict[int, int]) -> None:
        """Keep what a wait has found, as fd -> event mask."""
        self.batch = list(masks)
        self.pairs = zip(self.batch, masks.values())
