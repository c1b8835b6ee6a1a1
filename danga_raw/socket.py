"""The object of Danga::Socket's manual: a socket whose events a loop hands to its methods."""

from __future__ import annotations

import sys
from collections import deque
from ctypes import get_errno, set_errno
from errno import EBADF, ECONNRESET, ENOENT, EPIPE

from danga_raw._libc import by_handler, libc, take_result
from danga_raw._log import debug, warn
from danga_raw._poll import POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT
from danga_raw._sockopt import set_cork
from danga_raw.loop import Leaving, Loop, callable_or_none

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import ClassVar, Final, NoReturn

    from danga_raw.timers import Timer
    from danga_raw.types import (
        Block,
        DescriptorMapping,
        Handle,
        OtherFdMapping,
        PostLoopCallback,
        ProfileMapping,
        Queued,
        Writable,
        WriterFunc,
    )

MAX_READ: Final = 1_048_576
"""The most bytes that one read(2) asks for, as in the original."""

# Queues are seldom needed and costly in numbers, so an object gets its own when it first has
# something to put in, and until then shares one that takes nothing.
_NO_QUEUE: Final[deque[Queued]] = deque(maxlen=0)
_NO_PIECES: Final[deque[Block]] = deque(maxlen=0)

_CLOSE_REASONS: Final = {EPIPE: "EPIPE", ECONNRESET: "ECONNRESET"}

_default_loop: Loop | None = None


def default_loop() -> Loop:
    """The loop that the class methods of `Socket` act on, made at its first use."""
    global _default_loop
    if _default_loop is None:
        _default_loop = Loop()
    return _default_loop


class _PostLoopCallbackSetter:
    """`SetPostLoopCallback`: it sets the loop's on the class, and on an object the object's."""

    def __get__(
        self, obj: Socket | None, owner: type[Socket]
    ) -> Callable[[PostLoopCallback | None], None]:
        return owner.set_loop_callback if obj is None else obj.set_own_callback


