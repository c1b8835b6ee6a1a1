"""The event loop: waits for events, runs timers, and hands each event to the object it is for."""

from __future__ import annotations

import sys

# What threading.active_count() counts, without the import of threading.
from _thread import _count as count_other_threads  # pyright: ignore[reportPrivateUsage]
from _thread import get_ident
from collections import defaultdict, deque
from itertools import repeat
from types import MappingProxyType

from danga_raw._backends import choose_backend
from danga_raw._interrupt import alone
from danga_raw._libc import INT_MAX, libc
from danga_raw._log import described, warn
from danga_raw._mistakes import check_callback, no_copy, whole
from danga_raw._poll import POLLERR, POLLHUP, POLLIN, POLLOUT
from danga_raw._registry import LOOPS_OWN, Registry
from danga_raw._typing import cast
from danga_raw.timers import Timers, add_timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

    from danga_raw._waker import Waker
    from danga_raw.types import (
        AnySocket,
        Callback,
        DescriptorMapping,
        ExceptionCallback,
        Handle,
        LoopT,
        OtherFdCallback,
        OtherFdMapping,
        Poller,
        PostLoopCallback,
        ProfileMapping,
        Socket,
    )

_KINDS: Final = {POLLIN: "-read", POLLOUT: "-write", POLLERR: "-err", POLLHUP: "-hup"}


class _Cost:
    """CPU time of the handlers of one class."""

    __slots__ = ("calls", "system", "user")

    def __init__(self) -> None:
        self.user = self.system = 0.0
        self.calls = 0


