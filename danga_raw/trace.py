"""The audit: every system call that the package makes, as a record and as the line strace prints.

While a trace is on, each foreign function has an `errcheck`, which everybody who holds the function
feels, and the door's Python functions are replaced by ones that report. When it goes off, nothing
is left of either. So a trace costs nothing while off, and can begin and end while a loop runs.

What can't be seen from here, or not whole:

* clock_gettime, which the C library answers without the kernel (vdso(7));
* when a call began, and whether it came before those of a signal's handler just behind it;
* that a read, a write or an accept was interrupted and made again (PEP 475), or that a poll(2) is yet
  to be (ERESTART_RESTARTBLOCK);
* a call out of which a signal's handler raised an exception, and a `close` that a handle which is no
  socket makes by itself;
* the address of a buffer that Python made, printed as 0x..., as is a socket's address of another family
  than AF_INET, AF_INET6 and AF_UNIX; the name of the interface in a link-local address;
* what the C library keeps to itself: the time that a ppoll(2) had left, the fields that a statx(2)
  filled, and how a signal was handled before;
* what Python asks by itself: the answer when it asks for the name of an accepted descriptor; and for
  `signal.set_wakeup_fd`, fstat and fcntl(F_GETFL) of the pipe's write end when a handler is added, and
  the write of the signal's number when it comes.

Names and arguments are those of the system call that the C library makes of the function
(`_kernel.py`), or the function's own where that isn't known; the text is that of strace 7.2.
"""

from __future__ import annotations

import os
import time
from _ctypes import CFuncPtr
from _thread import get_ident
from collections.abc import Callable
from ctypes import get_errno, set_errno
from functools import cache
from typing import Final, Protocol, cast

from danga_raw._interrupt import RESULT, alone
from danga_raw._kernel import HERE, MAKES_A_SOCKET
from danga_raw._libc import FOREIGN, libc
from danga_raw._mistakes import no_copy
from danga_raw._strace import CALLS, RETURNED, Given, asked_again
from danga_raw._strace import Call as Call


class Trace:
    """Records the calls of the package, of all its loops and threads, while it is on.

    `with Trace() as calls:` gathers them in a list; `Trace(sink)` hands each to `sink`, before the
    caller has its result. Several may be on at a time, and each gets every call.

    An exception of a sink takes its trace off and reaches the caller of the traced call, an OSError
    as the cause of a RuntimeError: the package would take it for the call's own failure. The call
    has been made, and nothing of it is lost: what was read is still to be read, and what was not
    written is queued. What is called while a thread is in a sink, by the sink or by a signal's
    handler, is not traced.
    """

    __slots__ = {
        "calls": "The calls so far; stays empty where there is another sink.",
        "sink": "What each call is handed to.",
    }
    __getstate__ = no_copy

    def __init__(self, sink: Callable[[Call], object] | None = None) -> None:
        """Off at first. Raises `TypeError` for a sink that can't be called."""
        if sink is not None and not callable(sink):
            raise TypeError(f"a trace takes a callable or None, not {sink!r}")
        self.calls: list[Call] = []
        self.sink: Final[Callable[[Call], object]] = self.calls.append if sink is None else sink

    @property
    def on(self) -> bool:
        """True between `start` and `stop`."""
        return self in _on

    def start(self) -> None:
        """Record from here on; does nothing if it is on."""
        _on[self] = None
        _switch()

    def stop(self) -> None:
        """Record no longer; does nothing if it is off."""
        _on.pop(self, None)
        _switch()

    def hand_over(self, call: Call) -> None:
        """Give a call to the sink. A subclass may do otherwise; what it raises reaches the caller."""
        thread = get_ident()
        if thread in _in_sinks:
            return
        _in_sinks.add(thread)
        try:
            self.sink(call)
        except OSError as error:
            self.stop()
            raise RuntimeError(f"the sink of a trace failed: {error}") from error
        except BaseException:
            self.stop()
            raise
        finally:
            _in_sinks.discard(thread)

    def __enter__(self) -> list[Call]:
        self.start()
        return self.calls

    def __exit__(self, *error: object) -> None:
        self.stop()


