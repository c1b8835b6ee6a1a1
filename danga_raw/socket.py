"""`Socket`, the object of Danga::Socket's manual: a loop hands its events to its methods."""

from __future__ import annotations

import sys
from _socket import socket as RawSocket
from collections import deque
from errno import EBADF, ECONNRESET, ENOTCONN, EPIPE
from io import UnsupportedOperation
from operator import index

from danga_raw._addresses import NOWHERE, ask, with_port
from danga_raw._connecting import Connecting, begin, begun, drop
from danga_raw._interrupt import alone, by_handler, take_result
from danga_raw._libc import libc
from danga_raw._log import debug, described, formatted, print_error, warn
from danga_raw._mistakes import (
    check_callback,
    check_class,
    check_made,
    no_copy,
    no_data,
    no_handle,
    whole,
)
from danga_raw._poll import POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT
from danga_raw._sockopt import set_cork
from danga_raw._typing import Generic, cast
from danga_raw.loop import Loop, registry_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket as PythonSocket
    from types import FrameType
    from typing import Final, Literal, NoReturn, TypeVar

    from danga_raw._addresses import Address
    from danga_raw.timers import Timer
    from danga_raw.types import (
        Block,
        Callback,
        Constructor,
        DescriptorMapping,
        Handle,
        HandleT,
        OtherFdMapping,
        PostLoopCallback,
        ProfileMapping,
        Queued,
        SocketAddress,
        SocketT,
        Writable,
        WriterFunc,
    )

    Method = TypeVar("Method")
else:
    HandleT = object

MAX_READ: Final = 1_048_576
"""The most bytes that one read(2) asks for, as in the original."""

# Most objects never queue anything, and a deque of its own would cost each of them 760 bytes: all
# share an empty one that takes nothing, until they have something to queue.
_NO_QUEUE: Final[deque[Queued]] = deque(maxlen=0)
_NO_PIECES: Final[deque[Block]] = deque(maxlen=0)

_NOT_ASKED: Final[tuple[Address, Address]] = (NOWHERE, NOWHERE)

_ALWAYS: Final = POLLERR | POLLHUP | POLLNVAL
"""Always watched for, as in the original."""

_CLOSE_REASONS: Final = {EPIPE: "EPIPE", ECONNRESET: "ECONNRESET"}

_EARLY_IS_ENOTCONN: Final = ("darwin", "netbsd", "openbsd")
"""Platforms where a write before the connection is established fails with ENOTCONN, not EAGAIN
(sosend() in their uipc_socket.c)."""

_default_loop: Loop | None = None


def default_loop() -> Loop:
    """The loop that the class methods of `Socket` act on. It is made when it is first asked for."""
    global _default_loop
    if _default_loop is None:
        with alone:
            made = Loop()
            # A signal's handler may have made one meanwhile. No call before the store.
            if _default_loop is None:
                _default_loop = made
    return _default_loop


def _as(described: object) -> Callable[[Method], Method]:
    """A decorator that copies the docstring of the method that is forwarded to."""

    def document(method: Method) -> Method:
        method.__doc__ = described.__doc__
        return method

    return document


class _PostLoopCallbackSetter:
    """`set_loop_callback` on the class, `set_own_callback` on an object."""

    def __get__(
        self, obj: Socket[Handle] | None, owner: type[Socket[Handle]]
    ) -> Callable[[PostLoopCallback | None], None]:
        return owner.set_loop_callback if obj is None else obj.set_own_callback


