"""The types of the public surface, for annotations.

The running package doesn't import this: `typing` alone would double the time that it takes to
import. So modules here set `TYPE_CHECKING = False` themselves, which type checkers take for true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeAlias


class Handle(Protocol):
    """What a descriptor is known by: a `socket.socket`, a file, or anything with these two."""

    def fileno(self) -> int: ...
    def close(self) -> object: ...


class Watched(Protocol):
    """What a loop asks of an object whose descriptor it watches. `Socket` is one."""

    fd: int | None
    closed: bool
    event_watch: int

    def event_read(self) -> object: ...
    def event_write(self) -> object: ...
    def event_err(self) -> object: ...
    def event_hup(self) -> object: ...
    def close(self, reason: str | None = None, /) -> object: ...
    def finish_leaving(self) -> None: ...
    def as_string(self) -> str: ...


Batch: TypeAlias = list[int] | list[tuple[int, int]]
"""What the last wait found. The loop goes through it, and may drop the rest by `clear()`."""


class Poller(Protocol):
    """One mechanism to wait for events. An event mask is that of poll(2) on all of them."""

    batch: Batch

    def open(self) -> None: ...
    def register(self, fd: int, events: int) -> None: ...
    def modify(self, fd: int, old: int, new: int) -> None: ...
    def unregister(self, fd: int, events: int) -> None: ...
    def wait(self, timeout_ms: int) -> Iterable[tuple[int, int]]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


DescriptorMapping: TypeAlias = Mapping[int, Watched]
"""fd -> the object that has it."""

OtherFdCallback: TypeAlias = Callable[[int], object]
"""Called with the event mask when an other fd is readable."""

OtherFdMapping: TypeAlias = Mapping[int, OtherFdCallback]
"""fd -> its callback."""

PostLoopCallback: TypeAlias = Callable[[DescriptorMapping, OtherFdMapping], object]
"""Called after each batch; a false answer ends the loop."""

ExceptionCallback: TypeAlias = Callable[[Watched | None, Exception], object]
"""Called with the object whose handler raised, if it was an object's, and the exception."""

ProfileMapping: TypeAlias = Mapping[str, tuple[float, float, int]]
"""Class and event -> (seconds of user time, seconds of system time, number of calls)."""

Block: TypeAlias = bytes | memoryview
"""What data is on its way out; it is never copied."""

Queued: TypeAlias = Block | Callable[[], object]
"""What may wait in the write queue."""

Writable: TypeAlias = bytes | bytearray | memoryview | Callable[[], object] | None
"""What `write` takes."""

WriterFunc: TypeAlias = Callable[[Block, int, int], int]
"""Writes `data[offset:offset + count]`, given as (data, count, offset). Returns how many bytes it
wrote, raises BlockingIOError where it would block and any other OSError where it failed."""
