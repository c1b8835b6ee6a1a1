"""What can interrupt this package, and how its code withstands it: signals, threads, forks.

CPython runs signal handlers in the main thread: after a call, at the start of a function and at a
backward jump, but after no other instruction (ceval.c, CHECK_EVAL_BREAKER). A handler may raise, as
the default one for Ctrl-C does, or close sockets, add timers or reset the loop and return. So the
instructions between two of those places are executed all or not at all, and code that must not be
interrupted makes its calls first. That is what the comment "no call from here on" means.

The idioms:

* `made += map(call, arguments)` makes a call and stores its result in one instruction. If a handler
  raised between a call and an assignment, the result would be lost.
* `queue += (item,)` is one instruction. `queue.append(item)` is a call, after which a handler may
  raise: then the item is queued, but the caller does not know.
* An iterator yields each item once, whatever is raised meanwhile: `for _ in map(close,
  descriptors)` can be repeated and closes nothing twice.
* The intent is recorded before the step, and the step can be repeated: a descriptor is listed as
  leaving before it is unregistered, and if that is interrupted, `finish_leaving` completes it.
* A loop in a `try` ends with a plain statement, and its head has no condition: CPython 3.13 and
  3.14 leave a conditional backward jump out of the `try`, so that nothing catches what a handler
  raises there.
* `with alone:` acquires its lock where no handler can run before the `with` block is entered.
  CPython 3.14 runs handlers after the call of a lock's own `__enter__`, and an exception there
  would leave the lock acquired forever.
* A condition and the code that depends on it (`if not self.closed: ...`) have no call in between,
  and the code is reached without a jump: 3.10 runs handlers at every jump that is taken.

When a call raises, there are two questions, which the functions below answer: did the call fail or
did a handler raise, and is the result of the call known?

No local variable may refer to an exception that is raised again: the traceback refers to the frame,
and the frame to the exception, until the garbage collector runs. So an exception is kept in a list
and popped from it, and a parameter is deleted ("no cycle").
"""

from __future__ import annotations

import os
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

RESULT: Final = "_danga_raw_result"
"""The attribute of an exception raised after a call that has the call's result."""


class _Lock:
    """A reentrant lock for `with`."""

    __slots__ = ("__exit__", "_acquire")

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Start with a lock that nobody holds."""
        lock = RLock()
        self._acquire = lock.acquire
        # A C function: a Python function would start by running signal handlers.
        self.__exit__ = lock.__exit__

    def __enter__(self) -> None:
        taken: list[bool] = []
        # The last step here, and no call: handlers don't run when a function returns.
        taken += map(self._acquire, (True,))


alone: Final = _Lock()
"""The lock for opening, switching and closing what other threads can reach. It is reentrant, for
signal handlers."""

# The thread that held it may not exist in a forked child.
os.register_at_fork(after_in_child=alone.renew)


def take_result(error: BaseException) -> object:
    """The result of the call after which `error` was raised, if known: the sink of a trace may
    raise after the call was made. None if a signal's handler raised."""
    result: object = vars(error).pop(RESULT, None)
    return result


def by_handler(error: BaseException) -> bool:
    """Whether a signal's handler raised `error`, before or after a call. The error of a failed call
    has an errno; an OSError from a handler, mostly a TimeoutError, has none."""
    return not isinstance(error, OSError) or error.errno is None
