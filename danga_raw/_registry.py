"""What a loop watches, and the life of a descriptor in it.

A descriptor's number names an object, or the callback of an other fd, from its registration to its
leaving, and nobody else:

* *registered*: the poller reports its events, and `objects` or `other_fds` says whose they are.
* *leaving*: its owner has closed it, given it away or taken it off. No event is told any more. The
  batch in hand may still hold one, so its number is kept, and close(2) waits, until that is over.
* *gone*: nothing here knows the number. It may be given out again.

A number may come back while somebody here still holds it, where its owner has closed the descriptor
behind the loop's back, or take another owner in the midst of a batch, where one that was stolen is
wrapped again. Then the old holder is dropped, and so are the batches in hand that speak of the number:
events are level-triggered, and the next wait says again what is still true.
"""

from __future__ import annotations

import os
from _socket import socket as RawSocket
from collections import deque
from ctypes import get_errno, set_errno
from errno import EEXIST, ENOMEM, ENOSPC

from danga_raw._epoll import Epoll
from danga_raw._interrupt import alone, by_handler
from danga_raw._libc import libc
from danga_raw._log import complain, warn
from danga_raw._poll import POLLIN, Poll
from danga_raw._sockopt import set_cork
from danga_raw._typing import cast

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final, TypeAlias

    from danga_raw._connecting import Connecting
    from danga_raw._waker import Waker
    from danga_raw.listener import Listener
    from danga_raw.types import (
        AnySocket,
        Handle,
        OtherFdCallback,
        OtherFdMapping,
        Poller,
        PostLoopCallback,
        Socket,
    )

    Leaving: TypeAlias = tuple[int, AnySocket | None, list[Handle]]
    """A descriptor on its way out: its number, the object whose entry in the map is to go (none for
    an other fd), and the handle that is to be closed, until it is (none if it isn't ours to close)."""


LOOPS_OWN: Final = -1
"""Stands for the descriptor of the object whose post-loop callback is the loop's own."""


def backends() -> list[str]:
    """The names of the backends that this system has, the preferred one first."""
    names = ["poll"]
    if hasattr(libc, "epoll_create1"):
        names.insert(0, "epoll")
    if hasattr(libc, "kqueue") or "DANGA_RAW_LIBKQUEUE" in os.environ:
        names.insert(0, "kqueue")
    return names


def choose_backend(name: str | None) -> str:
    """`name`, or what DANGA_RAW_BACKEND says, or the preferred one. Raises `ValueError`."""
    there = backends()
    wanted = name if name is not None else os.environ.get("DANGA_RAW_BACKEND") or there[0]
    if wanted not in there:
        raise ValueError(f"no backend {wanted!r} here; there are {', '.join(there)}")
    return wanted


def _new_poller(backend: str) -> Poller:
    if backend == "epoll":
        return Epoll()
    if backend == "poll":
        return Poll()
    # Elsewhere its structs would be made for nothing: 2 ms of an import of 6.
    from danga_raw._kqueue import KQueue, load_libkqueue

    path = os.environ.get("DANGA_RAW_LIBKQUEUE")
    return KQueue(load_libkqueue(path), "libkqueue") if path else KQueue()


