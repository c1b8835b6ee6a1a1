"""The audit: every system call that the package makes, as a record and as the line strace prints.

While a trace is on, each foreign function has an `errcheck`, which takes effect for everybody who
holds the function, and the door's Python functions are replaced by ones that report. Turning it off
undoes both. So a trace costs nothing while off, and can start and stop while a loop runs.

What a trace can't see, or sees only in part:

* clock_gettime, which the C library answers without the kernel (vdso(7));
* when a call began, and whether it came before those of a signal's handler that ran just after it;
* that a read, a write or an accept was interrupted and restarted (PEP 475), or that a poll(2) will
  be restarted (ERESTART_RESTARTBLOCK);
* a call from which a signal's handler raised an exception, and the `close` of a handle that is not
  a socket and closes its descriptor itself;
* the address of a buffer that Python made, printed as 0x..., and likewise a socket address of any
  family but AF_INET, AF_INET6 and AF_UNIX; the name of the interface in a link-local address;
* what the C library doesn't pass on: the time that a ppoll(2) had left, the fields that a statx(2)
  filled, and how a signal was handled before;
* calls that Python makes itself: the answer, when it asks for the name of an accepted descriptor;
  and for `signal.set_wakeup_fd`, the fstat and fcntl(F_GETFL) of the pipe's write end when a
  handler is added, and the write of the signal's number when the signal arrives.

Names and arguments are those of the system call that the C library makes for the function
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
    """Records the package's calls, in all loops and threads, while it is on.

    `with Trace() as calls:` collects them in a list; `Trace(sink)` passes each to `sink` before the
    caller gets the result. Several traces may be on at the same time, and each gets every call.

    If a sink raises, its trace is turned off and the exception reaches the caller of the traced
    call. An OSError does so as the cause of a RuntimeError, since the package would take it for a
    failure of the call itself. The call has been made, and nothing is lost: what was read can still
    be read, and what was not written is queued. Calls that a thread makes while it is in a sink, in
    the sink itself or in a signal's handler, are not traced.
    """

    __slots__ = {
        "calls": "The calls so far; always empty if a sink was given.",
        "sink": "What each call is passed to.",
    }
    __getstate__ = no_copy

    def __init__(self, sink: Callable[[Call], object] | None = None) -> None:
        """Off at first. Raises `TypeError` if `sink` is not callable."""
        if sink is not None and not callable(sink):
            raise TypeError(f"a trace takes a callable or None, not {sink!r}")
        self.calls: list[Call] = []
        self.sink: Final[Callable[[Call], object]] = self.calls.append if sink is None else sink

    @property
    def on(self) -> bool:
        """True between `start` and `stop`."""
        return self in _on

    def start(self) -> None:
        """Start recording; does nothing if it is on."""
        _on[self] = None
        _switch()

    def stop(self) -> None:
        """Stop recording; does nothing if it is off."""
        _on.pop(self, None)
        _switch()

    def hand_over(self, call: Call) -> None:
        """Call the sink. A subclass may override this; what it raises reaches the caller."""
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
"""Those that are on. A dict adds or removes one in one step, whatever a signal's handler does."""
_in_sinks: Final[set[int]] = set()
"""The threads that are in a sink."""
_replaced: Final[dict[str, tuple[object, object]]] = {}
"""By name: the door's own function, and the one that is there now."""
_is_switching = False


def _switch() -> None:
    """Make sure that the door is observed if and only if a trace is on."""
    global _is_switching
    with alone:
        # A signal's handler that starts or stops a trace may interrupt this. It leaves the rest to
        # the function that it interrupted, which checks again. No call between testing the flag and
        # setting it: a handler could run after it.
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
    """A thread that was switching doesn't exist any more, nor do others that were in a sink. This
    thread still is in one, if it forked there."""
    global _is_switching
    _is_switching = False
    _in_sinks.intersection_update((get_ident(),))


os.register_at_fork(after_in_child=_after_fork)


# The door's __dict__ is not touched: once it has been accessed, CPython 3.11 and later look up the
# door's attributes more slowly, and every turn of the loop costs 4 % more from then on.
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


# Never freed: ctypes calls the one that was set when the call began, without holding a reference to
# it. A wait calls it when it ends, however long ago another thread turned the trace off.
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
    # The functions of a simulated kernel return what C's would, but need not be C functions.
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

    # The symbol's name distinguishes NetBSD's older kevent from the newer one.
    setattr(reporting, "__name__", getattr(real, "__name__", name))
    return reporting


def _report(name: str, given: Given, result: object, returned: int, number: int) -> None:
    kernels_name, take = CALLS[name]
    call = Call(kernels_name, take(given, result), returned, number, time.time())
    again = asked_again(name, call, HERE) if number or name == MAKES_A_SOCKET else None
    failure: list[BaseException] = []
    for trace in list(_on):  # One step even without a GIL, unlike tuple(_on).
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
