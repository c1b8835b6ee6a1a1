"""kqueue(2) in its FreeBSD and its NetBSD form. The structs of each platform are read and written
byte by byte."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from errno import EBADF, EINVAL, ENOENT, EPIPE
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.simkernel.errors import SimError
from tests.simkernel.files import Filter, OpenFile, error
from tests.simkernel.memory import c_int, item_size, memory

if TYPE_CHECKING:
    from tests.simkernel.kernel import SimKernel

EV_ADD, EV_DELETE, EV_ENABLE, EV_DISABLE = 0x1, 0x2, 0x4, 0x8
EV_ONESHOT, EV_ERROR, EV_EOF = 0x10, 0x4000, 0x8000
KNOWN: Final = EV_ADD | EV_DELETE | EV_ENABLE | EV_DISABLE

Fields = tuple[int, int, int, int, int, int]
"""ident, filter, flags, fflags, data, udata"""


class Layout(NamedTuple):
    """struct kevent on a 64-bit machine, as the platform's header has it."""

    size: int
    fields: struct.Struct
    read: int
    write: int
    size_t_counts: bool


_CLASSIC = Layout(32, struct.Struct("=QhHIqQ"), -1, -2, False)
_NETBSD = Layout(40, struct.Struct("=QIII4xqQ"), 0, 1, True)
LAYOUTS: Final[Mapping[str, Layout]] = {
    "darwin": _CLASSIC,
    "dragonfly": _CLASSIC,
    "freebsd": _CLASSIC._replace(size=64),
    "libkqueue": _CLASSIC,
    "netbsd": _NETBSD._replace(size=72),
    "netbsd9": _NETBSD,
    "openbsd": _CLASSIC,
}
_TIMESPEC = struct.Struct("=qq")
_POINTER_BITS = 8 * struct.calcsize("P")


class Note:
    """A filter on a descriptor, made by one EV_ADD."""

    def __init__(
        self, kqueue: KQueue, key: tuple[int, int], file: OpenFile, flags: int, udata: int
    ) -> None:
        self.kqueue = kqueue
        self.key = key
        """ident, filter"""
        self.file = file
        self.write = key[1] == kqueue.layout.write
        self.once = False
        """True if the kernel drops the filter with its next event."""
        self.enabled = not flags & EV_DISABLE
        self.first_flags = flags
        self.udata = udata