class Loop:
    """An event loop with its own poller. A process may have several, each in its own thread.

    A loop belongs to the thread that runs it. From other threads and signal handlers, only `stop`
    and `call_soon_threadsafe` may be called."""

    __getstate__ = no_copy

    def __init__(self, backend: str | None = None) -> None:
        """A loop on `backend`: "kqueue", "epoll" or "poll". None means that of DANGA_RAW_BACKEND,
        or else the first of these that the system has. Makes no system call: the poller is opened
        on first use. Raises `ValueError` for a backend that is not available."""
        self._registry = registry = Registry(choose_backend(backend))
        # Read-only: an object removed from it would still be watched, with nobody to get its
        # events. The cast is because a mapping can't tell the type of each object's handle.
        objects = cast("DescriptorMapping", MappingProxyType(registry.objects))
        self._views = objects, MappingProxyType(registry.other_fds)
        self._timers = Timers()
        self._soon: deque[Callback] = deque()
        """The pending callbacks of `call_soon`."""
        self._on_exception: ExceptionCallback | None = None
        self._stopping: object = False  # not bool: a checker would narrow it
        self._thread = 0
        """The thread of the last run."""
        self._resets = 0
        self._profiling = False
        self._costs: list[dict[type, _Cost]] = [defaultdict(_Cost) for _ in range(POLLHUP + 1)]
        """By event, then by class."""

    def __repr__(self) -> str:
        registry = self._registry
        return (
            f"<Loop on {self.backend}: {len(registry.objects)} sockets, "
            f"{len(registry.other_fds)} other fds, {len(self._timers.heap)} timers>"
        )

    # --- running ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Wait for events and dispatch them until a post-loop callback returns false, or until
        `stop`.

        Each turn runs the timers that are due and the callbacks of `call_soon`; waits once for
        events, without blocking if a close is due; for each event calls the object's event_read,
        event_write, event_err and event_hup, those that apply, unless the object has been closed,
        or the callback of an other fd; calls event_read again while there is pushed-back data; does
        the deferred closes, by close(2); and calls the post-loop callbacks.

        An exception from a handler leaves `run` unless `on_exception` is set. Either way the
        deferred closes are done, nothing else is lost, and the loop can be run again. A call of
        `stop` that this run did not get to applies to the next. Raises `OSError` if the wait fails,
        except by a signal, which counts as a wait without events.
        """
        registry = self._registry
        depth = len(registry.outer_batches)
        self._thread = get_ident()
        try:
            registry.outer_batches.append([] if registry.poller is None else registry.poller.batch)
            registry.something_due = True
            if registry.paused or registry.connecting:
                registry.resume()
            self._run_until_stopped()
            self._stopping = False
            self._end_run(depth)
        except BaseException:
            try:
                registry.finish_leaving(self.handle_exception)
            finally:
                self._end_run(depth)
            raise

    def _run_until_stopped(self) -> None:
        registry = self._registry
        receivers, connecting = registry.receivers, registry.connecting
        leaving, readable = registry.leaving, registry.readable
        timers, pending = self._timers, self._timers.heap
        soon, post_loop_callbacks = self._soon, registry.post_loop_callbacks
        needs_waker, resets = registry.needs_waker, self._resets
        obj: AnySocket | None = None
        # Both are set when something is due, which is so in the first turn.
        poller, profiling = cast("Poller", registry.poller), False
        if self._stopping:
            return
        while True:
            if pending or registry.something_due:
                try:
                    timeout = timers.run_due()
                except Exception as error:
                    registry.something_due = True  # Whatever else was due still is.
                    if not self.handle_exception(error):
                        raise
                    continue
                if registry.something_due:
                    if self._stopping and not soon:
                        return
                    if soon:
                        self._run_soon()
                        if self._stopping:
                            return
                        timeout = 0  # They may have added a timer, which the next turn will see.
                    elif readable or registry.to_close():
                        timeout = 0
                    if registry.poller is None and resets != self._resets:
                        watched = registry.objects or registry.other_fds or registry.waker
                        if not (watched or pending or soon):
                            return  # After a reset in this run there is nothing to wait for.
                    poller = registry.poller or registry.open()
                    profiling = self._profiling
            else:
                timeout = timers.timeout
            if needs_waker and count_other_threads():
                self._open_waker()
            found = poller.wait_bare(timeout)
            if profiling:
                if found is None:
                    self._dispatch_profiled(self._by_event(poller.pairs))
                else:
                    self._dispatch_profiled(zip(found, repeat(POLLIN)))
            elif found is None:
                # Inline, as below: a function would cost each write that continues 500
                # instructions.
                for fd, state in poller.pairs:
                    try:
                        obj = receivers[fd]
                        if obj is not None:
                            if connecting and fd in connecting:
                                connecting[fd].finish()
                            elif state == POLLOUT:
                                # Tested first: the usual event of a write that continues.
                                obj.event_write()
                            else:
                                if state & POLLIN:
                                    obj.event_read()
                                # It may have left, and have another descriptor or loop now.
                                if state & POLLOUT and receivers[fd] is obj:
                                    obj.event_write()
                                if state & POLLERR and receivers[fd] is obj:
                                    obj.event_err()
                                if state & POLLHUP and receivers[fd] is obj:
                                    obj.event_hup()
                            continue
                    except Exception as error:
                        if fd < len(receivers):
                            if not self.handle_exception(error, obj):
                                raise
                            continue
                    self._other_event(fd, state)
            else:
                # Nearly all batches: objects that are readable.
                for fd in found:
                    try:
                        obj = receivers[fd]
                        if obj is not None:
                            obj.event_read()
                            continue
                    except Exception as error:
                        if fd < len(receivers):
                            if not self.handle_exception(error, obj):
                                raise
                            continue
                    self._other_event(fd, POLLIN)
            if registry.something_due:
                # Cleared first: another thread or a signal's handler may set it again after this.
                registry.something_due = False
                obj = None  # It may be leaving, and this name would keep it alive during the wait.
                if readable:
                    self._read_pushed_back()
                if leaving:
                    registry.finish_leaving(self.handle_exception)
                if soon or poller is not registry.poller or profiling is not self._profiling:
                    registry.something_due = True
                if self._stopping:
                    self._run_callbacks()
                    return
            if post_loop_callbacks and (not self._run_callbacks() or self._stopping):
                return

    def _end_run(self, depth: int) -> None:
        """End a run that began inside `depth` others. Acts only once, and makes no call."""
        registry = self._registry
        if own := registry.outer_batches[depth:]:
            if registry.poller is not None:
                registry.poller.batch = own[0]
            registry.something_due = True  # for the run around this one
            del registry.outer_batches[depth:]

    def stop(self) -> None:
        """End `run` after the current batch, or, from a timer, before the next wait. If no `run` is
        active, the next one returns at once. May be called from any thread or signal handler: from
        another thread than that of the run it ends a wait in progress, by the calls of
        `call_soon_threadsafe`, and raises what that does."""
        self._stopping = self._registry.something_due = True
        if self._thread != get_ident():
            with alone:  # A run that ends meanwhile must not close the loop before.
                if self._registry.outer_batches:
                    self._open_waker()
        if (waker := self._registry.waker) is not None:
            waker.wake()

    def _run_soon(self) -> None:
        """Run the callbacks of `call_soon`. Those added meanwhile wait for the next turn, so that
        one that keeps adding itself does not block the loop."""
        soon = self._soon
        for _ in range(len(soon)):
            try:
                if soon:  # A callback may have run the loop, which has run the others.
                    callback = soon[0]
                    del soon[0]  # No call before the next line: neither lost nor called twice.
                    callback()
            except Exception as error:
                if not self.handle_exception(error):
                    raise

    def _dispatch_profiled(self, found: Iterable[tuple[int, int]]) -> None:
        """Dispatch pairs that have one event each, and record the cost of each handler."""
        registry, costs = self._registry, self._costs
        receivers, connecting = registry.receivers, registry.connecting
        obj: AnySocket | None = None
        for fd, event in found:
            try:
                obj = receivers[fd]
                if obj is not None:
                    if connecting and fd in connecting:
                        connecting[fd].finish()
                        continue
                    # Inline: a function would add a tenth to the cost.
                    before = libc.getrusage(0)  # RUSAGE_SELF
                    if event == POLLIN:
                        obj.event_read()
                    elif event == POLLOUT:
                        obj.event_write()
                    elif event == POLLERR:
                        obj.event_err()
                    else:
                        obj.event_hup()
                    after = libc.getrusage(0)
                    cost = costs[event][type(obj)]
                    cost.user += after[0] - before[0]
                    cost.system += after[1] - before[1]
                    cost.calls += 1
                    continue
            except Exception as error:
                if fd < len(receivers):
                    if not self.handle_exception(error, obj):
                        raise
                    continue
            self._other_event(fd, event)

    def _by_event(self, found: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """Yield each event of an object separately, while the object still has the descriptor."""
        registry = self._registry
        for fd, state in found:
            obj = registry.objects.get(fd)
            if obj is None or fd in registry.connecting:
                yield fd, state
            else:
                for event in _KINDS:
                    if state & event and registry.receivers[fd] is obj:
                        yield fd, event

    def _other_event(self, fd: int, state: int) -> None:
        """Handle an event of a descriptor without an object. It may even be unknown: an epoll can
        be shared with a forked child."""
        registry = self._registry
        callback = registry.other_fds.get(fd)
        try:
            if callback is not None:
                callback(state)
            elif registry.waker is not None and fd == registry.waker.fileno():
                registry.woken(registry.waker)
            else:
                registry.remove_unknown(fd, state)
        except Exception as error:
            if not self.handle_exception(error):
                raise

    def handle_exception(self, error: Exception, obj: AnySocket | None = None) -> bool:
        """Pass an exception from a handler of `obj`, or from a callback, to `on_exception`, and
        close the object, even if its own `close` raises. False without an `on_exception`: then the
        caller has to reraise."""
        if self._on_exception is None:
            return False
        try:
            # The callback takes a Socket with any kind of handle.
            self._on_exception(cast("Socket | None", obj), error)
        finally:
            if obj is not None and not obj.closed:
                try:
                    obj.close_as("exception")
                except Exception as another:
                    warn("in close of %s: %r", described(obj), another)
        return True

    def _read_pushed_back(self) -> None:
        """Call event_read while objects that watch for reading have pushed-back data. As in the
        original, one that gets some during a round waits for the next; there it comes first."""
        receivers, readable = self._registry.receivers, self._registry.readable
        while readable:
            for fd in list(readable):
                obj = receivers[fd]
                try:
                    # A signal's handler may come between a change of the object and its note here.
                    if obj is not None and obj.read_push_back and fd in readable:
                        obj.event_read()
                        if fd in readable:  # To the end, behind those added meanwhile.
                            del readable[fd]
                            readable[fd] = None
                    else:
                        readable.pop(fd, None)
                except Exception as error:
                    if not self.handle_exception(error, obj):
                        raise

    def _run_callbacks(self) -> bool:
        """Run the post-loop callbacks, those of objects first. False once one returns false."""
        registry = self._registry
        callbacks = registry.post_loop_callbacks
        fds = list(callbacks)
        if len(fds) > 1:  # Sorting by a function costs 1,000 instructions.
            fds.sort(key=LOOPS_OWN.__eq__)
        for fd in fds:
            obj, callback = registry.objects.get(fd), callbacks.get(fd)
            try:
                if callback is not None and not callback(*self._views):
                    return False
            except Exception as error:
                if not self.handle_exception(error, obj):
                    raise
        return True

    # --- timers, timeout, callbacks ---------------------------------------------------------------

    add_timer = add_timer  # from timers.py, where the reason is given

    def call_soon(self, callback: Callback) -> None:
        """Call `callback()` once, in the next turn before it waits, in the order of these calls.
        Only for the loop's own thread. Raises `TypeError` if it can't be called. No system call."""
        check_callback("a callback", callback)
        self._soon.append(callback)
        self._registry.something_due = True  # After it: the loop may be running in another thread.

    def call_soon_threadsafe(self, callback: Callback) -> None:
        """Like `call_soon`, but from any thread or signal handler; ends the current wait. Calls
        write(2), unless that has been done since the loop last looked, and on first use pipe2(2)
        and the calls that watch its read end. Raises `OSError` if there can be no pipe (EMFILE)."""
        check_callback("a callback", callback)
        waker = self._open_waker()
        self.call_soon(callback)
        waker.wake()
        if self._soon and self._registry.waker is not waker:  # It was reset before this was added.
            self._open_waker().wake()

    def add_signal_handler(self, number: int, callback: Callback) -> None:
        """Call `callback()` in the next turn after each arrival of the signal, which ends the
        current wait. For the main thread only. Lasts until the loop is reset or closed. If several
        loops have signal handlers, only the one that added the latest is woken at once.

        Calls rt_sigaction(2), and on first use those of `call_soon_threadsafe`. Raises `ValueError`
        for a number that is not a signal, and in other threads; `OSError` (EINVAL) for a signal
        that can't be handled; `TypeError` if `callback` can't be called.
        """
        check_callback("a signal's callback", callback)
        waker = self._open_waker()
        waker.add_signal(number, lambda: self.call_soon_threadsafe(callback))

    def remove_signal_handler(self, number: int) -> bool:
        """Restore the default action of the signal (for SIGINT, Python's), by rt_sigaction(2),
        unless another handler was set since. False if this loop has no handler for it."""
        waker = self._registry.waker
        return waker is not None and waker.remove_signal(number)

    def _open_waker(self) -> Waker:
        return self._registry.waker or self._registry.open_waker()

    def set_loop_timeout(self, ms: int) -> int:
        """Wait at most `ms` milliseconds for events; 0 means not to block, and -1, the default, to
        wait forever. That is what the original's code does; its manual has 0 and -1 the other way
        round. Returns `ms`. Raises `ValueError` below -1 and beyond a C int."""
        ms = whole("a loop timeout is a number of milliseconds, an int", ms)
        if not -1 <= ms <= INT_MAX:
            raise ValueError(f"a loop timeout is -1 or 0 to {INT_MAX} milliseconds, not {ms!r}")
        self._timers.set_timeout(ms)
        return ms

    def set_post_loop_callback(self, callback: PostLoopCallback | None) -> None:
        """Call `callback(descriptor map, other fds)` after each batch; if it returns false, `run`
        ends. None removes it. Raises `TypeError` if it can't be called."""
        if callback is not None:
            check_callback("a post-loop callback", callback)
            self._registry.post_loop_callbacks[LOOPS_OWN] = callback
        else:
            self._registry.post_loop_callbacks.pop(LOOPS_OWN, None)

    @property
    def on_exception(self) -> ExceptionCallback | None:
        """Called with (object or None, exception) when a handler or a callback raises. Then the
        object is closed, with the reason "exception", and the loop continues. While it is None, the
        exception leaves `run`. Raises `TypeError` when set to something that can't be called."""
        return self._on_exception

    @on_exception.setter
    def on_exception(self, callback: ExceptionCallback | None) -> None:
        if callback is not None:
            check_callback("on_exception", callback)
        self._on_exception = callback

    # --- descriptors ------------------------------------------------------------------------------

    @property
    def descriptor_map(self) -> DescriptorMapping:
        """The objects by fd. A closed one stays until the end of its batch."""
        return self._views[0]

    @property
    def watched_sockets(self) -> int:
        """The number of objects in the descriptor map."""
        return len(self._registry.objects)

    @property
    def to_close(self) -> list[Handle]:
        """The raw sockets waiting to be closed, in the order of closing."""
        return self._registry.to_close()

    @property
    def other_fds(self) -> OtherFdMapping:
        """The callbacks of descriptors without an object, by fd. Each is called with the event mask
        (POLLIN 1, POLLERR 8, POLLHUP 16) when its fd is readable. Setting it replaces all, added as
        by `add_other_fds`; those left out are no longer watched, but not closed."""
        return self._views[1]

    @other_fds.setter
    def other_fds(self, fds: OtherFdMapping) -> None:
        self._registry.replace_other_fds(_checked(fds))

    def add_other_fds(self, fds: OtherFdMapping) -> OtherFdMapping:
        """Watch descriptors without an object for reading, each with its callback; returns all of
        them. Calls epoll_ctl(EPOLL_CTL_ADD), kevent(EV_ADD) or, on poll, fstat(2); for a fd that is
        already watched, EPOLL_CTL_MOD or EV_ENABLE, to check that it still is. Raises `TypeError`
        for a callback that can't be called and `OSError` for a fd that can't be watched; then none
        of `fds` is added."""
        self._registry.add_other_fds(_checked(fds))
        return self._views[1]

    @property
    def backend(self) -> str:
        """The name of the backend in use."""
        return self._registry.backend

    @property
    def have_epoll(self) -> bool:
        """True if this loop uses epoll."""
        return self.backend == "epoll"

    @property
    def have_kqueue(self) -> bool:
        """True if this loop uses kqueue."""
        return self.backend == "kqueue"

    # --- profiling --------------------------------------------------------------------------------

    @property
    def profiling_data(self) -> ProfileMapping:
        """The cost of the handlers so far, by class and event: "Client-read" etc. -> (seconds of
        user time, seconds of system time, number of calls)."""
        sums: dict[str, tuple[float, float, int]] = {}
        for event, kind in _KINDS.items():
            for owner, cost in self._costs[event].items():
                name = owner.__name__ + kind
                user, system, calls = sums.get(name, (0.0, 0.0, 0))
                sums[name] = (user + cost.user, system + cost.system, calls + cost.calls)
        return MappingProxyType(sums)

    def enable_profiling(self) -> bool:
        """Record the cost of each handler, starting from zero: two getrusage(2) per handler.
        Returns True. Raises `ImportError` if Python has no `resource`."""
        __import__("resource")  # Now, or every handler would fail.
        self._forget_costs()
        self._profiling = self._registry.something_due = True
        return True

    def disable_profiling(self) -> None:
        """Stop recording the cost of handlers; what was recorded stays."""
        self._profiling = False
        self._registry.something_due = True

    def _forget_costs(self) -> None:
        for costs in self._costs:
            costs.clear()

    # --- ending -----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Make the loop as good as new: forget objects, other fds, timers, callbacks, the timeout
        and the profile. Closes the poller and whatever is waiting to be closed: close(2). The next
        use opens a new poller. Unregisters nothing, so that in a forked child the parent's
        registrations stay."""
        first: list[BaseException] = []
        while True:
            try:
                self._forget()
                break
            except BaseException as error:
                # A signal's handler raised, or the close() of a handle, which is done now. Half of
                # a reset is of no use.
                first = first or [error]
        if first:
            raise first.pop()

    def _forget(self) -> None:
        self._registry.paused.clear()  # Listening again would change an epoll shared with a parent.
        self._registry.finish_leaving(self.handle_exception)
        self._timers.clear()
        self._soon.clear()
        self._on_exception = None
        self.disable_profiling()
        self._forget_costs()
        if not self._registry.outer_batches:
            self._stopping = False
        self._resets += 1
        self._registry.forget()

    def close(self) -> None:
        """The same as `reset`: a closed loop is as good as new."""
        self.reset()

    def __enter__(self: LoopT) -> LoopT:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        """Close the poller of a loop that was never closed, with a ResourceWarning."""
        registry = getattr(self, "_registry", None)
        if registry is not None and (registry.poller or registry.waker) and not sys.is_finalizing():
            import warnings  # mostly not needed

            try:
                warnings.warn(f"unclosed loop {self!r}", ResourceWarning, stacklevel=2, source=self)
            finally:
                registry.forget()  # Even if warnings are errors.


def registry_of(loop: object) -> Registry:
    """The registry of a loop. Raises `TypeError` for anything else."""
    if not isinstance(loop, Loop):
        hint = f"; Loop({loop!r}) makes one" if isinstance(loop, str) else ""
        if isinstance(loop, (int, tuple)):  # It is part of an address.
            hint = "; connect takes (ip, port), and a Listener calls accepted(connection, address)"
        raise TypeError(f"a Socket takes a Loop, not {loop!r}{hint}")
    return loop._registry  # pyright: ignore[reportPrivateUsage]  # of this room's own class


def _checked(fds: OtherFdMapping) -> dict[int, OtherFdCallback]:
    """A checked copy. Raises `TypeError` for a key that is no fd or a value that is no callback."""
    if not hasattr(fds, "items"):
        raise TypeError(f"other fds are given as {{fd: callback}}, not {fds!r}")
    checked: dict[int, OtherFdCallback] = {}
    for fd, callback in fds.items():
        if hasattr(fd, "fileno"):
            raise TypeError(f"an other fd is a number, not {fd!r}: give its fileno()")
        number = whole("an other fd is a number", fd)
        check_callback(f"the callback of other fd {fd}", callback)
        checked[number] = callback
    return checked