class Registry:
    """The descriptors of one loop, and the poller that watches them."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.has_entries: Final = backend == "epoll"
        """True where what is watched is an entry of the open file, and may outlive its number."""
        self.polls: Final = backend == "poll"
        """True where a wait hands all over to the kernel at its beginning, so that nothing that
        another thread adds can end it."""
        self.poller: Poller | None = None  # while it is open
        self.waker: Waker | None = None  # once somebody has asked for it
        self._dropped: list[Poller] = []  # pollers to be closed
        self.stale: set[int] = set()
        """Numbers under which an epoll may still have the entry of a file that its owner has closed
        and somebody else (a forked child, a dup) has open: that can't be removed any more."""
        self.outer: list[list[int]] = []
        """For each run of the loop that is going on, the batch that was in hand when it began."""
        self.objects: dict[int, Socket] = {}
        """The objects by their fd, those included that are leaving."""
        self.receivers: list[AnySocket | None] = []
        """Whom an event is for: the objects that have not left, by their fd. In a list, no longer than
        the kernel's own: a look into a dict would be a fortieth of all that a request costs."""
        # The same for who doesn't know what their handle is; who takes one out asks where it matters.
        self._entered = cast("dict[int, AnySocket]", self.objects)
        self.other_fds: dict[int, OtherFdCallback] = {}
        """The callbacks of descriptors that no object has, by fd."""
        self.leaving: deque[Leaving] = deque()
        """What goes when the present batch is over, in order."""
        self._unlisted: set[int] = set()
        """The numbers of those among them that are no object's in the map."""
        self.something_due: bool = True
        """False where a turn has nothing to do but wait and dispatch: nothing leaves, no pushed-back
        data is to be read, nothing was given to `call_soon`, no timer was cut short, nobody has said
        stop, and the poller is that of the turn before. One look at this spares a turn 370
        instructions."""
        # What few objects have, by their fd:
        self.pushed_back: dict[int, int] = {}  # data, numbered as their first pieces came
        self.pushes: int = 0  # the last of these numbers
        self.readable: set[int] = set()  # pushed-back data, and a watch for reading
        self.reads_again: bool = False  # some of these have changed what they watch for
        self.post_loop_callbacks: dict[int, PostLoopCallback] = {}
        self.connecting: dict[int, Connecting] = {}  # a pending connect
        self.paused: dict[int, Listener] = {}  # no descriptor left for a connection

    # --- the poller -------------------------------------------------------------------------------

    def open(self) -> Poller:
        """The poller, opened at its first use, and given what the registry knows: epoll_create1(2),
        or kqueue(2) and fcntl(2). Raises `OSError` (EMFILE, ENFILE, ENOMEM)."""
        if self.poller is not None:
            return self.poller
        with alone():
            self._close_dropped()
            poller = _new_poller(self.backend)
            try:
                poller.open()
                self._replace_owner(poller.fileno())
                for fd, events in self._known().items():
                    try:
                        poller.register(fd, events)
                    except OSError as error:
                        # Nothing is wrong with the descriptor: the next to open tries anew.
                        if error.errno in (ENOMEM, ENOSPC):
                            raise
                        complain(error, "%s")  # Its owner, who has closed it, will hear so.
                # One that a signal's handler has opened meanwhile knows better.
                self.poller = opened = self.poller or poller
            finally:
                if self.poller is not poller:
                    self._dropped += (poller,)
                    self._close_dropped()
        return opened

    def _known(self) -> dict[int, int]:
        """What is to be watched: fd -> event mask."""
        known = {fd: obj.event_watch for fd, obj in list(self.objects.items()) if _has(obj, fd)}
        known |= dict.fromkeys(self.other_fds, POLLIN)
        if self.waker is not None:
            known[self.waker.fileno()] = POLLIN
        return known

    def renew(self) -> None:
        """Drop the poller, with the entries in it that can't be removed, and open another. The first
        is closed before, as the table of descriptors may be full."""
        with alone():
            self._drop_poller()
            self.open()

    def _drop_poller(self) -> None:
        """Close the poller, and drop what it has said."""
        if self.poller is not None:
            for batch in (self.poller.batch, *self.outer):
                batch.clear()
            self._dropped += (self.poller,)
        self.poller = None
        self.something_due = True
        self.stale.clear()
        self._close_dropped()

    def _close_dropped(self) -> None:
        while self._dropped:
            try:
                self._dropped[0].close()
            except OSError as error:
                complain(error, "close(%s): %s", self.backend)
            del self._dropped[:1]

    def open_waker(self) -> Waker:
        """The waker, made at its first use, from whichever thread: pipe2(2), and what registers its
        read end. Raises `OSError`, and then it is tried anew at the next."""
        from danga_raw._waker import Waker  # It and its imports cost nothing to who wakes no loop.

        with alone():
            if self.waker is not None:  # Another thread was faster.
                return self.waker
            waker = Waker()
            try:
                waker.open()
                lost = self._replace_owner(waker.fileno())
                self._make_room(waker.fileno())
                if self.poller is not None:
                    if lost and self.has_entries:
                        self.stale.add(waker.fileno())
                    self.poller.register(waker.fileno(), POLLIN)
                # A signal's handler may have made one just now.
                self.waker = made = self.waker or waker
                if made is waker:
                    return waker
                self.unregister(waker.fileno(), POLLIN)
            except BaseException as error:
                # Perhaps behind its registration.
                if by_handler(error) and self.poller is not None and waker.fileno() >= 0:
                    self.unregister(waker.fileno(), POLLIN)
                waker.close()
                raise
            waker.close()
            return made

    def woken(self, waker: Waker) -> None:
        """Take out what woke the loop: read(2). Only the loop's own thread may renew a poller, which
        it waits on otherwise."""
        if waker.fileno() in self.stale:
            self.renew()
        waker.drain()

    def resume(self) -> None:
        """Go on with what waits for a timer, or to be told: an exception that left an earlier run may
        have cut it short."""
        for listener in list(self.paused.values()):
            listener.resume()
        for pending in list(self.connecting.values()):
            pending.resume()

    # --- registered -------------------------------------------------------------------------------

    def register(self, fd: int, events: int, obj: AnySocket | None = None) -> None:
        """Watch a descriptor, for the object that has it, if one does. Raises `OSError`, EEXIST where
        the number's holder still has it; where it raises, nothing is done."""
        if renewed := fd in self.stale:
            self.renew()
        try:
            try:
                (self.poller or self.open()).register(fd, events)
            except OSError as error:
                holder = self.objects.get(fd)
                if error.errno != EEXIST or holder is None or _has(holder, fd):
                    raise
                # Its file is the same, or on poll one that looks the same: the other end of a pipe.
                self.open().unregister(fd, holder.event_watch)
                self.open().register(fd, events)
            if fd in self.objects or fd in self.other_fds or fd in self._unlisted:
                lost = self._replace_owner(fd, None if obj is None else obj.sock)
                if lost and self.has_entries and not renewed:
                    # An entry goes when the last descriptor of its file does, and a forked child or
                    # a dup may have one: its events would be taken for those of the new owner.
                    self.renew()
                    self.open().register(fd, events)
            self._make_room(fd)
            if obj is not None:
                self._entered[fd] = obj
                self.receivers[fd] = obj
        except BaseException as error:
            if by_handler(error) and fd not in self.other_fds:
                self.unregister(fd, events)
            raise

    def _replace_owner(self, fd: int, handle: Handle | None = None) -> bool:
        """Whoever holds `fd` has it no more, as the poller has taken it for new, with this handle, or
        the package itself has just got it from the kernel. True if the descriptor was closed behind
        the loop's back."""
        self._drop_events(fd)
        lost = False
        holder = self.objects.get(fd)
        # From the last to leave, which may be where it was stolen just now. What was before the holder
        # has nothing of it any more.
        for number, obj, handles in reversed(_copied(self.leaving)):
            if number == fd:
                if handles:
                    if handles[0] is not handle:
                        _disown(handles[0], fd)
                    del handles[:]
                    lost = True
                if obj is holder:
                    break
        if holder is not None and not holder.closed:
            sock, holder.closed = holder.sock, True
            self.receivers[fd] = None
            if sock is not None:
                _disown(sock, fd)
            holder.let_go()
            self._forget_callbacks(fd)
            warn("fd %d was closed behind the back of %s", fd, type(holder).__name__)
            lost = True
        self.objects.pop(fd, None)
        return self.other_fds.pop(fd, None) is not None or lost

    def _make_room(self, fd: int) -> None:
        """Have a place among the receivers for `fd`."""
        self.receivers += [None] * (fd + 1 - len(self.receivers))

    def _drop_events(self, fd: int) -> None:
        """Drop what is left of the batches in hand that speak of `fd`, which has a new owner."""
        for batch in (*self.outer[1:], [] if self.poller is None else self.poller.batch):
            if fd in batch:
                batch.clear()

    def undo_modify(self, obj: AnySocket, fd: int, old: int, new: int) -> None:
        """A signal's handler raised before the mask was changed in the poller, or behind it."""
        obj.event_watch = old
        try:
            self.open().modify(fd, new, old)
        except OSError:
            pass

    def unregister(self, fd: int, events: int) -> str | None:
        """Take a descriptor off the poller, unless it is an object's by now; what went wrong. If its
        owner has closed it, it is off already."""
        obj = self.objects.get(fd)
        if obj is None or obj.closed:
            try:
                (self.poller or self.open()).unregister(fd, events)
            except OSError as error:
                return self._refused(fd, error)
        return None

    def _refused(self, fd: int, error: OSError) -> str:
        """A descriptor can't be unregistered, unless it was a signal's handler that raised. In words:
        an error that a caller keeps, and which knows the caller by its traceback, is a cycle."""
        if by_handler(error):
            del error
            raise
        if self.has_entries:
            self.stale.add(fd)
        return str(error)

    def remove_unknown(self, fd: int, state: int) -> None:
        """The poller speaks of a descriptor that is nobody's, and would at once in every wait. It is
        unregistered and closed, as in the original, or where that can't be, since the number is
        another file's by now or nobody's, the poller is renewed."""
        if fd in self._unlisted or fd in self.objects:
            return
        what = f"{self.backend} returned fd {fd} with state {state}, of which nothing is known."
        if (trouble := self.unregister(fd, state)) is not None:
            warn("%s %s. opening a new poller.", what, trouble)
            self.renew()
            return
        warn("%s removing.", what)
        try:
            libc.close(fd)
        except OSError as error:
            complain(error, "fd %d: %s", fd)

    def who_reads_pushed_back(self) -> Iterator[int]:
        """Who has pushed-back data and watches for reading, in the order of their first pieces. As in
        the original, who turns reading on meanwhile has his turn still, and not who is pushed back."""
        told, newest = -1, self.pushes
        self.reads_again = True
        while self.reads_again:
            self.reads_again = False
            # Copied first, as a signal's handler may close one of them.
            readable = [*self.readable]
            for number, fd in sorted((self.pushed_back.get(fd, 0), fd) for fd in readable):
                if told < number <= newest:
                    told = number
                    yield fd
                    if self.reads_again:
                        break

    # --- other fds --------------------------------------------------------------------------------

    def add_other_fds(self, fds: OtherFdMapping) -> None:
        """Watch descriptors for reading that no object has: all of `fds` or none. Raises `OSError`."""
        added: list[int] = []
        try:
            for fd in fds:
                self._add_other_fd(fd, added)
            self.other_fds |= fds
        except BaseException as error:
            if not by_handler(error):
                del added[-1:]  # It was refused, and may be another's.
            for fd in added:
                if fd not in self.other_fds:
                    self.unregister(fd, POLLIN)
            raise

    def _add_other_fd(self, fd: int, added: list[int]) -> None:
        """Watch one of them, and note in `added` that it is to be unregistered should this fail."""
        # One that is there may have been closed and opened again.
        if fd not in self.other_fds or not self.open().holds(fd, POLLIN):
            added += (fd,)
            self.register(fd, POLLIN)

    def replace_other_fds(self, fds: OtherFdMapping) -> None:
        """Watch these other fds and no others. Raises `OSError`."""
        try:
            self.add_other_fds(fds)
            self._drop_other_fds(fds)
        except BaseException:
            # A signal's handler raised. Where these were added, the rest is due as well.
            if fds.items() <= self.other_fds.items():
                self._drop_other_fds(fds)
            raise

    def _drop_other_fds(self, kept: OtherFdMapping) -> None:
        for fd in [fd for fd in self.other_fds if fd not in kept]:
            self.something_due = True
            self._unlisted |= {fd}
            self.leaving.append((fd, None, []))
            self.unregister(fd, POLLIN)
            del self.other_fds[fd]

    # --- leaving ----------------------------------------------------------------------------------

    def leave(self, obj: AnySocket, sock: Handle | None) -> bool:
        """Let an object leave, and close `sock` when the batch in hand is over. False if it has left
        already."""
        # A signal's handler may close between a failing call and the look at its errno.
        number = get_errno()
        handles = [] if sock is None else [sock]
        fd, receivers = obj.fd, self.receivers
        listed = fd in self.objects
        # Questions that fall through and no call: who asks as well, out of a handler, asks behind it.
        if fd is not None and not obj.closed:
            # From here on it will be let go, also if a handler raises before the rest is done.
            self.something_due = True
            self.leaving += ((fd, obj, handles),)
            obj.closed = True
            if listed and receivers[fd] is obj:
                receivers[fd] = None
            corked = obj.corked
            trouble = self._take_off(fd, obj)
            # An epoll_ctl(2) that succeeds leaves it as it was, and to set it costs a quarter of one.
            if corked or trouble is not None or not self.has_entries:
                set_errno(number)
            if trouble is not None:
                obj.dump_error(trouble)
            return True
        return False

    def _take_off(self, fd: int, obj: AnySocket) -> str | None:
        """Unregister an object that is leaving; what went wrong. To do it twice is no harm."""
        trouble = None
        # A loop that was reset since knows nothing of this object, and the number may be another's.
        if obj.corked and self.objects.get(fd, obj) is obj:
            try:
                set_cork(fd, False)  # Sends what is held back, in case that was forgotten.
            except OSError as error:
                complain(error, "%s")
            obj.corked = False
        if self.objects.get(fd) is obj:
            try:
                (self.poller or self.open()).unregister(fd, obj.event_watch)
            except OSError as error:
                trouble = self._refused(fd, error)
            if self.pushed_back or self.post_loop_callbacks or self.paused or self.connecting:
                self._forget_callbacks(fd)
        else:
            self._unlisted |= {fd}
        obj.let_go()
        return trouble

    def _forget_callbacks(self, fd: int) -> None:
        self.readable.discard(fd)
        self.pushed_back.pop(fd, None)
        self.post_loop_callbacks.pop(fd, None)
        self.paused.pop(fd, None)
        if (pending := self.connecting.pop(fd, None)) is not None:
            pending.cancel()

    def to_close(self) -> list[Handle]:
        """What waits to be closed, in order."""
        return [sock for _, _, handles in list(self.leaving) for sock in handles]

    # --- gone -------------------------------------------------------------------------------------

    def let_go(self, handled: Callable[[Exception], bool]) -> None:
        """Close what waits to be closed, and forget who has left: close(2) for each. What the close
        of a handle raises is `handled`; the first that isn't, and what a signal's handler raises, is
        kept until all are closed."""
        first: BaseException | None = None
        leaving, objects = self.leaving, self.objects
        while leaving:
            try:
                entry = fd, obj, handles = leaving[0]
                if obj is not None and obj.fd is not None:
                    obj.closed = True
                    self._take_off(fd, obj)  # A signal's handler has kept `leave` from it.
                if handles:
                    _close(fd, handles)
                if objects.get(fd, entry) is obj:
                    del objects[fd]
                if len(self.outer) > 1:
                    self._drop_events(fd)
                # The close() of a handle may have run the loop, or reset it.
                if leaving and leaving[0] is entry:
                    del leaving[0]
            except Exception as error:
                if not handled(error):
                    first = first or error
            except BaseException as error:
                first = first if isinstance(first, KeyboardInterrupt) else error
        if self._unlisted:
            self._unlisted.clear()
        if self.paused:  # They had no descriptor left, and there may be one now.
            for listener in list(self.paused.values()):
                listener.begin_again()
        try:
            if first is not None:
                raise first
        finally:
            del first  # no cycle

    def forget(self) -> None:
        """Know nothing any more, and close the poller: close(2)."""
        for known in (
            *(self.objects, self.other_fds, self.pushed_back, self.readable),
            *(self.post_loop_callbacks, self.connecting, self.paused),
        ):
            known.clear()
        self.receivers[:] = [None] * len(self.receivers)
        with alone():  # Another thread may be about to have the waker watched.
            self._drop_poller()
            if self.waker is not None:
                self.waker.close()
                self.waker = None