class Socket(Generic[HandleT]):
    """A socket, or anything else whose descriptor epoll accepts, on an event loop.

    Subclass it and define the events to handle; only `event_write` has a useful default. A subclass
    may have `__slots__`. The descriptor should be non-blocking.
    """

    # Private names have two underscores, except those that other modules use: a subclass may well
    # define its own `_queue`.
    __slots__ = {
        "__addresses": "The peer's address and the local one, once they have been asked for.",
        "__direct": "The descriptor while reads and writes may go straight to it: `_go_direct`.",
        "__registry": "What its loop watches.",
        "closed": "True from `close` or `steal_socket` on.",
        "corked": "True while TCP_CORK or TCP_NOPUSH is set by `tcp_cork`.",
        "event_watch": "The event mask it is watched for, in the bits of poll(2).",
        "fd": "Its descriptor; None once closed or stolen.",
        "loop": "The loop that watches it.",
        "read_push_back": "Pushed-back data, in the order it will be read.",
        "sock": "The underlying handle; None once closed or stolen.",
        "write_buf": "Queued blocks and callables; a partly written block may be a memoryview.",
        "write_buf_offset": "How many bytes of the first queued block have been written.",
        "write_buf_size": "How many bytes are queued; a callable counts as one.",
        "write_set_watch": "True while only `write` wants it to be watched for writability.",
        "writer_func": "Called instead of write(2); see `set_writer_func`.",
    }

    __getstate__ = no_copy

    def __init_subclass__(cls, **more: object) -> None:
        super().__init_subclass__(**more)
        check_class(cls, Socket)

    def __init__(self, sock: HandleT, loop: Loop | None = None) -> None:
        """Watch `sock` on `loop`, or on the default loop, at first only for errors and hang-ups.

        Calls epoll_ctl(EPOLL_CTL_ADD); kevent(EV_ADD, EV_DISABLE) for both filters; or, on poll,
        fstat(2). Raises `OSError` (EBADF, EEXIST, EPERM, ...) if the descriptor can't be watched,
        and leaves the loop as it was. Warns, once per process, about a blocking socket.
        """
        try:
            fd = sock.fileno()
        except (AttributeError, UnsupportedOperation):
            raise no_handle(sock) from None
        if type(fd) is not int:  # ctypes would search a mock for a parameter for ever.
            raise TypeError(f"a handle's fileno() is a number, not {fd!r}")
        if loop is None:
            loop = _default_loop or default_loop()
            registry = loop._registry  # pyright: ignore[reportPrivateUsage]  # a Loop for sure
        else:
            registry = registry_of(loop)
        self.loop: Loop = loop
        self.__registry = registry
        self.sock: HandleT | None = sock
        self.fd: int | None = fd
        self.closed: bool = False
        self.corked: bool = False
        self.event_watch: int = _ALWAYS
        self.writer_func: WriterFunc | None = None
        self.write_buf_offset: int = 0
        self.write_buf_size: int = 0
        self.write_set_watch: bool = False
        self.write_buf: deque[Queued] = _NO_QUEUE
        self.read_push_back: deque[Block] = _NO_PIECES
        self.__addresses = _NOT_ASKED
        self.__direct: int | None = fd
        try:
            registry.register(fd, _ALWAYS, self)
        except BaseException:
            registry.leave(self, None)  # Whoever still has the object must not use the descriptor.
            raise
        if begun and (pending := begun.pop(fd, None)) is not None:
            self.__direct = None  # Writes are queued until it is connected.
            pending.attach(self, fd, registry.connecting)
        if isinstance(sock, RawSocket) and sock.gettimeout() is None:
            _warn_of_blocking(self)

    @classmethod
    def connect(
        cls: type[SocketT],
        address: SocketAddress,
        *args: object,
        timeout: float | None = None,
        **more: object,
    ) -> SocketT:
        """Make an object by `cls(sock, *args, **more)` and connect it to `address`: ("127.0.0.1",
        80), ("::1", 80), or the path of a UNIX socket.

        The loop calls its `event_connect` once, with the outcome, which after `timeout` seconds is
        a TimeoutError. A connect that fails at once is reported in the same way. Until then, writes
        are queued.

        Calls socket(2), connect(2), those of the constructor and of `watch_write`, then
        getsockopt(SO_ERROR). Raises `ValueError` for a host name, as names are never looked up,
        `TypeError` for anything that is not an address, and `OSError` if no socket can be made
        (EMFILE); then nothing is left behind.
        """
        made: list[PythonSocket] = []
        obj, fd = None, -1
        try:
            error = begin(address, made)
            sock = made[0]
            fd = sock.fileno()
            # `cls(...)` in two steps: if `__init__` raises, the loop may know the object already.
            # The arguments of a subclass's constructor can't be typed here.
            obj = cast("SocketT", cast("Constructor", cls.__new__)(cls, sock, *args, **more))
            begun[fd] = pending = Connecting(error)
            cast("Constructor", cls.__init__)(obj, sock, *args, **more)
            check_made(obj)
            if begun and begun.pop(fd, None) is not None and obj.fd is not None:
                pending.attach(obj, obj.fd, obj.__registry.connecting)  # It wrapped the socket.
            pending.start(timeout)
        except BaseException:
            begun.pop(fd, None)
            if obj is not None:
                obj._withdraw()
            for sock in made:
                drop(sock)
            raise
        return obj

    def _withdraw(self) -> None:
        """Leave the loop, if the constructor got as far as joining it."""
        if hasattr(self, "read_push_back"):
            self.__registry.leave(self, None)

    # --- reading and writing ----------------------------------------------------------------------

    def read(self, bytecount: int) -> bytes | None:
        """At most `bytecount` bytes: a pushed-back piece, or one read(2) of up to 1 MiB.

        `b""` means that there is nothing to read now; `None`, that the peer has closed, that there
        was an error, or that the object is closed. Note that elsewhere in Python `b""` means the
        end. Raises `ValueError` for a `bytecount` below 1, `TypeError` if it is not an int. If a
        signal's handler raises just after the call, what was read is lost, and the object is closed
        with the reason "interrupted".
        """
        try:
            fd = self.__direct
            if fd is not None and bytecount <= 1_048_576:  # MAX_READ
                # No bytes: the end of the stream, or none were asked for. Checking the number only
                # then saves each request a sixtieth.
                return libc.read(fd, bytecount) or _end(bytecount)
            data = self.__read_pushed_back(bytecount)
            return data  # Within the `try`: a signal's handler may raise after the call.
        except BaseException as error:
            return self.__read_failed(error, bytecount)

    def __read_pushed_back(self, bytecount: int) -> bytes | None:
        """`read`, when it can't go straight to the descriptor."""
        if index(bytecount) < 1:
            _end(bytecount)
        fd = self.fd
        if fd is None:
            return None
        pieces = self.read_push_back
        if not pieces:
            return libc.read(fd, min(bytecount, MAX_READ)) or None
        first = pieces[0]
        if len(first) > bytecount:
            view = memoryview(first)
            data = bytes(view[:bytecount])
            pieces[0] = view[bytecount:]
            return data
        registry = self.__registry
        data = bytes(first)
        waits = registry.objects.get(fd) is self and fd in registry.readable
        # No call from here on: a signal's handler could raise after it, and lose the piece.
        del pieces[0]
        if not pieces and not self.closed:
            if waits:
                del registry.readable[fd]
            # `_go_direct`, without the call.
            if not self.write_buf and self.writer_func is None and fd not in registry.connecting:
                self.__direct = fd
        return data

    def __read_failed(self, error: BaseException, bytecount: int) -> bytes | None:
        """What `read` returns for an error. If a signal's handler raised, what was read is pushed
        back if the exception carries it; else the object is closed."""
        if isinstance(error, OSError) and bytecount > 0:
            return b"" if isinstance(error, BlockingIOError) else None
        check_made(self)
        if whole("read takes a number of bytes from 1 up", bytecount) < 1:
            if isinstance(error, OverflowError) or not by_handler(error):
                _end(bytecount)
            del error  # no cycle
            raise  # The number was rejected before anything was read.
        result = take_result(error)
        if not isinstance(result, (bytes, int)):
            self.close_as("interrupted")
        elif isinstance(result, bytes) and result and self.fd is not None:
            self.__direct = None
            self.read_push_back = deque((result, *self.read_push_back))
            self.__heed_pushed_back()
        del error
        raise

    def push_back_read(self, buf: bytes | bytearray | memoryview) -> None:
        """Have `read` return `buf` before it reads from the socket again. Several pieces are
        returned in the order they were pushed back, one a call. After the current batch of events,
        `event_read` is called again as long as there is pushed-back data and the object watches for
        reading.

        Makes no system call. Does nothing on a closed object. Raises `TypeError` for anything but
        bytes.
        """
        piece = (_piece(buf),)
        pieces = self.read_push_back or deque()
        # No call from here on: a signal's handler could close the object after it.
        if not self.closed:
            self.__direct = None
            pieces += piece
            self.read_push_back = pieces
            self.__heed_pushed_back()

    def __heed_pushed_back(self) -> None:
        """Have the loop call `event_read` for pushed-back data, if reading is watched for."""
        fd = self.__registered()
        # Conditions that fall through: after a jump a signal's handler could close the object.
        if fd is not None and self.read_push_back:
            registry = self.__registry
            if self.event_watch & POLLIN:
                registry.something_due = True
                registry.readable[fd] = None
            else:
                registry.readable.pop(fd, None)

    def __registered(self) -> int | None:
        """The descriptor, if the loop knows the object by it: after `Loop.reset` it doesn't."""
        fd = self.fd
        return fd if fd is not None and self.__registry.objects.get(fd) is self else None

    def _go_direct(self) -> None:
        """Let reads and writes go straight to the descriptor, unless data is queued or pushed back,
        a writer function is set or a connect is pending."""
        # No call, and conditions that fall through: a signal's handler may close the object.
        if not self.write_buf and not self.read_push_back and self.writer_func is None:
            if self.fd not in self.__registry.connecting and not self.closed:
                self.__direct = self.fd

    def write(self, data: Writable) -> bool:
        """Write `data`, or queue it if something is queued already. A callable is run in its turn;
        None writes what is queued. True if everything was written, False if something is queued.

        Calls write(2), or the writer function, for each block until one is not written whole. Then
        the object watches for writability (one epoll_ctl or kevent), for no longer than it has to.
        Data is not copied: what is queued must not be modified. A callable that raises is not run
        again; the rest of the queue stays.

        If a write fails, the object is closed by its `close` with the reason "EPIPE", "ECONNRESET"
        or "write_error", and this returns False. If a signal's handler raises just after a write,
        so that nobody knows what was written, the reason is "interrupted". On a closed object
        nothing happens, and this returns True. Raises `TypeError` for other data, such as a str,
        and `OSError` if watching fails.
        """
        try:
            fd = self.__direct
            if fd is None or type(data) is not bytes:
                return self.__write_queued() if data is None else self.__write_new(data)
            # Nearly every write comes here: `__write_new` without its checks. pyright thinks of a
            # class that is bytes and callable; `isinstance`, which it understands, costs more.
            try:
                written = libc.write(fd, data)  # pyright: ignore[reportArgumentType]
                if written == len(data) or self.closed:  # pyright: ignore[reportArgumentType]
                    return True
                self.__queue(data, written)
            except BaseException as error:
                return self.__write_failed(error, data)  # pyright: ignore[reportArgumentType]
            self.on_incomplete_write()
            return False
        except BaseException as error:
            # A callable or a signal's handler raised. What is queued must still be written.
            check_made(self)
            if not isinstance(error, Exception):  # Queue and size may not agree.
                self.write_buf_size = sum(map(_size, self.write_buf)) - self.write_buf_offset
            if self.write_buf and not self.event_watch & POLLOUT:
                self.__watch_write_for_now()
            raise

    def __write_new(self, data: Writable) -> bool:
        """`write` of data that can't go straight to the descriptor, or isn't `bytes`."""
        fd = self.fd
        if fd is None:
            return True
        new = _block(data)
        if self.write_buf or fd in self.__registry.connecting:
            # An early write(2) would consume the connect's outcome, which is `event_connect`'s.
            self.__queue(new, 0)
            return not self.write_buf
        if not isinstance(new, (bytes, memoryview)):
            new()
            return self.__write_queued()
        count, func = len(new), self.writer_func
        try:
            written = libc.write(fd, new) if func is None else _write_by(func, self, new, count, 0)
            if self.closed:  # By the writer function, or out of a signal's handler.
                return True
            if written != count:
                self.__queue(new, written)
        except BaseException as error:
            return self.__write_failed(error, new)
        if written != count:
            self.on_incomplete_write()
        elif self.write_set_watch:
            self.__unwatch_write()
        return written == count

    def __write_queued(self) -> bool:
        """Write what is queued, until a block is not written whole."""
        # Not in the `try` of `write`: in CPython 3.11 an exception that a signal's handler raises
        # at the end of a loop escapes a `try` that begins with the loop.
        while True:
            # No call in between: a signal's handler may close the object later on.
            fd = self.fd
            queue = self.write_buf
            offset = self.write_buf_offset
            func = self.writer_func
            if fd is None:
                return True
            if offset:
                # Partly written: so it is data, and the connection stands.
                rest = queue[0]
                if TYPE_CHECKING:
                    assert isinstance(rest, (bytes, memoryview))
                if func is None:
                    rest = rest[offset:]
                    count = len(rest)
                else:
                    count = len(rest) - offset
            else:
                if fd in self.__registry.connecting:
                    return not queue
                if not queue:
                    if self.write_set_watch:  # For callables queued after one that raised.
                        self.__unwatch_write()
                    self._go_direct()
                    return True
                first = queue[0]
                if not isinstance(first, (bytes, memoryview)):
                    # A condition that falls through: after a jump a handler could close the object.
                    if not self.closed:
                        # Taken off the queue before it runs, so that it runs once whatever it does.
                        self.write_buf_size -= 1
                        del queue[0]
                        first()
                    continue
                rest = first
                count = len(rest)
            try:
                if func is None:
                    written = libc.write(fd, rest)
                else:
                    written = _write_by(func, self, rest, count, offset)
                # Conditions that fall through, and no call: a handler may close the object.
                if not self.closed:
                    self.write_buf_size -= written
                    if written != count:
                        self.write_buf_offset = offset + written
                    else:
                        self.write_buf_offset = 0
                        del queue[0]
                else:  # By the writer function or a signal's handler.
                    return True
            except BaseException as error:
                return self.__write_failed(error, None)
            if written != count:
                if not offset and func is None:
                    first = memoryview(rest)
                    # No call from here on: a signal's handler may have written after that one.
                    if queue and queue[0] is rest:
                        queue[0] = first  # Slicing bytes would copy the rest for each write.
                self.on_incomplete_write()
                return False
            if self.write_set_watch:
                self.__unwatch_write()

    def __queue(self, new: Queued, out: int) -> None:
        """Queue `new`, of which `out` bytes have been written."""
        queue: deque[Queued] = self.write_buf if self.write_buf is not _NO_QUEUE else deque()
        left = _size(new) - out
        if out and isinstance(new, bytes) and self.writer_func is None:
            new = memoryview(new)
        # No call from here on: a signal's handler could close the object after it.
        if not self.closed:
            self.__direct = None
            self.write_buf = queue
            queue += (new,)
            self.write_buf_offset += out
            self.write_buf_size += left

    def __write_failed(self, error: BaseException, new: Block | None) -> bool:
        """Deal with a write that raised; `new` is its block, unless that is in the queue. Closes
        the object if a signal's handler raised and nobody knows what was written."""
        if not isinstance(error, OSError):
            # An exception of the writer function itself means that it wrote nothing.
            if self.writer_func is None or not isinstance(error, Exception):
                written = take_result(error)
                if not isinstance(written, int):
                    self.close_as("interrupted")
                elif new is not None:
                    if 0 <= written < len(new):
                        self.__queue(new, written)
                elif written >= 0 and not self.closed:
                    queue = self.write_buf
                    block = queue[0]
                    self.write_buf_size -= written
                    self.write_buf_offset += written
                    if self.write_buf_offset == _size(block):
                        self.write_buf_offset = 0
                        del queue[0]
            del error  # no cycle
            raise
        if self.closed:
            return True
        early = error.errno == ENOTCONN and libc.platform in _EARLY_IS_ENOTCONN
        if isinstance(error, BlockingIOError) or early:
            if new is not None:
                self.__queue(new, 0)
            self.__watch_write_for_now()
        else:
            self.close_as(_CLOSE_REASONS.get(error.errno or 0, "write_error"))
        return False

    def on_incomplete_write(self) -> None:
        """Called when a block was written only in part; not when nothing of it was. Watches for
        writability until the queue moves again: epoll_ctl or kevent, unless it does already."""
        if not self.event_watch & POLLOUT:
            self.__watch_write_for_now()

    def __watch_write_for_now(self) -> None:
        ours = self.write_set_watch or not self.event_watch & POLLOUT
        try:
            self.watch_write(True)
            self.write_set_watch = ours and self.event_watch & POLLOUT != 0
        except BaseException:
            # Not in a `finally`: an exception could cut that short, and the watch would never end.
            self.write_set_watch = ours and self.event_watch & POLLOUT != 0
            raise

    def __unwatch_write(self) -> None:
        self.watch_write(False)
        self.write_set_watch = False

    def set_writer_func(self, func: WriterFunc | None) -> None:
        """Call `func(data, count, offset)` instead of write(2); None goes back to write(2).

        It must write `count` bytes of `data`, starting at `offset`, and return how many it wrote,
        or raise BlockingIOError if it would block; any other OSError closes the object. It may
        close the object, but must not write to it. Does nothing on a closed object. Raises
        `TypeError` if `func` is not callable.
        """
        if func is not None:
            check_callback("a writer function", func)
        if not self.closed:
            self.__direct = None
            self.writer_func = func
            self._go_direct()

    # --- watching ---------------------------------------------------------------------------------

    def watch_read(self, on: bool) -> None:
        """Start or stop calling `event_read` when there is something to read.

        Calls epoll_ctl(EPOLL_CTL_MOD), or kevent(EV_ENABLE or EV_DISABLE), if that is a change; on
        poll and on a closed object, nothing. Raises `OSError` if that fails.
        """
        self._watch(POLLIN, on)

    def watch_write(self, on: bool) -> None:
        """Start or stop calling `event_write` when there is room to write; calls as `watch_read`.

        `write` doesn't need this: it watches by itself while something is queued. A watch that was
        started by this method lasts until this method ends it.
        """
        try:
            if on:
                self.write_set_watch = False
            elif self.fd in self.__registry.connecting:
                self.write_set_watch = True  # It is needed for the outcome, and ends with it.
                return
        except AttributeError:
            check_made(self)
            raise
        self._watch(POLLOUT, on)

    def _watch(self, event: int, on: bool) -> None:
        try:
            old = self.event_watch
        except AttributeError:
            check_made(self)
            raise
        new = old | event if on else old & ~event
        fd = self.fd
        if new == old or fd is None:
            return
        registry = self.__registry
        try:
            (registry.poller or registry.open()).modify(fd, old, new)
            self.event_watch = new
        except BaseException as error:
            if by_handler(error):
                registry.undo_modify(self, fd, old, new)
            elif self.closed:  # By a signal's handler.
                return
            raise
        if self.read_push_back:
            self.__heed_pushed_back()

    def tcp_cork(self, on: bool) -> None:
        """Hold back partial TCP segments, or no longer: setsockopt(TCP_CORK), or TCP_NOPUSH on the
        BSDs and macOS; no call if nothing changes. What uncorking sends, and when, depends on the
        platform: docs/platforms.md.

        On anything that can't be corked this does nothing, and `corked` stays False. For a dead
        descriptor (EBADF) it warns and closes the object with the reason "tcp_cork_failed"; other
        failures raise `OSError`.
        """
        fd = self.fd
        on = bool(on)
        if fd is None or on == self.corked:
            return
        # Set first: if a signal's handler raises here, to uncork once too often does no harm.
        self.corked = True
        try:
            self.corked = on if set_cork(fd, on) else not on
        except OSError as error:
            self.corked = not on
            if error.errno != EBADF:
                raise
            warn("%s", error)
            self.close_as("tcp_cork_failed")

    # --- ending -----------------------------------------------------------------------------------

    def close(self, reason: str | None = None) -> None:
        """Close the socket after the current batch of events; `reason` goes to the debugging log.

        Uncorks it and unregisters it at once: epoll_ctl(EPOLL_CTL_DEL), or kevent(EV_DELETE) for
        each filter. What is queued is dropped. close(2) follows after the batch, since the
        descriptor's number must not be reused while the batch may hold an event for it: in `run`,
        `reset`, or at the end of `with loop`. Closing twice does nothing.
        """
        try:
            fd = self.fd
        except AttributeError:
            check_made(self)
            raise
        # Logged last, as a logging handler may raise or use the loop. If nobody has imported
        # logging, the call would cost a tenth of all this.
        if fd is not None and self.__registry.leave(self, self.sock) and "logging" in sys.modules:
            debug("closing fd %d (%s)", fd, reason)

    def close_as(self, reason: str) -> None:
        """`close`, even if a subclass's `close` raises: the package closes objects by this."""
        try:
            self.close(reason)
        except BaseException:
            self.__registry.leave(self, self.sock)
            raise

    def steal_socket(self) -> HandleT | None:
        """Close the object but not its socket, which is unregistered (the calls are those of
        `close`) and returned, and can be wrapped again at once. None if the object is closed."""
        stolen = self.sock
        return stolen if self.__registry.leave(self, None) else None

    def let_go(self) -> None:
        """Drop what a closed object holds. Called by the loop's registry; makes no call at all."""
        # Writer functions and queued callables tend to refer back to the object.
        self.__direct = self.writer_func = None
        self.write_buf = _NO_QUEUE
        self.write_buf_offset = self.write_buf_size = 0
        self.read_push_back = _NO_PIECES
        self.sock = self.fd = None

    # --- events, for subclasses -------------------------------------------------------------------

    def event_read(self) -> None:
        """There is something to read, or the end or an error, for which `read` returns None. A
        subclass that watches for reading must override this, which raises `NotImplementedError`."""
        self.__not_implemented("event_read")

    def event_write(self) -> None:
        """There is room to write. By default, `write(None)`."""
        self.write(None)

    def event_err(self) -> None:
        """The descriptor has an error. To be overridden, as `event_read`, mostly to `close`."""
        self.__not_implemented("event_err")

    def event_hup(self) -> None:
        """The descriptor is hung up. To be overridden, as `event_read`, mostly to `close`."""
        self.__not_implemented("event_hup")

    def event_connect(self, error: OSError | None) -> None:
        """The outcome of `connect`: None if it succeeded; else the object is closed after this
        call. To be overridden; by default, nothing."""

    def __not_implemented(self, event: str) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__} has no {event}: {self.as_string()}")

    # --- addresses --------------------------------------------------------------------------------

    def peer_ip_string(self) -> str | None:
        """The peer's IP address; None if there is none (a UNIX socket, not connected, closed).
        Calls getpeername(2) until that has succeeded once."""
        return self.__ask(0)[0]

    def peer_addr_string(self) -> str | None:
        """The peer's address as "ip:port" or "[ip]:port"; None and calls as `peer_ip_string`."""
        return with_port(self.__ask(0))

    def local_ip_string(self) -> str | None:
        """The local IP address; None and calls as `peer_ip_string`, but getsockname(2)."""
        return self.__ask(1)[0]

    def local_addr_string(self) -> str | None:
        """The local address as "ip:port" or "[ip]:port"; None and calls as `local_ip_string`."""
        return with_port(self.__ask(1))

    @property
    def peer_ip(self) -> str | None:
        """The peer's IP address, if it has been asked for; else None. No calls, nor below."""
        return self.__addresses[0][0]

    @property
    def peer_port(self) -> int | None:
        """The peer's port, if it has been asked for."""
        return self.__addresses[0][1]

    @property
    def local_ip(self) -> str | None:
        """The local IP address, if it has been asked for."""
        return self.__addresses[1][0]

    @property
    def local_port(self) -> int | None:
        """The local port, if it has been asked for."""
        return self.__addresses[1][1]

    def __ask(self, side: Literal[0, 1]) -> Address:
        """The peer's address (0) or the local one (1)."""
        if self.sock is None:
            return NOWHERE
        both = self.__addresses
        if both[side] is NOWHERE:
            answer = ask(libc.getsockname if side else libc.getpeername, self.sock)
            self.__addresses = both = (both[0], answer) if side else (answer, both[1])
        return both[side]

    # --- describing -------------------------------------------------------------------------------

    def as_string(self) -> str:
        """The class, what it watches for, open or closed, and the peer if there is one, as in
        "Client(RW): open to 127.0.0.1:4711". Calls as for `peer_ip_string`."""
        return self.__described(self.peer_addr_string())

    def __described(self, peer: str | None) -> str:
        watched = "R" * bool(self.event_watch & POLLIN) + "W" * bool(self.event_watch & POLLOUT)
        state = f"{type(self).__name__}({watched}): {'closed' if self.closed else 'open'}"
        return f"{state} to {peer}" if peer else state

    def __repr__(self) -> str:
        """As `as_string`, with the descriptor and the bytes queued, and without a system call."""
        try:
            queued = f", {self.write_buf_size} bytes queued" if self.write_buf_size else ""
            return f"<{self.__described(with_port(self.__addresses[0]))}, fd {self.fd}{queued}>"
        except AttributeError:
            return f"<{type(self).__name__}, not made>"

    def dump_error(self, message: str) -> None:
        """Print `message`, this object and the call stack to standard error. Raises nothing."""
        calls: list[str] = []
        # Not by `traceback`, which would open the source file of every caller.
        frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # documented
        while frame is not None:
            code = frame.f_code
            calls.append(f"\t{code.co_filename}:{frame.f_lineno} called {code.co_name}\n")
            frame = frame.f_back
        me = f"{object.__repr__(self)} = {described(self, self.as_string)}"
        print_error(f"ERROR: {message}\n\t{me}\n{''.join(calls)}")

    # --- the loop, in the manual's words ----------------------------------------------------------

    SetPostLoopCallback: _PostLoopCallbackSetter = _PostLoopCallbackSetter()

    def set_own_callback(self, callback: PostLoopCallback | None) -> None:
        """Call `callback(descriptor map, other fds)` after each batch while this object is open; a
        false result ends `run`. None removes it. Raises `TypeError` if it is not callable."""
        if callback is not None:
            check_callback("a post-loop callback", callback)
        fd = self.__registered()
        # Conditions that fall through: after a jump a signal's handler could close the object.
        if fd is not None and callback is not None and not self.closed:
            self.__registry.post_loop_callbacks[fd] = callback
        elif fd is not None:
            self.__registry.post_loop_callbacks.pop(fd, None)

    @staticmethod
    @_as(Loop.set_post_loop_callback)
    def set_loop_callback(callback: PostLoopCallback | None) -> None:
        default_loop().set_post_loop_callback(callback)

    @classmethod
    @_as(Loop.run)
    def EventLoop(cls) -> None:
        default_loop().run()

    @classmethod
    @_as(Loop.reset)
    def Reset(cls) -> None:
        default_loop().reset()

    @classmethod
    @_as(Loop.have_epoll)
    def HaveEpoll(cls) -> bool:
        return default_loop().have_epoll

    @classmethod
    @_as(Loop.have_kqueue)
    def HaveKQueue(cls) -> bool:
        return default_loop().have_kqueue

    @classmethod
    @_as(Loop.watched_sockets)
    def WatchedSockets(cls) -> int:
        return default_loop().watched_sockets

    @classmethod
    @_as(Loop.descriptor_map)
    def DescriptorMap(cls) -> DescriptorMapping:
        return default_loop().descriptor_map

    @classmethod
    @_as(Loop.to_close)
    def ToClose(cls) -> list[Handle]:
        return default_loop().to_close

    @classmethod
    @_as(Loop.other_fds)
    def OtherFds(cls, fds: OtherFdMapping | None = None) -> OtherFdMapping:
        if fds is not None:
            default_loop().other_fds = fds
        return default_loop().other_fds

    @classmethod
    @_as(Loop.add_other_fds)
    def AddOtherFds(cls, fds: OtherFdMapping) -> OtherFdMapping:
        return default_loop().add_other_fds(fds)

    @classmethod
    @_as(Loop.set_loop_timeout)
    def SetLoopTimeout(cls, ms: int) -> int:
        return default_loop().set_loop_timeout(ms)

    @classmethod
    @_as(Loop.add_timer)
    def AddTimer(cls, seconds: float, callback: Callback) -> Timer:
        return default_loop().add_timer(seconds, callback)

    @classmethod
    @_as(Loop.enable_profiling)
    def EnableProfiling(cls) -> bool:
        return default_loop().enable_profiling()

    @classmethod
    @_as(Loop.disable_profiling)
    def DisableProfiling(cls) -> None:
        default_loop().disable_profiling()

    @classmethod
    @_as(Loop.profiling_data)
    def ProfilingData(cls) -> ProfileMapping:
        return default_loop().profiling_data

    @classmethod
    def DebugMsg(cls, message: str, *args: object) -> None:
        """Print ">>> " and `message % args` to standard error. Raises nothing."""
        print_error(f">>> {formatted(formatted('%s', (message,)).rstrip(chr(10)), args)}\n")

    def debugmsg(self, message: str, *args: object) -> None:
        """As `DebugMsg`."""
        self.DebugMsg(message, *args)


