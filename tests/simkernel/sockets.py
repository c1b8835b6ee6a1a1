"""Stream sockets, UNIX and TCP, and listeners.

Each socket has an inbox. The peer's data is put there at once, so that the buffer space is bounded
from end to end, but it can be read only after it has travelled. Packets in one direction never
overtake each other, and a reset is a packet too.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable
from errno import (
    EAGAIN,
    ECONNABORTED,
    ECONNREFUSED,
    ECONNRESET,
    EINVAL,
    EMFILE,
    ENFILE,
    ENOBUFS,
    ENOMEM,
    ENOTCONN,
    EPERM,
    EPIPE,
    EPROTO,
)
from typing import TYPE_CHECKING

from tests.simkernel.files import POLLERR, POLLHUP, POLLIN, POLLOUT, Filter, OpenFile, error

if TYPE_CHECKING:
    from tests.simkernel.kernel import SimKernel

SHUT_RD, SHUT_WR, SHUT_RDWR = 0, 1, 2
UNIX_BUFFER, UNIX_LOW_WATER = 4096, 2048
"""Of NetBSD's UNIX sockets: the write filter is silent if there is less room than the low-water
mark."""

EARLY_WRITE_REFUSED = ("darwin", "netbsd", "netbsd9", "openbsd")
"""Where a write to a connecting socket fails with ENOTCONN: sosend() in each uipc_socket.c, except
for a protocol with PR_IMPLOPCL, as TCP has on FreeBSD and DragonFly."""

CORK_NS = 200_000_000
"""The longest time for which a corked socket holds back a partial segment; tcp(7)."""
SEGMENT = 1448

GONE = (ECONNABORTED, EPERM, EPROTO)
"""The errors of accept(2) for a connection that is gone, or that a firewall forbids."""
NO_ROOM = (EMFILE, ENFILE, ENOBUFS, ENOMEM)
"""The errors of accept(2) after which the connection stays pending."""

Address = tuple[str, int] | str


class StreamSocket(OpenFile):
    """One end of a connection."""

    mode = stat.S_IFSOCK | 0o777

    def __init__(
        self, kernel: SimKernel, tcp: bool, capacity: int, name: Address, peer_name: Address
    ) -> None:
        super().__init__(kernel)
        self.tcp = tcp
        self.bsd = kernel.rules != "linux"
        small = kernel.rules == "netbsd" and not tcp
        self.capacity = min(capacity, UNIX_BUFFER) if small else capacity
        self.name = name
        self.peer_name: Address | None = peer_name
        self.peer: StreamSocket | None = None
        self.inbox = bytearray()
        self.arrived = 0  # how much of the inbox has travelled
        self.low_water = kernel.luck.random.randint(1, capacity // 2) if kernel.luck.noise else 1
        if small:
            self.low_water = min(UNIX_LOW_WATER, self.capacity // 2)
        self.connecting = False
        self.unconnected = False
        self.outcome: int | None = None  # of its connect(2): an errno, or 0
        self.failure = 0  # the last errno of the connection
        self.taken = 0  # how many bytes writes have accepted in all
        self.error = 0  # SO_ERROR
        self.shut_read = False
        self.shut_write = False
        self.got_fin = False
        self.deaf = False  # incoming data is dropped; on the BSDs, once the read side is shut
        self.dead = False  # the last descriptor is closed
        self.corked = False
        self._last_packet_ns = 0

    def __str__(self) -> str:
        return f"the {'TCP' if self.tcp else 'UNIX'} socket {self.name!r} of {self.peer_name!r}"

    # --- what is ready ----------------------------------------------------------------------------

    @property
    def space(self) -> int:
        """How much a write could take now."""
        return self.peer.capacity - len(self.peer.inbox) if self.peer else self.capacity

    def _has_room(self) -> bool:
        return self.space >= (self.peer.low_water if self.peer else 1)

    def poll(self) -> int:
        if self.connecting:
            # Linux reports a hang-up for a socket that was never connected (tcp_poll, unix_poll).
            return POLLOUT | POLLHUP if self.unconnected and not self.bsd else 0
        if self.bsd:
            return self._bsd_poll()
        mask = POLLIN if self.arrived or self.shut_read else 0
        # A shut write side counts as ready in TCP; in a UNIX socket only buffer space does.
        if self._has_room() or (self.tcp and self.shut_write):
            mask |= POLLOUT
        if self.error:
            mask |= POLLERR
        if self.shut_read and self.shut_write:
            mask |= POLLHUP
        return mask

    def fickle(self) -> bool:
        """True unless a connect is in progress, when no kernel reports a spurious event."""
        return not self.connecting

    def _bsd_poll(self) -> int:
        mask = POLLIN if self.arrived or self.shut_read or self.error else 0
        if self.kernel.rules == "freebsd" and self.shut_read and self.shut_write:
            return mask | POLLHUP
        return mask | (POLLOUT if self._has_room() or self.shut_write or self.error else 0)

    def filter(self, write: bool) -> Filter:
        if self.connecting:
            return Filter(False)
        if write:
            ready = self.shut_write or self.error or self._has_room()
            return Filter(bool(ready), self.space, self.shut_write, self._fflags(self.shut_write))
        ready = self.shut_read or self.error or self.arrived
        return Filter(bool(ready), self.arrived, self.shut_read, self._fflags(self.shut_read))

    def _fflags(self, eof: bool) -> int:
        return self.error if eof else 0

    # --- the calls --------------------------------------------------------------------------------

    def take_error(self) -> int:
        """Return SO_ERROR and clear it."""
        number, self.error = self.error, 0
        return number

    def refused_option(self) -> int:
        """The errno with which setsockopt(TCP_NOPUSH) fails now, 0 if it doesn't fail. On a BSD, a
        connection that is gone has no control block any more (tcp_ctloutput), and macOS checks
        whether both directions are shut (sosetoptlock)."""
        if self.kernel.platform == "darwin":
            return EINVAL if self.shut_read and self.shut_write else 0
        gone = self.peer is None or (self.shut_write and self.got_fin)
        return ECONNRESET if self.bsd and gone and not self.connecting else 0

    def read(self, count: int) -> bytes:
        while count and not self.arrived:
            # On Linux a FIN that came before the reset hides it from a reader (SOCK_DONE).
            if self.got_fin and self.tcp and not (self.bsd and self.error):
                return b""
            if self.error:
                raise error(self.take_error())
            if self.shut_read:
                return b""
            self.block(POLLIN)
        count = self.kernel.luck.cut(min(count, self.arrived), "short read")
        data = bytes(self.inbox[:count])
        del self.inbox[:count]
        self.arrived -= count
        if self.peer:
            self.peer.stirred()
        return data

    def write(self, data: memoryview) -> int:
        if self.connecting and self.kernel.platform in EARLY_WRITE_REFUSED:
            raise error(ENOTCONN)
        if self.connecting and not self.bsd:
            raise error(EAGAIN)
        while True:
            # A BSD checks the direction first, and leaves the error for a read.
            if self.tcp and self.error and not self.bsd:
                raise error(self.take_error())
            if self.shut_write or self.peer is None:
                raise error(EPIPE)
            if not len(data):
                return 0
            if self.space:
                break
            self.block(POLLOUT)
        count = self.kernel.luck.cut(min(len(data), self.space), "short write")
        peer = self.peer
        peer.inbox += data[:count]
        self.taken += count
        # A segment is at most half of the other side's buffer.
        held = self.corked and len(peer.inbox) - peer.arrived < min(SEGMENT, peer.capacity // 2)
        if self.corked and not held:
            self._flush()
        else:
            self._send(lambda: peer.on_data(count), CORK_NS if held else 0)
        return count

    def set_cork(self, on: bool) -> None:
        """TCP_CORK: hold written data back for a while; turning it off sends the data."""
        self.corked = on
        if not on:
            self._flush()

    def _flush(self) -> None:
        peer = self.peer
        self._last_packet_ns = 0
        if peer is not None and (held := len(peer.inbox) - peer.arrived):
            self._send(lambda: peer.on_data(held))

    def shutdown(self, how: int) -> None:
        """shutdown(2). Raises `OSError`."""
        if self.tcp and (self.peer is None or (self.shut_write and self.got_fin)):
            raise error(ENOTCONN)
        if how in (SHUT_RD, SHUT_RDWR):
            self.shut_read = True
            if self.bsd:
                self.deaf = True
                self._drop_unread()
            elif not self.tcp and self.peer:
                self.peer.shut_write = True
        if how in (SHUT_WR, SHUT_RDWR) and not self.shut_write:
            self.shut_write = True
            self._send_fin()
        self.stirred()

    def _drop_unread(self) -> None:
        self.inbox.clear()
        self.arrived = 0
        if self.peer:
            self.peer.stirred()

    def _send_fin(self) -> None:
        if peer := self.peer:
            self._flush()
            self._send(peer.on_fin)

    def released(self) -> None:
        unread = len(self.inbox) > 0
        self.inbox.clear()
        self.arrived = 0
        self.dead = True
        peer = self.peer
        if peer is None:
            return
        if not self.tcp:
            peer.shut_read = peer.shut_write = True
            peer.error = ECONNRESET if unread and not self.bsd else peer.error
            peer.peer = None
            peer.stirred()
        elif unread and not self.bsd and not (self.shut_write and self.got_fin):
            self.send_reset()
        elif not self.shut_write:
            self._send_fin()
        self.shut_write = self.shut_read = True

    # --- what arrives from the network ------------------------------------------------------------

    def _send(self, packet: Callable[[], None], held_ns: int = 0) -> None:
        clock = self.kernel.clock
        when = max(self._last_packet_ns, clock.now_ns + held_ns)
        if self.tcp:
            when += self.kernel.luck.delay_ns()
        if when <= clock.now_ns:
            packet()
        else:
            self._last_packet_ns = clock.at(when, packet)

    def send_reset(self) -> None:
        """Abort the connection."""
        if peer := self.peer:
            self.peer = None
            self._send(peer.on_reset)

    def on_data(self, count: int) -> None:
        """Called when `count` more bytes of the inbox have travelled."""
        if self.dead:
            # A socket without a descriptor answers data with a reset.
            self.inbox.clear()
            self.send_reset()
        else:
            self.arrived = min(self.arrived + count, len(self.inbox))
            if self.deaf:
                self._drop_unread()
            self.stirred()

    def on_fin(self) -> None:
        """Called when the peer will send no more."""
        if not self.dead:
            self.arrived = len(self.inbox)
            self.shut_read = self.got_fin = True
            self.stirred()

    def on_reset(self) -> None:
        """Called when the peer has aborted the connection."""
        if not self.dead and not (self.shut_read and self.shut_write and self.got_fin):
            # After the FIN, a reset means that the peer no longer reads, for which Linux has
            # another error.
            self.fail(EPIPE if self.got_fin and not self.bsd else ECONNRESET)

    def fail(self, number: int) -> None:
        """End the connection, with the reason in SO_ERROR; data that has arrived stays readable."""
        self.error = self.failure = number
        self.shut_read = self.shut_write = True
        del self.inbox[self.arrived :]
        self.peer_name = None
        if self.peer and self.peer.peer is self:
            other, self.peer = self.peer, None
            other.inbox[other.arrived :] = b""
            if self.tcp:
                self._send(other.on_reset)
            else:
                other.on_reset()
        self.peer = None
        self.stirred()


class Listener(OpenFile):
    """A listening TCP socket."""

    mode = stat.S_IFSOCK | 0o777

    def __init__(self, kernel: SimKernel, name: Address) -> None:
        super().__init__(kernel)
        self.name = name
        self.waiting: deque[StreamSocket] = deque()
        self.dead = False

    def __str__(self) -> str:
        return f"the listener {self.name!r}"

    def poll(self) -> int:
        return POLLIN if self.waiting else 0

    def filter(self, write: bool) -> Filter:
        return Filter(False) if write else Filter(bool(self.waiting), len(self.waiting))

    def read(self, count: int) -> bytes:
        if count or self.kernel.rules == "netbsd":
            raise error(ENOTCONN)
        return b""

    def write(self, data: memoryview) -> int:
        raise error(EPIPE if self.kernel.rules == "linux" else ENOTCONN)

    def connected(self, socket: StreamSocket) -> None:
        """Queue a client's connection, whose side here is `socket`. Raises `OSError`
        (ECONNREFUSED)."""
        if self.dead:
            raise error(ECONNREFUSED)
        self.waiting.append(socket)
        self.stirred()

    def accept(self) -> StreamSocket:
        """The oldest pending connection. Raises `OSError`."""
        if self.dead:
            raise error(EINVAL)
        while not self.waiting:
            self.block(POLLIN)
        if number := self.kernel.luck.failure("accept", *GONE, *NO_ROOM):
            if number in GONE:
                self.waiting.popleft().released()
            raise error(number)
        if self.kernel.luck.noisy("EAGAIN from accept") and self.nonblocking:
            raise error(EAGAIN)
        return self.waiting.popleft()

    def released(self) -> None:
        self.dead = True
        while self.waiting:
            socket = self.waiting.popleft()
            socket.dead = True
            socket.send_reset()
