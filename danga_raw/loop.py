"""The event loop: waits for events, runs timers, and hands each event to the object it is for."""

from __future__ import annotations

import os
from collections import deque
from operator import index

from _socket import socket as RawSocket
from danga_raw._epoll import Epoll
from danga_raw._interrupt import by_handler
from danga_raw._libc import INT_MAX, libc
from danga_raw._log import warn
from danga_raw._poll import POLLERR, POLLHUP, POLLIN, POLLOUT, Poll
from danga_raw.timers import Timer, Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Final, TypeVar

    from danga_raw.types import (
        Batch,
        DescriptorMapping,
        ExceptionCallback,
        Handle,
        OtherFdCallback,
        OtherFdMapping,
        PostLoopCallback,
        Poller,
        ProfileMapping,
        Watched,
    )

    Callback = TypeVar("Callback")


RUSAGE_SELF: Final = 0


class Leaving:
    """A descriptor on its way out, until the batch of events in which it left is over.

    Until then its object stays in the map and its number can't be given out again, since the batch
    may still hold an event for it.
    """

    __slots__ = ("fd", "obj", "open_fd", "sock")

    def __init__(self, fd: int, obj: Watched | None, sock: Handle | None) -> None:
        self.fd: int = fd
        self.obj: Watched | None = obj
        """Whose entry in the map is to go; None for an other fd."""
        self.sock: Handle | None = sock
        """The handle to close; None if it isn't ours to close."""
        self.open_fd: Iterator[int] = iter(())
        """The descriptor that `sock` has given up and that is still to be closed."""


def backends() -> list[str]:
    """The names of the backends that this system has, the preferred one first."""
    names = ["poll"]
    if hasattr(libc, "epoll_create1"):
        names.insert(0, "epoll")
    if hasattr(libc, "kqueue") or "DANGA_RAW_LIBKQUEUE" in os.environ:
        names.insert(0, "kqueue")
    return names


def _choose_backend(name: str | None) -> str:
    there = backends()
    wanted = name if name is not None else os.environ.get("DANGA_RAW_BACKEND") or there[0]
    if wanted not in there:
        raise ValueError(f"no backend {wanted!r} here; there are {', '.join(there)}")
    return wanted


def _closes_as_usual(kind: type[RawSocket]) -> bool:
    """True unless a class of sockets has a close() of its own, which then is called."""
    return getattr(kind.close, "__module__", "socket") == "socket"


def callable_or_none(what: str, callback: Callback | None) -> Callback | None:
    if callback is not None and not callable(callback):
        raise TypeError(f"{what} is a callable or None, not {callback!r}")
    return callback


