"""What may come between two steps of this package, and what withstands it: signals, threads, forks.

CPython runs a signal's handler, in the main thread, behind a call, at the start of a function and at
a backward jump, and behind no other instruction (ceval.c, CHECK_EVAL_BREAKER). A handler may raise,
as the usual one for Ctrl-C does, and may close sockets, add timers or reset the loop before it
returns. So between two of those places a few instructions are done whole or not at all, and code
that must not be cut short is arranged so that its calls come first. Where a comment says "no call
from here on", that is what it means.

The idioms:

* `made += map(call, arguments)` calls and keeps the result in one instruction. Between a call and
  an assignment a handler could raise, and what the call has made would be nobody's. `Once` is this
  for a descriptor.
* `queue += (item,)` is one instruction, where `queue.append(item)` is a call, behind which a handler
  may find the item queued and its caller may not know it.
* An iterator gives each item once, whatever is raised meanwhile: `for _ in map(close, descriptors)`
  can be begun again and closes nothing twice.
* A state is written before the step that it speaks of, and the step can be repeated: a descriptor is
  listed as leaving before it is unregistered, and who is cut short is finished by the next to look.
* A loop in a `try` ends with a plain statement, and no loop has its condition in its head there:
  CPython 3.13 and 3.14 leave a jump back that depends on a condition out of the `try`, so that what
  a handler raises at it is caught by nobody.
* `with alone():` takes its lock where no handler can come before the `with` has begun. CPython 3.14
  looks for signals behind the call of a lock's own `__enter__`, and what is raised there leaves the
  lock taken: every other thread would wait for it for ever.
* A question and what depends on it (`if not self.closed: ...`) have no call between them, and the
  answer on which something is done falls through: 3.10 looks for signals at any jump that is taken.

An exception that comes out of a call leaves two questions, which the functions below answer: did the
call fail, or did a handler raise; and is known what the call returned.

No name may keep an error that is raised again: its traceback keeps the frame, which by the name would
keep the error, until the garbage collector comes by. So it is kept in a list and taken out of it, and
a parameter is deleted ("no cycle").
"""

from __future__ import annotations

import os
from _thread import RLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

RESULT: Final = "_danga_raw_result"
"""The attribute of an exception that was raised behind a call and knows what the call returned."""


class _Lock:
    """For `with`; may be taken again by the thread that has it."""

    __slots__ = ("__exit__", "_acquire")

    def __init__(self) -> None:
        lock = RLock()
        self._acquire = lock.acquire
        # C's own: a function of Python would begin with a look for signals.
        self.__exit__ = lock.__exit__

    def __enter__(self) -> None:
        taken: list[bool] = []
        # The last that is done here, and no call: a function's return is no place for a handler.
        taken += map(self._acquire, (True,))


_alone = _Lock()


def alone() -> _Lock:
    """The lock under which what other threads may reach is opened, switched and closed. A signal's
    handler may take it again in the thread that has it. There is one for all, so that a forked child
    can be given a new one: the thread that had it may not be there."""
    return _alone


def _after_fork() -> None:
    global _alone
    _alone = _Lock()


os.register_at_fork(after_in_child=_after_fork)


def take_result(error: BaseException) -> object:
    """What the call returned behind which `error` was raised, if it knows: the sink of a trace may
    raise, and the call has been made all the same. A signal's handler knows nothing: then None."""
    result: object = vars(error).pop(RESULT, None)
    return result


def by_handler(error: BaseException) -> bool:
    """True if a signal's handler raised, behind a call or before it. The failures of calls have an
    errno; an OSError of a handler, mostly a TimeoutError, has none."""
    return not isinstance(error, OSError) or error.errno is None


class Once:
    """A descriptor of the package's own, made by one call and closed once, whatever is raised in
    between."""

    __slots__ = ("_closing", "_made")

    def __init__(self) -> None:
        self._made: list[int] = []
        self._closing: Iterator[int] = iter(self._made)  # It gives what is in the list by then.

    def make(self, results: Iterator[int]) -> int:
        """The descriptor: what an earlier call has made, or what `results` gives, a map over the one
        call that makes it. -1 where that fails, and it may be tried again. Not for use behind `close`."""
        made = self._made
        if not made:
            try:
                made += results
            except BaseException as error:
                # Where the sink of a trace raised, the call was made all the same.
                if isinstance(fd := take_result(error), int) and fd >= 0:
                    made += (fd,)
                raise
        fd = made[0]
        if fd < 0:
            del made[:]
        return fd

    def close(self, call: Callable[[int], object]) -> None:
        """`call(fd)`, if it is open."""
        for _ in map(call, self._closing):
            pass