def _copied(leaving: deque[Leaving]) -> list[Leaving]:
    """Also where there is no GIL, and the loop lets go in its thread while another has a number for
    the waker."""
    while True:
        try:
            return list(leaving)
        except RuntimeError as error:
            if "mutated" not in str(error):  # A signal's handler raised.
                raise


def _has(obj: AnySocket, fd: int) -> bool:
    """False for an object that is leaving, and where its handle knows that its owner has closed it:
    the number may be another's by now."""
    if obj.closed or (sock := obj.sock) is None:
        return False
    try:
        return sock.fileno() == fd
    except Exception:
        try:
            sock.fileno()
        except Exception:  # So says a closed file, and others in words of their own, each time.
            return False
        raise  # A signal's handler did.


def _disown(sock: Handle, fd: int) -> None:
    """Keep a handle whose descriptor is another's by now from closing it when it is dropped."""
    if isinstance(sock, RawSocket) and sock.fileno() == fd:
        sock.detach()


class _AsUsual(dict[type, bool]):
    """By the class of a handle: True for Python's own sockets, and for those of a class that has no
    close of its own. Else that is called: what a TLS socket has open beside its descriptor would go
    on writing to the number."""

    def __missing__(self, kind: type) -> bool:
        methods = [getattr(kind, name, None) for name in ("close", "_real_close", "detach")]
        usual = {getattr(each, "__module__", None) for each in methods} <= {None, "socket"}
        self[kind] = issubclass(kind, RawSocket) and usual
        return self[kind]


_closes_as_usual: Final = _AsUsual()
_detach: Final = cast("Callable[[Handle], int]", RawSocket.detach)
_close_socket: Final = cast("Callable[[Handle], None]", RawSocket.close)


def _close(fd: int, handles: list[Handle]) -> None:
    """Close the handle of an entry, once."""
    sock = handles[0]
    try:
        if not _closes_as_usual[type(sock)]:
            del handles[:]
            sock.close()
        elif libc.close is os.close:
            # A socket gives up its descriptor in the same step, with no place for a signal's handler
            # in between, and makes no call where its owner has closed it: else the number may be
            # another's by now.
            _close_socket(sock)
        elif sock.fileno() >= 0:
            # The same through the door, where somebody else stands in it, as the audit does.
            for _ in map(libc.close, map(_detach, handles)):
                pass
    except OSError as error:
        if handles and by_handler(error):
            raise
        # The descriptor is gone all the same (close(2), "Dealing with error returns").
        warn("close(fd %d): %s", fd, error)
    del handles[:]