class Socket:
    """A socket, or anything with a descriptor that epoll takes, on an event loop.

    Subclass it and give it the events it is to handle; `event_write` is there. A subclass may have
    `__slots__`. The descriptor should not block.
    """

    __slots__ = (
        "_local",
        "_peer",
        "closed",
        "corked",
        "event_watch",
        "fd",
        "loop",
        "read_push_back",
        "sock",
        "write_buf",
        "write_buf_offset",
        "write_buf_size",
        "write_set_watch",
        "writer_func",
    )

    def __init__(self, sock: Handle, loop: Loop | None = None) -> None:
        """Watch `sock` on `loop`, or on the default loop; so far only for errors and hang-ups.

        Calls epoll_ctl(EPOLL_CTL_ADD), kevent(EV_ADD, EV_DISABLE) for both filters or, on poll,
        fstat(2). Raises `OSError` (EBADF, EEXIST, EPERM, ...) for a descriptor that can't be
        watched, and leaves the loop as it was.
        """
        fd = sock.fileno()
        self.sock: Handle | None = sock
        """The underlying handle; None once closed or stolen."""
        self.fd: int | None = fd
        """Its descriptor; None once closed or stolen."""
        self.loop: Final = loop if loop is not None else default_loop()
        """The loop that watches it."""
        self.closed: bool = False
        """True from `close` or `steal_socket` on."""
        self.corked: bool = False
        """True while TCP_CORK or TCP_NOPUSH is set by `tcp_cork`."""
        self.event_watch: int = POLLERR | POLLHUP | POLLNVAL
        """The mask of the events that it is watched for."""
        self.writer_func: WriterFunc | None = None
        """Called instead of write(2); see `set_writer_func`."""
        self.write_buf_offset: int = 0
        """How much of the first queued block is out already."""
        self.write_buf_size: int = 0
        """How many bytes are queued; a callable counts as one."""
        self.write_set_watch: bool = False
        """True while it is watched for writability on account of `write`, not of a subclass."""
        self.write_buf: deque[Queued] = _NO_QUEUE
        """What is queued for writing."""
        self.read_push_back: deque[Block] = _NO_PIECES
        """The pieces pushed back, the next to be read first."""
        self._peer = self._local = _NOWHERE
        before = self.loop.sockets.get(fd)
        self.loop.watch(fd, self.event_watch, self)
        if before is not None and not before.closed:
            warn("fd %d was closed behind the back of %s", fd, before.as_string())

    # --- reading and writing ----------------------------------------------------------------------

    def read(self, bytecount: int) -> bytes | None:
        """At most `bytecount` bytes: a piece that was pushed back, or one read(2) of up to 1 MiB.

        `b""` means that nothing is there now, and `None` that the other side has closed, that there
        was an error, or that the object is closed. Not the usual way of Python, where `b""` is the
        end. Raises `ValueError` for a `bytecount` below 1.

        Where a signal's handler raises behind the call, what was read is lost with the result, and
        the object is closed with the reason "interrupted".
        """
        if bytecount < 1:
            raise ValueError(f"read takes a number of bytes from 1 up, not {bytecount!r}")
        fd = self.fd
        if fd is None:
            return None
        try:
            if self.read_push_back:
                data = self._read_pushed_back(fd, bytecount)
                return data
            # An empty result is the end of the stream.
            return libc.read(fd, bytecount if bytecount < MAX_READ else MAX_READ) or None
        except BlockingIOError:
            return b""
        except OSError:
            return None
        except BaseException as error:
            self._read_interrupted(error)
            raise

    def _read_interrupted(self, error: BaseException) -> None:
        """Close, as a signal's handler raised, perhaps behind a read(2), and what that gave has
        gone with the result; unless the exception knows it: then it is still to be read."""
        match take_result(error):
            case bytes(data):
                if data and self.fd is not None:
                    self.read_push_back = deque((data, *self.read_push_back))
                    self.loop.pushed_back[self.fd] = self
            case int():
                pass  # It has failed.
            case _:
                self.close("interrupted")

    def _read_pushed_back(self, fd: int, bytecount: int) -> bytes | None:
        pieces = self.read_push_back
        if not pieces:
            return None  # A signal's handler has just closed the object.
        first = pieces[0]
        if len(first) > bytecount:
            view = memoryview(first)
            data = bytes(view[:bytecount])
            pieces[0] = view[bytecount:]
            return data
        data = bytes(first)
        waits = self.loop.pushed_back.get(fd) is self
        # No call from here on: a signal's handler could raise behind it, and the piece be lost.
        del pieces[0]
        if waits and not pieces and not self.closed:
            del self.loop.pushed_back[fd]
        return data

    def push_back_read(self, buf: bytes | bytearray | memoryview) -> None:
        """Put `buf` behind what was pushed back before; `read` returns that, a piece a call, before
        anything from the socket. Makes no system call.

        When the batch in hand is over, `event_read` is called again as long as there is pushed-back
        data and the object watches for reading. Does nothing on a closed object. Raises `TypeError`
        for anything but bytes.
        """
        piece = (_piece(buf),)
        pieces = self.read_push_back or deque()
        # No call from here on: a signal's handler could close the object behind it.
        if self.fd is not None and not self.closed:
            pieces += piece
            self.read_push_back = pieces
            self.loop.pushed_back[self.fd] = self

    def write(self, data: Writable) -> bool:
        """Write `data`, or queue it behind what is queued; a callable is run in its turn; None
        writes what is queued. True if everything went out, False if something waits.

        Calls write(2), or the writer function, for each block until one is not taken whole. Then
        the object watches for writability (one epoll_ctl or kevent), and for no longer than it
        needs to. Data is not copied: what is queued must not be changed. A callable that raises is
        not run again, and what is queued behind it stays.

        A failing write closes the object by its `close` with the reason "EPIPE", "ECONNRESET" or
        "write_error", and returns False; one that a signal's handler raises behind, so that nobody
        knows what went out, with "interrupted". On a closed object nothing happens, and it returns
        True.
        Raises `TypeError` for anything else, a str among it, and `OSError` where the watch fails.
        """
        fd = self.fd
        if fd is None:
            return True
        if not isinstance(data, bytes) or self.write_buf or self.writer_func is not None:
            return self._write_in_turn(fd, data)
        # Here goes nearly every write. It is what `_write_queue` does, for this one case; with
        # nothing queued there is no watch of our own to drop.
        try:
            try:
                written = libc.write(fd, data)
                if written == len(data) or self.closed:
                    return True
                self._account(written, data)
            except OSError as error:
                return self._write_failed(error, data)
            except BaseException as error:
                self._write_interrupted(error, data)
                raise
            self.on_incomplete_write()
            return False
        except BaseException as error:
            self._hear_queue(error)
            raise

    def _write_in_turn(self, fd: int, data: Writable) -> bool:
        new = None if data is None else _block(data)
        try:
            if new is not None and self.write_buf:
                self._queue(new)
                return False
            return self._write_queue(fd, new)
        except BaseException as error:
            self._hear_queue(error)
            raise

    def _write_queue(self, fd: int, new: Queued | None) -> bool:
        """Write `new`, before which nothing is queued, then the queue, until that is refused."""
        # Not in the `try` above: in CPython 3.11 what a signal's handler raises at the end of a
        # loop passes a `try` that begins with the loop.
        while True:
            # At once and first of all, as a signal's handler may close the object.
            queue = self.write_buf
            offset = self.write_buf_offset
            if new is None and not queue:
                if self.write_set_watch:  # Begun for callables behind one that raised.
                    self._unwatch_write()
                return True
            block = new if new is not None else queue[0]
            if callable(block):
                if new is None:
                    # Off the queue before it runs: it is run once, whatever it does.
                    self.write_buf_size -= 1
                    del queue[0]
                new = None
                block()
                continue
            count = len(block) - offset
            rest = memoryview(block)[offset:] if offset else block
            try:
                if self.writer_func is None:
                    written = libc.write(fd, rest)
                else:
                    written = self._write_by_func(block, count, offset)
                if self.closed:  # By the writer function, or out of a signal's handler.
                    return True
                self._account(written, None if new is None else block)
            except OSError as error:
                return self._write_failed(error, None if new is None else block)
            except BaseException as error:
                # What a writer function raises of its own says that it wrote nothing.
                if self.writer_func is None or not isinstance(error, Exception):
                    self._write_interrupted(error, None if new is None else block)
                raise
            if written != count:
                self.on_incomplete_write()
                return False
            if self.write_set_watch:
                self._unwatch_write()
            if new is not None:
                return True

    def _write_by_func(self, block: Block, count: int, offset: int) -> int:
        assert self.writer_func is not None
        written = self.writer_func(block, count, offset)
        if not 0 <= written <= count:
            raise ValueError(f"the writer function says it wrote {written!r} of {count} bytes")
        return written

    def _account(self, written: int, new: Block | None) -> None:
        """So many bytes of `new` are out, the rest is queued; or of the first block of the queue."""
        if new is not None:
            if written == len(new):
                return
            self._queue(new)
        # In this order, as a signal's handler may close the object, also behind the question.
        queue = self.write_buf
        if self.closed:
            return
        block = queue[0]
        self.write_buf_offset += written
        self.write_buf_size -= written
        if not callable(block) and self.write_buf_offset == len(block):
            self.write_buf_offset = 0
            del queue[0]

    def _write_interrupted(self, error: BaseException, new: Block | None) -> None:
        """Close, as a signal's handler raised, perhaps behind a write(2), and nobody knows what
        went out; unless the exception knows it."""
        written = take_result(error)
        if not isinstance(written, int):
            self.close("interrupted")
        elif written >= 0 and not self.closed:
            self._account(written, new)

    def _hear_queue(self, error: BaseException) -> None:
        """A callable or a signal's handler raised. What is queued still has to go out."""
        if not isinstance(error, Exception):  # It may have come between the queue and its size.
            self.write_buf_size = sum(map(_size, self.write_buf)) - self.write_buf_offset
        if self.write_buf and not self.event_watch & POLLOUT:
            self._watch_write_for_now()

    def _queue(self, new: Queued) -> None:
        queue: deque[Queued] = self.write_buf if self.write_buf is not _NO_QUEUE else deque()
        size = _size(new)
        # No call from here on: a signal's handler could close the object behind it.
        if not self.closed:
            self.write_buf = queue
            queue += (new,)
            self.write_buf_size += size

    def _write_failed(self, error: OSError, new: Block | None) -> bool:
        """What becomes of a write that failed; `new` is its block if that is not in the queue."""
        if self.closed:
            return True
        if not isinstance(error, BlockingIOError):
            self.close(_CLOSE_REASONS.get(error.errno or 0, "write_error"))
            return False
        if new is not None:
            self._queue(new)
        self._watch_write_for_now()
        return False

    def on_incomplete_write(self) -> None:
        """Called when only a part of a block could be written; not when nothing of it could.

        Watches for writability until the queue moves again: epoll_ctl or kevent, unless it did so
        already.
        """
        self._watch_write_for_now()

    def _watch_write_for_now(self) -> None:
        ours = self.write_set_watch or not self.event_watch & POLLOUT
        try:
            self.watch_write(True)
            self.write_set_watch = ours and self.event_watch & POLLOUT != 0
        except BaseException:
            # Not in a `finally`: an exception could cut that short, and nobody would end the watch.
            self.write_set_watch = ours and self.event_watch & POLLOUT != 0
            raise

    def _unwatch_write(self) -> None:
        self.watch_write(False)
        self.write_set_watch = False

    def set_writer_func(self, func: WriterFunc | None) -> None:
        """Call `func(data, count, offset)` instead of write(2); None goes back to write(2).

        It writes `count` bytes of `data` from `offset` on and returns how many it wrote. Where it
        would block it raises BlockingIOError; any other OSError closes the object. It may close the
        object, but must not write to it. Raises `TypeError` for what can't be called.
        """
        self.writer_func = callable_or_none("a writer function", func)

    # --- watching ---------------------------------------------------------------------------------

    def watch_read(self, on: bool) -> None:
        """Have `event_read` called when there is something to read, or no longer.

        epoll_ctl(EPOLL_CTL_MOD) or kevent(EV_ENABLE or EV_DISABLE) if that is a change, else, on
        poll, and on a closed object, no call. Raises `OSError` where that fails.
        """
        self._watch(POLLIN, on)

    def watch_write(self, on: bool) -> None:
        """Have `event_write` called when there is room to write, or no longer; calls as
        `watch_read`.

        Not needed for `write`, which watches while something is queued. Whoever calls this with a
        true value keeps the watch until calling it with a false one.
        """
        if on:
            self.write_set_watch = False
        self._watch(POLLOUT, on)

    def _watch(self, event: int, on: bool) -> None:
        old = self.event_watch
        new = old | event if on else old & ~event
        fd = self.fd
        if new != old and fd is not None:
            poller = self.loop.poller()
            try:
                poller.modify(fd, old, new)
                self.event_watch = new
            except BaseException as error:
                if by_handler(error):
                    # Before the call or behind it.
                    self.event_watch = old
                    try:
                        poller.modify(fd, new, old)
                    except OSError:
                        pass
                elif self.closed:  # By a signal's handler, just now.
                    return
                raise

    def tcp_cork(self, on: bool) -> None:
        """Hold back partial TCP segments until uncorked: setsockopt(TCP_CORK), or TCP_NOPUSH on the
        BSDs and macOS; no call if that is the state already.

        A descriptor that can't be corked is left alone, and `corked` stays False. A dead one
        (EBADF) is warned about and closed with the reason "tcp_cork_failed"; any other failure is
        raised as `OSError`. What uncorking sends, and when, differs by platform: docs/platforms.md.
        """
        fd = self.fd
        if fd is None or bool(on) == self.corked:
            return
        before = self.corked
        # What is uncorked once too often, since a signal's handler raised here, takes no harm.
        self.corked = True
        try:
            self.corked = bool(on) if set_cork(fd, on) else before
        except OSError as error:
            self.corked = before
            if error.errno != EBADF:
                raise
            warn("%s", error)
            self.close("tcp_cork_failed")

    # --- ending -----------------------------------------------------------------------------------

    def close(self, reason: str | None = None) -> None:
        """Close the socket once the batch in hand is over; `reason` is for the debugging log.

        Uncorks it, and takes it from the poller: epoll_ctl(EPOLL_CTL_DEL), or kevent(EV_DELETE) for
        each filter. What is queued is dropped. close(2) comes after the batch, so that the number
        can't be another's while the batch may have an event for it: in `run`, `reset`, or at the
        end of `with loop`. Closing twice does nothing.
        """
        if not self.closed:
            debug("closing fd %d (%s)", self.fd, reason)
            self._leave(self.sock)

    def steal_socket(self) -> Handle | None:
        """Close the object but not its socket, which is returned, off the poller (the calls are
        those of `close`) and free to be wrapped again at once. None if the object is closed."""
        stolen = self.sock
        return stolen if self._leave(None) else None

    def _leave(self, sock: Handle | None) -> bool:
        """Leave the loop, which is to close `sock`. False if that is done already."""
        fd = self.fd
        if fd is None:
            return False
        # A signal's handler may close between a failing call and the look at its errno.
        number = get_errno()
        leaving = Leaving(fd, self, sock)
        # From here on it will be let go, also if a signal's handler raises before the rest is done.
        self.loop.leaving += (leaving,)
        was_closed, self.closed = self.closed, True
        if was_closed:  # By a signal's handler, just now.
            leaving.sock = None
            return False
        self.finish_leaving(cut_short=False)
        set_errno(number)
        return True

    def finish_leaving(self, cut_short: bool = True) -> None:
        """The rest of `close` and `steal_socket`, which the loop does where a signal's handler has
        cut it short. Does nothing if it is done."""
        self.closed = True
        # Callables in the queue tend to refer back to the object.
        self.write_buf = _NO_QUEUE
        self.write_buf_offset = self.write_buf_size = 0
        fd = self.fd
        if fd is None:
            return
        try:
            # Sends what is held back, in case that was forgotten.
            self.tcp_cork(False)
        except OSError as error:
            warn("%s", error)
        # A loop that was reset since knows nothing of this object.
        if self.loop.sockets.get(fd) is self:
            try:
                self.loop.poller().unregister(fd, self.event_watch)
            except OSError as error:
                if error.errno != ENOENT or not cut_short:
                    self.dump_error(str(error))
            self.loop.pushed_back.pop(fd, None)
            self.loop.own_callbacks.pop(fd, None)
        self.read_push_back = _NO_PIECES
        self.sock = self.fd = None

    # --- events, for subclasses -------------------------------------------------------------------

    def event_read(self) -> None:
        """There is something to read, or the end, or an error, which `read` tells by None.
        A subclass that watches for reading has one of its own; this one raises
        `NotImplementedError`."""
        self._not_implemented("event_read")

    def event_write(self) -> None:
        """There is room to write. Writes what is queued, as `write(None)`."""
        self.write(None)

    def event_err(self) -> None:
        """The descriptor has an error. For a subclass to handle, mostly by `close`; this one raises
        `NotImplementedError`."""
        self._not_implemented("event_err")

    def event_hup(self) -> None:
        """The descriptor is hung up. For a subclass to handle, mostly by `close`; this one raises
        `NotImplementedError`."""
        self._not_implemented("event_hup")

    def _not_implemented(self, event: str) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} has no {event}: {self.as_string()}")

    # --- telling ----------------------------------------------------------------------------------

    def peer_ip_string(self) -> str | None:
        """The IP address of the other side; None if it has none (a UNIX socket, not connected,
        closed). getpeername(2), until it has succeeded once."""
        return self._peer_address().ip

    def peer_addr_string(self) -> str | None:
        """The other side as "ip:port" or "[ip]:port"; None and calls as `peer_ip_string`."""
        return self._peer_address().with_port()

    def local_ip_string(self) -> str | None:
        """The IP address of this side; None if it has none. getsockname(2), until it has succeeded
        once."""
        return self._local_address().ip

    def local_addr_string(self) -> str | None:
        """This side as "ip:port" or "[ip]:port"; None and calls as `local_ip_string`."""
        return self._local_address().with_port()

    @property
    def peer_ip(self) -> str | None:
        """The IP address of the other side once it was asked for; None before. No system call, as
        with all four of these."""
        return self._peer.ip

    @property
    def peer_port(self) -> int | None:
        """The port of the other side once it was asked for."""
        return self._peer.port

    @property
    def local_ip(self) -> str | None:
        """The IP address of this side once it was asked for."""
        return self._local.ip

    @property
    def local_port(self) -> int | None:
        """The port of this side once it was asked for."""
        return self._local.port

    def _peer_address(self) -> _Address:
        if self.sock is None:
            return _NOWHERE
        if self._peer is _NOWHERE:
            self._peer = _address(libc.getpeername, self.sock)
        return self._peer

    def _local_address(self) -> _Address:
        if self.sock is None:
            return _NOWHERE
        if self._local is _NOWHERE:
            self._local = _address(libc.getsockname, self.sock)
        return self._local

    def as_string(self) -> str:
        """The class, what is watched for, open or closed, and the other side if there is one:
        "Client(RW): open to 127.0.0.1:4711". Calls as `peer_ip_string`."""
        watched = ("R" if self.event_watch & POLLIN else "") + (
            "W" if self.event_watch & POLLOUT else ""
        )
        state = "closed" if self.closed else "open"
        peer = self.peer_addr_string()
        return f"{type(self).__name__}({watched}): {state}" + (f" to {peer}" if peer else "")

    def dump_error(self, message: str) -> None:
        """Print `message`, this object and the calls that led here to standard error."""
        calls = []
        # Not by `traceback`, which would open the source of every caller.
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            calls.append(f"\t{code.co_filename}:{frame.f_lineno} called {code.co_name}\n")
            frame = frame.f_back
        sys.stderr.write(f"ERROR: {message}\n\t{self!r} = {self.as_string()}\n{''.join(calls)}")

    def debugmsg(self, message: str, *args: object) -> None:
        """Print `message % args` to standard error, behind ">>> "."""
        Socket.DebugMsg(message, *args)

    # --- the loop, in the manual's words ----------------------------------------------------------

    SetPostLoopCallback: ClassVar[_PostLoopCallbackSetter] = _PostLoopCallbackSetter()
    """Call a callback with (descriptor map, other fds) after each batch; a false answer ends the
    loop. On the class it sets the one of the default loop, on an object that object's own, which
    goes with it. None takes it off."""

    def set_own_callback(self, callback: PostLoopCallback | None) -> None:
        """`SetPostLoopCallback` on an object. Raises `TypeError` for what can't be called."""
        callback = callable_or_none("a post-loop callback", callback)
        fd = self.fd
        # Questions that fall through: behind a jump a signal's handler could close the object.
        if fd is not None and callback is not None and not self.closed:
            self.loop.own_callbacks[fd] = callback
        elif fd is not None:
            self.loop.own_callbacks.pop(fd, None)

    @staticmethod
    def set_loop_callback(callback: PostLoopCallback | None) -> None:
        """`SetPostLoopCallback` on the class: `Loop.set_post_loop_callback`."""
        default_loop().set_post_loop_callback(callback)

    @classmethod
    def EventLoop(cls) -> None:
        """`Loop.run`."""
        default_loop().run()

    @classmethod
    def Reset(cls) -> None:
        """`Loop.reset`."""
        default_loop().reset()

    @classmethod
    def HaveEpoll(cls) -> bool:
        """`Loop.have_epoll`."""
        return default_loop().have_epoll

    @classmethod
    def HaveKQueue(cls) -> bool:
        """`Loop.have_kqueue`."""
        return default_loop().have_kqueue

    @classmethod
    def WatchedSockets(cls) -> int:
        """`Loop.watched_sockets`."""
        return default_loop().watched_sockets

    @classmethod
    def DescriptorMap(cls) -> DescriptorMapping:
        """`Loop.descriptor_map`."""
        return default_loop().descriptor_map

    @classmethod
    def ToClose(cls) -> list[Handle]:
        """`Loop.to_close`."""
        return default_loop().to_close

    @classmethod
    def OtherFds(cls, fds: OtherFdMapping | None = None) -> OtherFdMapping:
        """`Loop.other_fds`; with a mapping, set it."""
        if fds is not None:
            default_loop().other_fds = fds
        return default_loop().other_fds

    @classmethod
    def AddOtherFds(cls, fds: OtherFdMapping) -> OtherFdMapping:
        """`Loop.add_other_fds`."""
        return default_loop().add_other_fds(fds)

    @classmethod
    def SetLoopTimeout(cls, ms: int) -> int:
        """`Loop.set_loop_timeout`."""
        return default_loop().set_loop_timeout(ms)

    @classmethod
    def AddTimer(cls, seconds: float, callback: Callable[[], object]) -> Timer:
        """`Loop.add_timer`."""
        return default_loop().add_timer(seconds, callback)

    @classmethod
    def EnableProfiling(cls) -> bool:
        """`Loop.enable_profiling`."""
        return default_loop().enable_profiling()

    @classmethod
    def DisableProfiling(cls) -> None:
        """`Loop.disable_profiling`."""
        default_loop().disable_profiling()

    @classmethod
    def ProfilingData(cls) -> ProfileMapping:
        """`Loop.profiling_data`."""
        return default_loop().profiling_data

    @classmethod
    def DebugMsg(cls, message: str, *args: object) -> None:
        """Print `message % args` to standard error, behind ">>> "."""
        text = message.rstrip("\n")
        sys.stderr.write(f">>> {text % args if args else text}\n")