class _Function(Protocol):
    def __call__(self, *given: object) -> object: ...


_on: Final[dict[Trace, None]] = {}
"""Those that are on. A dict takes one in or out in one step, whatever a signal's handler does."""
_in_sinks: Final[set[int]] = set()
"""The threads that are in a sink."""
_replaced: Final[dict[str, tuple[object, object]]] = {}
"""By name: what was in the door, and what is there now."""
_is_switching = False


def _switch() -> None:
    """See to it that the door is observed if and only if a trace is on."""
    global _is_switching
    with alone:
        # A signal's handler that starts or stops a trace may come in the midst of this. Then it
        # leaves the rest to whom it has interrupted, who looks again. There is no call between the
        # look at the flag and its setting, behind which a handler could come.
        while True:
            if _is_switching or (not _on) == (not _replaced):
                break
            _is_switching = True
            try:
                if _on and not _replaced:
                    _observe()
                elif _replaced and not _on:
                    _leave_alone()
            finally:
                _is_switching = False


def _after_fork() -> None:
    """A thread that was switching is not there any more, nor is another that was in a sink. This one
    still is, if it forked there."""
    global _is_switching
    _is_switching = False
    _in_sinks.intersection_update((get_ident(),))


os.register_at_fork(after_in_child=_after_fork)


# The door's __dict__ is left alone: once that was looked at, CPython 3.11 and later find attributes
# by a slower way, and a turn of the loop costs 4 % more for good.
def _observe() -> None:
    for name in CALLS:
        real: object = getattr(libc, name, None)
        if isinstance(real, CFuncPtr):
            setattr(real, "errcheck", _errcheck(name))
            _replaced[name] = (real, real)
        elif real is not None:
            substitute = _reporting(name, cast(_Function, real))
            setattr(libc, name, substitute)
            _replaced[name] = (real, substitute)


def _leave_alone() -> None:
    for name, (real, substitute) in _replaced.items():
        if isinstance(real, CFuncPtr):
            del real.errcheck
        elif getattr(libc, name, None) is substitute:
            setattr(libc, name, real)
    _replaced.clear()


# Kept for good: ctypes calls the one that was there when the call began, and has no reference to it.
# That of a wait is called when the wait ends, however long ago another thread took the trace off.
@cache
def _errcheck(name: str) -> Callable[[int, object, Given], int]:
    def errcheck(result: int, function: object, given: Given) -> int:
        number = get_errno()
        try:
            _report(name, given, result, result, number if result < 0 else 0)
        finally:
            set_errno(number)
        return result

    return errcheck


def _reporting(name: str, real: _Function) -> _Function:
    # Another kernel's functions answer as C does, and may be no C functions for all that.
    as_c = name in FOREIGN

    def reporting(*given: object) -> object:
        try:
            result = real(*given)
        except OSError as error:
            _report(name, given, None, -1, error.errno or 0)
            raise
        number = get_errno()
        returned = result if isinstance(result, int) else 0
        if name in RETURNED:
            returned = RETURNED[name](result)
        try:
            _report(name, given, result, returned, number if as_c and returned < 0 else 0)
        finally:
            set_errno(number)
        return result

    # The name of the symbol tells NetBSD's older kevent from the newer.
    setattr(reporting, "__name__", getattr(real, "__name__", name))
    return reporting


def _report(name: str, given: Given, result: object, returned: int, number: int) -> None:
    kernels_name, take = CALLS[name]
    call = Call(kernels_name, take(given, result), returned, number, time.time())
    again = asked_again(name, call, HERE) if number or name == MAKES_A_SOCKET else None
    failure: list[BaseException] = []
    for trace in list(_on):  # In one step also where there is no GIL, as a tuple is not made.
        try:
            trace.hand_over(call)
            if again is not None:
                trace.hand_over(again)
        except BaseException as error:
            failure = failure or [error]
    if failure:
        vars(failure[0])[RESULT] = returned if result is None else result
        raise failure.pop()


if __name__ == "__main__":
    raise SystemExit("python3 -m danga_raw trace PROGRAM runs a program under the trace")