class KQueue(OpenFile):
    """A kqueue. A note belongs to a descriptor, and is dropped when that is closed, even if a dup
    is still open."""

    mode = 0o600

    def __init__(self, kernel: SimKernel) -> None:
        if _POINTER_BITS != 64:
            raise SimError("the layouts of struct kevent here are those of 64-bit machines")
        super().__init__(kernel)
        self.layout = LAYOUTS[kernel.platform]
        self.netbsd = kernel.form == "netbsd"
        self.notes: dict[tuple[int, int], Note] = {}
        self.active: dict[Note, None] = {}
        """The fired filters, in order; filters that a wait has reported come after the others."""

    def __str__(self) -> str:
        return "a kqueue"

    def poll(self) -> int:
        return 1 if self.ready() else 0

    def filter(self, write: bool) -> Filter:
        raise SimError("a kqueue in a kqueue")

    # --- the one call -----------------------------------------------------------------------------

    def kevent(
        self,
        changelist: object,
        nchanges: object,
        eventlist: object,
        nevents: object,
        timeout: object,
    ) -> int:
        """kevent(2). Raises `OSError`."""
        changes = self._read_changes(changelist, self._count(nchanges, "nchanges"))
        room = self._count(nevents, "nevents")
        timeout_ns = self._timeout(timeout)
        size = self.layout.size
        view = memory(eventlist, room * size, "kevent: eventlist") if room else None
        if view is not None:
            self._check_size(eventlist, "eventlist")
        self.kernel.note_changes(self, [change[:3] for change in changes])
        told: list[Fields] = []
        for change in changes:
            if number := self._change(*change):
                if len(told) == room:
                    raise error(number)
                told.append((change[0], change[1], EV_ERROR, change[3], number, change[5]))
        if not told and room:
            told = self.kernel.wait_ns(self.ready, timeout_ns, "kevent")
            # Nothing is starved: events without room come first in the next batch.
            told = told[:room] if len(told) >= room else self._with_spurious(told)
            told = self.kernel.luck.shuffled(told)
            self._requeue(told)
        for i, fields in enumerate(told):
            assert view is not None
            view[i * size : (i + 1) * size] = bytes(size)
            self.layout.fields.pack_into(view, i * size, *fields)
        return len(told)

    def _count(self, value: object, what: str) -> int:
        if self.layout.size_t_counts:
            if not isinstance(value, ctypes.c_size_t):
                raise SimError(f"kevent: {what} is {value!r}, and a size_t on this platform")
            return value.value
        count = c_int(value, f"kevent: {what}")
        if count < 0:
            raise error(EINVAL)
        return count

    def _check_size(self, array: object, what: str) -> bool:
        size = item_size(array, f"kevent: {what}")
        if size != self.layout.size:
            if self.kernel.strict:
                raise SimError(f"kevent: struct kevent in {what} has {size} bytes, "
                               f"and {self.layout.size} on {self.kernel.platform}")  # fmt: skip
            return False
        return True

    def _read_changes(self, changelist: object, count: int) -> list[Fields]:
        if not count:
            return []
        if not self._check_size(changelist, "changelist"):
            # The real FreeBSD kernel took a foreign layout for meaningless changes.
            if self.netbsd:
                raise error(EINVAL)
            return []
        view = memory(changelist, count * self.layout.size, "kevent: changelist")
        unpack = self.layout.fields.unpack_from
        return [unpack(view, i * self.layout.size) for i in range(count)]

    def _timeout(self, pointer: object) -> int | None:
        if pointer is None:
            return None
        view = memory(pointer, _TIMESPEC.size, "kevent: timeout")
        if len(view) != _TIMESPEC.size:
            raise SimError(f"kevent: struct timespec has {len(view)} bytes, not {_TIMESPEC.size}")
        seconds, nanoseconds = _TIMESPEC.unpack(view)
        if seconds < 0 or not 0 <= nanoseconds < 1_000_000_000:
            if self.kernel.strict:
                raise SimError(f"kevent: a timeout of {seconds} s and {nanoseconds} ns")
            raise error(EINVAL)
        return int(seconds) * 1_000_000_000 + int(nanoseconds)

    # --- changes ----------------------------------------------------------------------------------

    def _change(
        self, ident: int, filter: int, flags: int, fflags: int, data: int, udata: int
    ) -> int:
        """Apply one change; returns its errno, 0 for none."""
        if flags & ~KNOWN or not flags:
            raise SimError(f"kevent: unknown flags {flags:#x} for fd {ident}")
        if fflags or data:
            raise SimError(f"kevent: fflags {fflags:#x} and data {data} in a change for fd {ident}")
        if filter not in (self.layout.read, self.layout.write):
            raise SimError(f"kevent: unknown filter {filter} for fd {ident}")
        file = self.kernel.table.files.get(ident)
        if file is None:
            if self.kernel.strict and not flags & EV_DELETE:
                raise SimError(f"kevent: descriptor {ident} is closed")
            return EBADF
        if not self.netbsd and flags & EV_ENABLE and flags & EV_DISABLE:
            return EINVAL
        note = self.notes.get((ident, filter))
        if note is None:
            if not flags & EV_ADD:
                return ENOENT
            if number := self.kernel.luck.failure("kevent", *self.kernel.NO_MEMORY):
                return number
            if number := file.refused_filter(filter == self.layout.write):
                return number
            note = Note(self, (ident, filter), file, flags, udata)
            self.notes[note.key] = note
            file.filters.append(note)
            self.activate(note)
            return EPIPE if self._says_epipe(note) else 0
        if flags & EV_DELETE:
            self._drop(note)
            return 0
        if not self.netbsd or flags & EV_ADD:
            note.udata = udata
        if flags & EV_DISABLE:
            note.enabled = False
            self.active.pop(note, None)
        if flags & EV_ENABLE:
            note.enabled = True
            self.activate(note)
        return 0

    def _says_epipe(self, note: Note) -> bool:
        # macOS adds the filter and still reports an error (mio, issue 582).
        return (
            self.kernel.platform == "darwin"
            and self.kernel.epipe_at_registration
            and note.file.filter(True).eof
        )

    def forget(self, fd: int) -> None:
        """Drop the notes of a closed descriptor."""
        for filter in (self.layout.read, self.layout.write):
            if note := self.notes.get((fd, filter)):
                self._drop(note)

    def _drop(self, note: Note) -> None:
        del self.notes[note.key]
        note.file.filters.remove(note)
        self.active.pop(note, None)

    # --- events -----------------------------------------------------------------------------------

    def activate(self, note: Note) -> None:
        """Queue a filter that is enabled and fires, after those already queued."""
        if note.enabled and note not in self.active and note.file.filter(note.write).fires:
            self.active[note] = None

    def ready(self) -> list[Fields]:
        """An event for each enabled filter that fires, in the order in which they began to fire."""
        for note in self.notes.values():
            self.activate(note)
        found: list[Fields] = []
        for note in list(self.active):
            seen = note.file.filter(note.write)
            if seen.fires:
                flags = self._flags(note) | (EV_EOF if seen.eof else 0)
                found.append((*note.key, flags, seen.fflags, seen.data, note.udata))
            else:
                del self.active[note]
        return found

    def _requeue(self, told: list[Fields]) -> None:
        """Queue reported filters after those without room, or drop them if they fire only once."""
        for ident, filter, *_ in told:
            note = self.notes[(ident, filter)]
            if note.once:
                self._drop(note)
            elif note in self.active:
                del self.active[note]
                self.active[note] = None

    def _flags(self, note: Note) -> int:
        # NetBSD keeps the flags of the first EV_ADD, FreeBSD removes the action flags.
        return (note.first_flags if self.netbsd else 0) | (EV_ONESHOT if note.once else 0)

    def _with_spurious(self, told: list[Fields]) -> list[Fields]:
        if self.notes and self.kernel.luck.noisy("spurious event"):
            (ident, filter), note = self.kernel.luck.random.choice(list(self.notes.items()))
            usual = note.enabled and not note.once and note.file.fickle()
            if usual and note.key not in {event[:2] for event in told}:
                told = [*told, (ident, filter, self._flags(note), 0, 1, note.udata)]
        return told

    def released(self) -> None:
        for note in list(self.notes.values()):
            self._drop(note)
        self.kernel.kqueues.remove(self)


def as_kqueue(file: OpenFile) -> KQueue:
    """`file`, if it is a kqueue. Raises `OSError` (EBADF)."""
    if not isinstance(file, KQueue):
        raise error(EBADF)
    return file
