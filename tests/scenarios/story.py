"""Shared by the Python sides of the scenarios; Story.pm is the same in Perl."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

from danga_raw import Socket
from danga_raw._libc import libc

NOTES = 1000

Handler = Callable[["Teller"], object]

kept: list[object] = []
"""Objects kept alive, because they would close themselves when garbage-collected."""

_now = 1000.0


def note(*words: object) -> None:
    """Put a line into the trace, by a write(2) that fails."""
    with suppress(OSError):
        os.write(NOTES, " ".join(map(str, words)).encode())


def story(tell: Callable[[], None]) -> None:
    """Run the story between the two marks that delimit its trace."""
    note("begin")
    tell()
    note("end")
    os._exit(0)


def batches(steps: Iterator[None]) -> None:
    """After each batch, run the steps up to their next `yield`; the loop ends with the last one."""
    done = 0

    def step(*_: object) -> bool:
        nonlocal done
        done += 1
        note("batch", done)
        return next(steps, True) is None

    Socket.SetPostLoopCallback(step)


def clock(milliseconds: float) -> None:
    """Advance the clock, which stands still otherwise."""
    global _now
    _now += milliseconds / 1000
    libc.clock_gettime = lambda clock: _now


def pair(
    size: int = 0, kind: socket.SocketKind = socket.SOCK_STREAM
) -> tuple[socket.socket, socket.socket]:
    """Two ends of a UNIX stream, both non-blocking."""
    ends = socket.socketpair(socket.AF_UNIX, kind)
    kept.extend(ends)
    for end in ends:
        end.setblocking(False)
        if size:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    return ends


def datagram_pair(size: int) -> tuple[socket.socket, socket.socket]:
    return pair(size, socket.SOCK_DGRAM)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """The same, with TCP on loopback."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(1)
    theirs = socket.socket()
    theirs.connect(listener.getsockname())
    ours, _ = listener.accept()
    listener.close()
    ours.setblocking(False)
    theirs.setblocking(False)
    kept.extend((ours, theirs))
    return ours, theirs


class PipeEnd:
    """A descriptor with the methods of a handle."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd

    def close(self) -> None:
        os.close(self.fd)


def ends_of_pipe() -> tuple[PipeEnd, PipeEnd]:
    reader, writer = map(PipeEnd, os.pipe())
    return reader, writer


def reset_peer(handle: socket.socket) -> None:
    """Close the peer's end of a TCP pair with a reset instead of a FIN."""
    handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handle.close()


def close_behind(handle: socket.socket) -> None:
    """Close a descriptor behind its owner's back."""
    os.close(handle.fileno())


def peer_write(handle: socket.socket | PipeEnd, data: bytes) -> None:
    os.write(handle.fileno(), data)


def peer_read(handle: socket.socket | PipeEnd, count: int) -> None:
    with suppress(BlockingIOError):
        os.read(handle.fileno(), count)


def fill(length: int) -> bytes:
    """A byte string of this length in which every place can be told from the others."""
    return b"".join(b"%07d " % (place * 8) for place in range(length // 8 + 1))[:length]


class Teller(Socket):
    """A socket that notes each call of its handlers; the story decides what else they do."""

    __slots__ = ("name", "read_", "write_", "err_", "hup_")

    def __init__(
        self,
        sock: socket.socket,
        name: str,
        read: Handler | None = None,
        write: Handler | None = None,
        err: Handler | None = None,
        hup: Handler | None = None,
    ) -> None:
        super().__init__(sock)
        self.name = name
        self.read_, self.write_, self.err_, self.hup_ = read, write, err, hup

    def said(self, what: str, *rest: object) -> None:
        note(self.name, what, *rest)

    def event_read(self) -> None:
        self.said("event_read")
        if self.read_:
            self.read_(self)

    def event_write(self) -> None:
        self.said("event_write")
        if self.write_:
            self.write_(self)
        else:
            super().event_write()

    def event_err(self) -> None:
        self.said("event_err")
        if self.err_:
            self.err_(self)

    def event_hup(self) -> None:
        self.said("event_hup")
        if self.hup_:
            self.hup_(self)

    def close(self, reason: str | None = None) -> None:
        self.said("close", reason or "-")
        super().close(reason)

    def take(self, count: int) -> bytes | None:
        """Read once, and note the result."""
        got = self.read(count)
        self.said("read", "end" if got is None else f"{len(got)} [{got[:20].decode()}]")
        return got

    def put(self, data: bytes | Callable[[], object] | None) -> None:
        """Write, and note the result of write()."""
        self.said("write", int(self.write(data)))

    def state(self) -> None:
        """Note the fields that show how far the writing is."""
        self.said(
            "state", f"queued={len(self.write_buf)}", f"watch={self.event_watch}",
            f"closed={int(self.closed)}", f"corked={int(self.corked)}",
        )  # fmt: skip
        if self.closed:
            return
        self.said(
            "state", f"offset={self.write_buf_offset}", f"size={self.write_buf_size}",
            f"set_watch={int(self.write_set_watch)}",
        )  # fmt: skip