_warned = False


def _warn_of_blocking(obj: Socket[Handle]) -> None:
    global _warned
    if not _warned:
        _warned = True
        warn("%r is on a socket that blocks: call its setblocking(False) first", obj)


def _end(bytecount: int) -> bytes | None:
    """What `read` returns for no bytes: the end, or `ValueError` if none were asked for."""
    if bytecount < 1:
        raise ValueError(f"read takes a number of bytes from 1 up, not {bytecount!r}") from None
    return None


def _block(data: Writable) -> Queued:
    """`data` as it is queued: bytes unchanged, other buffers as a view of their bytes."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        view = memoryview(data)
        return view.cast("B") if view.nbytes else b""
    if callable(data):
        check_callback("a callable to write", data)
        return data
    raise no_data("write takes bytes, a bytearray, a memoryview, a callable or None", data)


def _piece(buf: object) -> bytes:
    if isinstance(buf, (bytes, bytearray)):
        return bytes(buf)
    if isinstance(buf, memoryview):
        return buf.tobytes()
    raise no_data("push_back_read takes bytes, a bytearray or a memoryview", buf)


def _write_by(func: WriterFunc, obj: Socket[Handle], block: Block, count: int, offset: int) -> int:
    head = block if obj.write_buf else None
    answer = func(block, count, offset)
    queue, moved = obj.write_buf, obj.write_buf_offset != offset
    if (moved or (queue[0] if queue else None) is not head) and not obj.closed:
        raise RuntimeError("a writer function must not write to its own object")
    written = whole("a writer function returns how many bytes it wrote", answer)
    if not 0 <= written <= count:
        raise ValueError(f"the writer function says it wrote {written!r} of {count} bytes")
    return written


def _size(queued: Queued) -> int:
    return len(queued) if isinstance(queued, (bytes, memoryview)) else 1
