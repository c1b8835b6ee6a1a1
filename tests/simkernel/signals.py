"""Signals, which arrive when a world decides it: in a wait, or after any other call."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from errno import EBADF
from functools import wraps
from random import Random
from types import FrameType
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from tests.simkernel.errors import SimError
from tests.simkernel.files import error
from tests.simkernel.pipes import PipeEnd

if TYPE_CHECKING:
    from tests.simkernel.kernel import SimKernel

Handler = Callable[[int, FrameType | None], object]
P = ParamSpec("P")
R = TypeVar("R")

USUAL: Final = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)


class Signals:
    """The handlers of a process, and the descriptor to which each signal writes. For the package's
    waker it is the module `signal`."""

    SIGINT = signal.SIGINT
    SIG_DFL = signal.SIG_DFL
    default_int_handler = staticmethod(signal.default_int_handler)

    def __init__(self, kernel: SimKernel, seed: int) -> None:
        self.kernel = kernel
        self.random = Random(f"signals {seed}")
        self.chance = 0.0
        """The probability of a signal after a call; 0 for a process that gets none."""
        self.handlers: dict[int, Handler] = {}
        self.wakeup_fd = -1
        self.pending: deque[int] = deque()
        self.about_to: Callable[[int], object] = int
        """Called with each signal before it is handled."""

    def signal(self, number: int, handler: Handler | int) -> object:
        """signal.signal"""
        before = self.handlers.pop(number, signal.SIG_DFL)
        if handler not in USUAL:
            assert callable(handler)
            self.handlers[number] = handler
        return before

    def getsignal(self, number: int) -> object:
        """signal.getsignal"""
        return self.handlers.get(number, signal.SIG_DFL)

    def set_wakeup_fd(self, fd: int, *, warn_on_full_buffer: bool = True) -> int:
        """signal.set_wakeup_fd. Raises `OSError` (EBADF)."""
        if fd >= 0:
            file = self.kernel.table.files.get(fd)
            if file is None:
                raise error(EBADF)
            if not (isinstance(file, PipeEnd) and file.writes and file.nonblocking):
                raise SimError(f"set_wakeup_fd: descriptor {fd} is {file}")
        before, self.wakeup_fd = self.wakeup_fd, fd
        return before

    def come(self, number: int) -> None:
        """Deliver a signal, unless it has no handler and would end the process."""
        if number not in self.handlers:
            return
        if self.wakeup_fd >= 0:
            file = self.kernel.table.files.get(self.wakeup_fd)
            if not isinstance(file, PipeEnd):
                raise SimError(f"a signal writes to descriptor {self.wakeup_fd}, which is {file}")
            if file.space:
                file.write(memoryview(bytes((number,))))
        self.pending.append(number)

    def handle(self) -> None:
        """Call the handlers of the signals that have arrived, as the interpreter does between two
        instructions."""
        while self.pending:
            number = self.pending.popleft()
            if (handler := self.handlers.get(number)) is not None:
                self.about_to(number)
                handler(number, None)

    def behind(self, call: Callable[P, R]) -> Callable[P, R]:
        """Wrap a call so that a signal may arrive after it."""

        @wraps(call)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return call(*args, **kwargs)
            finally:
                if self.handlers and self.random.random() < self.chance:
                    self.come(self.random.choice(sorted(self.handlers)))
                    self.handle()

        return called
