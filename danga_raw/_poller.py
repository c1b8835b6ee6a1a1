"""The base class of the pollers: their methods, and the result of a wait."""

from __future__ import annotations

from _collections_abc import Iterable, Iterator
from abc import ABC, abstractmethod
from itertools import repeat

from danga_raw._interrupt import take_result
from danga_raw._libc import libc


class Poller(ABC):
    """A kernel mechanism that waits for events. All of them use the event masks of poll(2).

    A method that fails raises an `OSError` that names the call and the fd: EBADF if it is not open,
    EEXIST if it is already watched, ENOENT if it isn't, EMFILE, ENFILE or ENOMEM.
    """

    __slots__ = ("_closing", "_fd", "_made", "batch", "pairs")

    def __init__(self) -> None:
        self._fd = -1
        self._made: list[int] = []
        """The mechanism's descriptor, as soon as it has been made."""
        self._closing = iter(self._made)  # Yields what will be in the list, once.
        self.batch: list[int] = []
        """The fds that the last wait found. The loop iterates over it, and may drop the rest by
        `clear()`."""
        self.pairs: Iterable[tuple[int, int]] = ()
        """What the last wait found, with masks, if `wait_bare` returned None."""

    @abstractmethod
    def open(self) -> None:
        """Make the mechanism's descriptor, unless it exists. No system call is made before."""

    @abstractmethod
    def register(self, fd: int, events: int) -> None:
        """Start watching a descriptor."""

    @abstractmethod
    def holds(self, fd: int, events: int) -> bool:
        """Whether the descriptor watched under this number is still open."""

    @abstractmethod
    def modify(self, fd: int, old: int, new: int) -> None:
        """Watch a descriptor for another mask."""

    @abstractmethod
    def unregister(self, fd: int, events: int) -> None:
        """Stop watching a descriptor."""

    def wait(self, timeout_ms: int) -> Iterable[tuple[int, int]]:
        """Return the (fd, event mask) of each ready descriptor. Blocks for at most `timeout_ms`
        milliseconds, or forever if that is negative; a signal ends it with nothing ready."""
        found = self.wait_bare(timeout_ms)
        return self.pairs if found is None else zip(found, repeat(1))  # POLLIN

    @abstractmethod
    def wait_bare(self, timeout_ms: int) -> Iterable[int] | None:
        """The same, but if all are just readable, as in most batches, returns the fds alone, which
        saves making pairs. Otherwise returns None, and the result is in `pairs`."""

    def fileno(self) -> int:
        """The mechanism's own descriptor; -1 if it has none."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor, once: close(2). The parent's registrations stay when a forked child
        closes its copy."""
        for _ in map(libc.close, self._closing):
            pass

    def _make(self, results: Iterator[int]) -> bool:
        """Store the descriptor from `results`, a map over the one call that makes it, unless there
        is one. It is not lost, whatever is raised after the call. False if the call fails."""
        made = self._made
        if not made:
            try:
                made += results
            except BaseException as error:
                # If the sink of a trace raised, the call was made all the same.
                if isinstance(fd := take_result(error), int) and fd >= 0:
                    made += (fd,)
                raise
        self._fd = made[0]
        if self._fd < 0:
            del made[:]
        return self._fd >= 0

    def _found(self, masks: dict[int, int]) -> None:
        """Store the result of a wait, given as fd -> event mask."""
        self.batch = list(masks)
        self.pairs = zip(self.batch, masks.values())