class _Address:
    """One side's IP address and port, kept once the kernel has told them."""

    __slots__ = ("ip", "port")

    def __init__(self, ip: str | None, port: int | None) -> None:
        self.ip = ip
        self.port = port

    def with_port(self) -> str | None:
        if self.ip is None:
            return None
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


_NOWHERE: Final = _Address(None, None)


def _address(ask: Callable[[Handle], object], sock: Handle) -> _Address:
    """What getpeername or getsockname tells of `sock`, if that is an IP address and a port."""
    try:
        answer = ask(sock)
    except (OSError, AttributeError):
        return _NOWHERE
    match answer:
        case (str(ip), int(port)) | (str(ip), int(port), int(), int()):
            return _Address(ip.partition("%")[0], port)
        case _:
            return _NOWHERE


def _block(data: Writable) -> Queued:
    """`data` as it is queued: bytes as they are, other data as a view of its bytes."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        view = memoryview(data)
        return view.cast("B") if view.nbytes else b""
    if callable(data):
        return data
    _not_bytes("write takes bytes, a bytearray, a memoryview, a callable or None", data)


def _size(queued: Queued) -> int:
    return 1 if callable(queued) else len(queued)


def _piece(buf: object) -> bytes:
    if isinstance(buf, memoryview):
        return buf.tobytes()
    if isinstance(buf, (bytes, bytearray)):
        return bytes(buf)
    _not_bytes("push_back_read takes bytes, a bytearray or a memoryview", buf)


def _not_bytes(what_is: str, given: object) -> NoReturn:
    hint = "; encode it first" if isinstance(given, str) else ""
    raise TypeError(f"{what_is}, not {type(given).__name__} {given!r:.40}{hint}")