class Loop:
    """One event loop with its own poller. A process may have many, one a thread.

    A loop belongs to the thread that runs it; nothing of it may be called from another but `stop`.
    """

    def __init__(self, backend: str | None = None) -> None:
        """A loop on `backend`: "kqueue", "epoll" or "poll", as DANGA_RAW_BACKEND says where it is
        None, or else the first of these that the system has. Makes no system call: the poller is
        opened at its first use. Raises `ValueError` for a backend that isn't there.
        """
        self.backend: Final = _choose_backend(backend)
        """The name of the mechanism in use."""
        self._on_exception: ExceptionCallback | None = None
        self._opening: Poller | None = None
        """The poller, from before it is opened."""
        self._poller: Poller | None = None
        """The same, once it is open."""
        self._timers = Timers()
        self._timeout = -1
        self._stopping = False
        self._outer: list[Batch] = []
        """For each call of `run` that is going on, the batch that was in hand when it began: what
        is left of it is dropped when numbers of which it speaks may have been given out again.
        Events are level-triggered, so the next wait says again what is still true."""
        self._other_fds: dict[int, OtherFdCallback] = {}
        self._post_loop_callback: PostLoopCallback | None = None
        self._profiling = False
        self._profile: dict[str, tuple[float, float, int]] = {}
        # What `Socket` and the loop share.
        self.sockets: dict[int, Watched] = {}
        """The objects by their fd, those included that left in the present batch."""
        self.leaving: deque[Leaving] = deque()
        """What goes when the present batch is over, in order."""
        self.pushed_back: dict[int, Watched] = {}
        """The objects that have pushed-back data to read, by their fd."""
        self.own_callbacks: dict[int, PostLoopCallback] = {}
        """The post-loop callbacks of single objects, by their fd."""

    # --- running ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Wait for events and dispatch them, until a post-loop callback says false or `stop`.

        A turn: the timers that are due; one wait for events; for each of them the object's
        event_read, event_write, event_err and event_hup, as far as they are due and the object
        isn't closed by then, or the callback of an other fd; event_read again while pushed-back
        data waits; the deferred closes; the post-loop callbacks.

        An exception of a handler leaves `run` unless there is an `on_exception`. Either way the
        deferred closes are done, nothing else is lost, and the loop can be run again. Raises
        `OSError` where the wait fails for another reason than a signal, which counts as a wait with
        no events.

        System calls: the wait of the backend, close(2) for the deferred closes, and what the
        handlers make.
        """
        depth = len(self._outer)
        try:
            self._outer.append([] if self._poller is None else self._poller.batch)
            self._run_until_stopped()
            self._end_run(depth)
        except BaseException:
            try:
                self._let_go()
            finally:
                self._end_run(depth)
            raise

    def _run_until_stopped(self) -> None:
        sockets = self.sockets
        while not self._stopping:
            timeout = self._run_timers() if self._timers.heap else self._timeout
            if timeout is None:
                return
            if self.pushed_back and self._has_pushed_back():
                timeout = 0
            # What nearly all events are. To be told by one comparison spares them four masks.
            common = -1 if self._profiling else POLLIN
            for fd, state in (self._poller or self.poller()).wait(timeout):
                try:
                    obj = sockets[fd]
                except KeyError:
                    pass
                else:
                    # The object may have been closed by an earlier event of this batch. Then it
                    # is still in the map, and has nothing more to say.
                    try:
                        if state != common:
                            self._dispatch(obj, state)
                        elif not obj.closed:
                            obj.event_read()
                    except Exception as error:
                        if not self._handled(error, obj):
                            raise
                    continue
                self._other_event(fd, state)
            if self.pushed_back:
                self._read_pushed_back()
            if self.leaving:
                self._let_go()
            if self.own_callbacks or self._post_loop_callback is not None:
                if not self._run_callbacks():
                    return

    def _end_run(self, depth: int) -> None:
        """What is to be done at the end of a run that began within `depth` others. To do it twice
        is no harm, and no call is in it behind which a signal's handler could raise."""
        self._stopping = False
        if own := self._outer[depth:]:
            if self._poller is not None:
                self._poller.batch = own[0]
            del self._outer[depth:]

    def stop(self) -> None:
        """End `run` once the batch in hand is done; from a timer, before it waits again. Where no
        `run` is going on, the next one returns at once. Doesn't wake a wait that has begun."""
        self._stopping = True

    def poller(self) -> Poller:
        """The poller, opened at its first use: epoll_create1(2), or kqueue(2) and fcntl(2)."""
        if self._poller is None:
            # It is kept before it is opened: an exception in between, and what it has open is lost.
            if self._opening is None:
                self._opening = self._new_poller()
            self._opening.open()
            self._poller = self._opening
        return self._poller

    def _new_poller(self) -> Poller:
        if self.backend == "epoll":
            return Epoll()
        if self.backend == "poll":
            return Poll()
        # Elsewhere its structs would be made for nothing: 2 ms of an import of 6.
        from danga_raw._kqueue import KQueue, load_libkqueue

        path = os.environ.get("DANGA_RAW_LIBKQUEUE")
        return KQueue(load_libkqueue(path), "libkqueue") if path else KQueue()

    def watch(self, fd: int, events: int, obj: Watched | None = None) -> None:
        """Register a descriptor with the poller, and the object that has it, if one does: both or,
        where an exception comes in between, as that of a signal's handler may, neither."""
        try:
            self.poller().register(fd, events)
            if obj is not None:
                self.sockets[fd] = obj
        except BaseException as error:
            if by_handler(error) and fd not in self._other_fds:
                self.unwatch(fd, events)
            raise

    def unwatch(self, fd: int, events: int) -> None:
        """Take a descriptor off the poller, unless it is an object's by now. If its owner has closed
        it, it is off already."""
        obj = self.sockets.get(fd)
        if obj is None or obj.closed:
            try:
                self.poller().unregister(fd, events)
            except OSError:
                pass

    def _run_timers(self) -> int | None:
        """Fire what is due; how long the wait may take, or None if a timer has stopped the loop."""
        number = self._timers.added
        while True:
            try:
                until_next = self._timers.run_due(number)
                break
            except Exception as error:
                if not self._handled(error):
                    raise
        if self._stopping:
            return None
        if until_next < 0 or 0 <= self._timeout < until_next:
            return self._timeout
        return until_next

    def _dispatch(self, obj: Watched, state: int) -> None:
        """Call the handlers that `state` asks for, each only if the object isn't closed by then."""
        if self._profiling:
            self._dispatch_profiled(obj, state)
            return
        if state & POLLIN and not obj.closed:
            obj.event_read()
        if state & POLLOUT and not obj.closed:
            obj.event_write()
        if state & POLLERR and not obj.closed:
            obj.event_err()
        if state & POLLHUP and not obj.closed:
            obj.event_hup()

    def _dispatch_profiled(self, obj: Watched, state: int) -> None:
        """The same, with the cost of each handler noted."""
        for event, item, handler in (
            (POLLIN, "read", obj.event_read),
            (POLLOUT, "write", obj.event_write),
            (POLLERR, "err", obj.event_err),
            (POLLHUP, "hup", obj.event_hup),
        ):
            if not state & event or obj.closed:
                continue
            item = f"{type(obj).__name__}-{item}"
            before = libc.getrusage(RUSAGE_SELF)
            handler()
            after = libc.getrusage(RUSAGE_SELF)
            utime, stime, calls = self._profile.get(item, (0.0, 0.0, 0))
            utime += after.ru_utime - before.ru_utime
            stime += after.ru_stime - before.ru_stime
            self._profile[item] = (utime, stime, calls + 1)

    def _other_event(self, fd: int, state: int) -> None:
        """An event for a descriptor that no object has."""
        callback = self._other_fds.get(fd)
        if callback is not None:
            try:
                callback(state)
            except Exception as error:
                if not self._handled(error):
                    raise
        elif fd not in [entry.fd for entry in list(self.leaving)]:
            # Nobody can handle it, and as long as it is there every wait would return at once.
            warn(
                "%s returned fd %d with state %d, of which nothing is known. removing.",
                self.backend,
                fd,
                state,
            )
            try:
                self.poller().unregister(fd, state)
                libc.close(fd)
            except OSError as error:
                warn("fd %d: %s", fd, error)

    def _handled(self, error: Exception, obj: Watched | None = None) -> bool:
        """True if `on_exception` took what a handler (of `obj`) or a callback raised."""
        if self._on_exception is None:
            return False
        try:
            self._on_exception(obj, error)
        finally:
            if obj is not None and not obj.closed:
                obj.close("exception")
        return True

    def _has_pushed_back(self) -> bool:
        """True if pushed-back data waits for an object that watches for reading: pushed back by a
        timer, before `run`, or in a batch that an exception cut short."""
        for obj in list(self.pushed_back.values()):  # A signal's handler may close some.
            if obj.event_watch & POLLIN:
                return True
        return False

    def _read_pushed_back(self) -> None:
        """event_read for who has pushed-back data and watches for reading, until none is left."""
        again = True
        while again:
            again = False
            for fd in list(self.pushed_back):
                # An event_read before this one may have closed it.
                obj = self.pushed_back.get(fd)
                if obj is None or not obj.event_watch & POLLIN:
                    continue
                again = True
                try:
                    obj.event_read()
                except Exception as error:
                    if not self._handled(error, obj):
                        raise

    def _let_go(self) -> None:
        """Close what waits to be closed, and take from the map what has left: close(2) for each."""
        while self.leaving:
            entry = self.leaving[0]
            if entry.obj is not None:
                entry.obj.finish_leaving()
            sock = entry.sock
            usual = isinstance(sock, RawSocket) and _closes_as_usual(type(sock))
            try:
                if isinstance(sock, RawSocket) and usual:
                    # A socket can give up its descriptor, and then close(2) goes through the door,
                    # where the audit sees it. If its owner has closed it behind our back, there is
                    # nothing to close: the number may be another's by now. A signal's handler may
                    # raise after any of these calls, and the next to come here goes on from there.
                    if sock.fileno() == entry.fd:
                        entry.open_fd = iter((entry.fd,))
                    sock.detach()
                    entry.sock = None
                elif sock is not None:
                    entry.sock = None
                    sock.close()
                # An iterator gives a number once, whatever its close raises.
                for _ in map(libc.close, entry.open_fd):
                    pass
            except OSError as error:
                if usual and by_handler(error):
                    raise
                # The descriptor is gone all the same (close(2), "Dealing with error returns").
                warn("close(fd %d): %s", entry.fd, error)
            if entry.obj is not None and self.sockets.get(entry.fd) is entry.obj:
                del self.sockets[entry.fd]
            for batch in self._outer:
                batch.clear()
            # The close() of a handle may have run the loop, or reset it.
            if self.leaving and self.leaving[0] is entry:
                self.leaving.popleft()

    def _run_callbacks(self) -> bool:
        """The post-loop callbacks, those of objects first; False as soon as one of them says so."""
        for fd in list(self.own_callbacks):
            own = self.own_callbacks.get(fd)
            if own is not None and not self._keep_running(own, self.sockets.get(fd)):
                return False
        callback = self._post_loop_callback
        return callback is None or self._keep_running(callback, None)

    def _keep_running(self, callback: PostLoopCallback, obj: Watched | None) -> bool:
        try:
            return bool(callback(self.sockets, self._other_fds))
        except Exception as error:
            if not self._handled(error, obj):
                raise
            return True

    # --- timers, timeout, callbacks ---------------------------------------------------------------

    def add_timer(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback()` once, `seconds` from now, on the monotonic clock, never early.

        Raises `TypeError` for a callback that can't be called, `ValueError` for a number of seconds
        that is not finite. A negative one is due at once, and before those due later. Makes no
        system call (clock_gettime needs none).
        """
        return self._timers.add(seconds, callback)

    def set_loop_timeout(self, ms: int) -> int:
        """Wait at most `ms` milliseconds for events; -1, as at first, for ever; 0 not at all.

        So the original's code has it; its manual says it the other way round. Returns `ms`. Raises
        `ValueError` below -1 and beyond a C int.
        """
        ms = index(ms)
        if not -1 <= ms <= INT_MAX:
            raise ValueError(f"a loop timeout is -1 or 0 to {INT_MAX} milliseconds, not {ms!r}")
        self._timeout = ms
        return ms

    def set_post_loop_callback(self, callback: PostLoopCallback | None) -> None:
        """Call `callback(descriptor map, other fds)` after each batch; false ends `run`.

        None takes it off. Raises `TypeError` for what can't be called.
        """
        self._post_loop_callback = callable_or_none("a post-loop callback", callback)

    @property
    def on_exception(self) -> ExceptionCallback | None:
        """Called with (object or None, exception) when a handler or a callback raises. Then the
        object is closed, with the reason "exception", and the loop goes on. While it is None, the
        exception leaves `run`. Raises `TypeError` when set to what can't be called."""
        return self._on_exception

    @on_exception.setter
    def on_exception(self, callback: ExceptionCallback | None) -> None:
        self._on_exception = callable_or_none("on_exception", callback)

    # --- descriptors ------------------------------------------------------------------------------

    @property
    def descriptor_map(self) -> DescriptorMapping:
        """The objects by their fd. A closed one stays until its batch is over."""
        return self.sockets

    @property
    def watched_sockets(self) -> int:
        """The number of objects in the descriptor map."""
        return len(self.sockets)

    @property
    def to_close(self) -> list[Handle]:
        """The raw sockets that wait to be closed, in order of closing."""
        return [entry.sock for entry in list(self.leaving) if entry.sock is not None]

    @property
    def other_fds(self) -> OtherFdMapping:
        """The callbacks of the descriptors that no object has, by fd; each is called with the event
        mask (POLLIN 1, POLLERR 8, POLLHUP 16) when its fd is readable.

        Setting it replaces all, as `add_other_fds` adds them. Those left out are watched no longer,
        and not closed.
        """
        return self._other_fds

    @other_fds.setter
    def other_fds(self, fds: OtherFdMapping) -> None:
        kept = dict(fds)
        try:
            self.add_other_fds(kept)
            self._drop_other_fds(kept)
        except BaseException:
            # A signal's handler raised. Where these were added, the rest is due as well.
            if kept.items() <= self._other_fds.items():
                self._drop_other_fds(kept)
            raise

    def _drop_other_fds(self, kept: dict[int, OtherFdCallback]) -> None:
        for fd in [fd for fd in self._other_fds if fd not in kept]:
            self.leaving.append(Leaving(fd, None, None))
            self.unwatch(fd, POLLIN)
            del self._other_fds[fd]

    def add_other_fds(self, fds: OtherFdMapping) -> OtherFdMapping:
        """Watch descriptors for reading that no object has, each with its callback; returns all.

        Registered at once: epoll_ctl(EPOLL_CTL_ADD), kevent(EV_ADD) or, on poll, fstat(2). A new
        callback for a fd that is watched takes no call. Raises `TypeError` for a callback that
        can't be called and `OSError` for a fd that can't be watched; then none of `fds` is added.
        """
        fds = dict(fds)
        for fd, callback in fds.items():
            if not callable(callback):
                raise TypeError(f"an other fd takes a callable, not {callback!r} (fd {fd})")
            index(fd)
        added: list[int] = []
        try:
            for fd in fds:
                if fd not in self._other_fds:
                    added += (fd,)
                    self.watch(fd, POLLIN)
            self._other_fds |= fds
        except BaseException as error:
            if not by_handler(error):
                del added[-1:]  # It was refused, and may be another's.
            for fd in added:
                if fd not in self._other_fds:
                    self.unwatch(fd, POLLIN)
            raise
        return self._other_fds

    # --- profiling --------------------------------------------------------------------------------

    @property
    def profiling_data(self) -> ProfileMapping:
        """The cost of the handlers so far, by class and event: "Client-read" and so on -> (seconds
        of user time, seconds of system time, number of calls)."""
        return self._profile

    def enable_profiling(self) -> bool:
        """Note the cost of each handler from here on, beginning afresh: two getrusage(2) for each.
        Returns True."""
        self._profile.clear()
        self._profiling = True
        return True

    def disable_profiling(self) -> None:
        """Note the cost of handlers no longer; what was noted stays."""
        self._profiling = False

    @property
    def have_epoll(self) -> bool:
        """True if this loop waits by epoll."""
        return self.backend == "epoll"

    @property
    def have_kqueue(self) -> bool:
        """True if this loop waits by kqueue."""
        return self.backend == "kqueue"

    # --- ending -----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget everything, as new: objects, other fds, timers, callbacks, timeout, profile.

        What waits to be closed is closed, and so is the poller: close(2). The next use opens
        another. In a forked child this leaves the parent's registrations alone, since no descriptor
        is unregistered.
        """
        first: BaseException | None = None
        while True:
            try:
                self._forget()
                break
            except BaseException as error:
                # A signal's handler raised, or the close() of a handle. There is no use for half of
                # it, and what has raised is done by now.
                first = first or error
        if first is not None:
            raise first

    def _forget(self) -> None:
        self._let_go()
        for batch in self._outer:
            batch.clear()
        self.sockets.clear()
        self.pushed_back.clear()
        self.own_callbacks.clear()
        self._other_fds.clear()
        self._timers.clear()
        self._timeout = -1
        self._post_loop_callback = None
        self._profiling = False
        self._profile.clear()
        self._on_exception = None
        if not self._outer:
            self._stopping = False
        poller = self._opening
        if poller is not None:
            poller.batch.clear()
            try:
                poller.close()
            except OSError as error:
                warn("close(%s): %s", self.backend, error)
            self._poller = self._opening = None

    def close(self) -> None:
        """As `reset`: a closed loop is as good as a new one."""
        self.reset()

    def __enter__(self) -> Loop:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
