"""A short story on one loop that touches nearly all of the package, to be interrupted anywhere.

Any part of it may be cut short by an exception, and is not started again. `Story.go_on` runs the
loop to the end all the same, and `Story.check` reports what was lost, doubled, torn or leaked.
"""

from __future__ import annotations

import dis
import io
import linecache
import logging
import os
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Final, Protocol, cast

import danga_raw
from danga_raw import Loop, Socket
from danga_raw._interrupt import alone
from danga_raw._poll import Poll
from danga_raw._registry import LOOPS_OWN
from tests.watched import MASK, by_epoll, by_poll

if TYPE_CHECKING:
    from _typeshed import TraceFunction

PACKAGE = str(Path(danga_raw.__file__).parent)

TOKEN = 8
"""The size of a token, in bytes. Tokens are numbers, and all that is written consists of them."""


def tokens(first: int, count: int) -> bytes:
    return b"".join(b"%07d " % number for number in range(first, first + count))


SENT = tokens(0, 4)
"""The data that each far end except the writer's sends."""

PIECES = (b"pushed 1", b"pushed 2")
"""The data that is pushed back on one of them."""


class Reader(Socket):
    """Reads tokens, a few at a time, and pushes one back now and then."""

    __slots__ = ("got", "story")

    def __init__(self, sock: socket.socket, story: Story) -> None:
        self.got = b""
        self.story = story
        super().__init__(sock, story.loop)

    def event_read(self) -> None:
        self.story.reads += 1
        if self.story.reads > 10_000:
            raise AssertionError("it is called to read for ever")
        data = self.read(3 * TOKEN)
        if data is None:
            self.close("end")
        else:
            self.got += data

    def event_err(self) -> None:
        self.close("error")

    def event_hup(self) -> None:
        self.close("hang-up")

    def close(self, reason: str | None = None) -> None:
        if reason in ("interrupted", "by a signal's handler"):
            self.story.torn.append(self)
        super().close(reason)


class Writer(Reader):
    """Writes more than there is room for, in pieces, with a callable between them."""

    def put(self, first: int, count: int) -> None:
        data = tokens(first, count)
        self.story.begun.append((first, count))
        if self.fd is not None:
            self.write(data)
            self.story.written.append((first, count))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        return near, listener.accept()[0]


class Story:
    """The story, told once."""

    def __init__(self, backend: str) -> None:
        self.loop = Loop(backend)
        self.begun: list[tuple[int, int]] = []
        """What `write` was called with: the first token, and how many."""
        self.written: list[tuple[int, int]] = []
        """The same, if `write` has returned."""
        self.fired: Counter[str] = Counter()
        self.due: set[str] = set()
        """What has to fire before the end."""
        self.over = False
        self.complaints: list[str] = []
        self.arrived = b""
        self.reads = self.turns = 0
        self.before = os.listdir("/proc/self/fd")
        self.pairs = [*(socket.socketpair() for _ in range(4)), tcp_pair()]
        self.strangers = socket.socketpair()
        for end in self.ends():
            end.setblocking(False)
        self.pairs[0][0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        self.objects: list[Reader] = []
        self.listening: list[Reader] = []
        """Those whose `watch_read` has returned."""
        self.torn: list[Reader] = []
        """Those that the package closed because the result of a read(2) or write(2) was lost."""
        self.pushed = 0
        """How many bytes `push_back_read` has accepted."""
        self.steps: list[Callable[[], None]] = [
            self.set_up, self.write, self.talk, self.cork, self.timers, self.others,
            self.others_again, self.close_one, self.steal, self.end,
        ]  # fmt: skip
        self.stolen: object = None

    # The steps, each started once. The package makes a call in each of their lines.

    def set_up(self) -> None:
        for near, _ in self.pairs:
            self.objects.append(Writer(near, self))
            self.objects[-1].watch_read(True)
            self.listening.append(self.objects[-1])

    def write(self) -> None:
        for each in self.objects[:1]:
            assert isinstance(each, Writer)
            each.put(0, 1200)
            each.put(1200, 1)
            each.write(lambda: self.fire("queued"))
            each.put(1201, 2)

    def talk(self) -> None:
        for _, far in self.pairs[1:]:
            with suppress(BrokenPipeError):  # A handler has closed the near end.
                far.send(SENT)
        for each in self.objects[1:2]:
            for piece in PIECES:
                each.push_back_read(piece)
                self.pushed += len(piece)

    def cork(self) -> None:
        for each in self.objects[4:5]:
            each.tcp_cork(True)
            each.tcp_cork(False)
            each.tcp_cork(True)

    def timers(self) -> None:
        self.loop.add_timer(-1, lambda: self.fire("timer 1"))
        self.loop.add_timer(-1, lambda: self.fire("timer 2"))
        self.loop.add_timer(60, lambda: self.fire("never")).cancel()

    def close_one(self) -> None:
        for each in self.objects[2:3]:
            each.close("over")

    def steal(self) -> None:
        for each in self.objects[3:4]:
            self.stolen = each.steal_socket()

    def others(self) -> None:
        """An other fd, and a second one."""
        self.loop.add_other_fds({self.strangers[0].fileno(): self.stranger})
        self.loop.add_other_fds({self.strangers[1].fileno(): self.stranger})

    def others_again(self) -> None:
        self.loop.other_fds = {self.strangers[1].fileno(): self.stranger}

    def end(self) -> None:
        if any(each.write_buf for each in self.objects) or self.due - self.fired.keys():
            self.steps.append(self.end)
        else:
            self.over = True
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})  # This isn't the package.
            self.check_loop()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
            self.loop.reset()

    def stranger(self, state: int) -> None:
        self.complaints.append("an event that nobody made")

    def ends(self) -> list[socket.socket]:
        return [end for pair in (*self.pairs, self.strangers) for end in pair]

    def fire(self, name: str) -> None:
        self.fired[name] += 1

    # Telling the story.

    def turn(self, *_: object) -> bool:
        """After each batch, let the far end of the writer read, and take the next step."""
        self.turns += 1
        if self.turns > 1000:
            raise AssertionError("it goes round for ever")
        # For an object in the map, the constructor had done everything but return.
        born = [each for each in self.loop._registry.objects.values() if isinstance(each, Reader)]
        self.objects += [each for each in born if each not in self.objects]
        try:
            self.arrived += self.pairs[0][1].recv(1 << 16)
        except BlockingIOError:
            pass
        if self.steps:
            self.steps.pop(0)()
        return bool(self.steps)

    def go_on(self) -> None:
        """Run the loop until the steps are done and nothing is queued."""
        for _ in range(100):
            self.loop.set_loop_timeout(0)
            self.loop.set_post_loop_callback(self.turn)
            self.loop.run()
            idle = not self.steps and not any(each.write_buf for each in self.objects)
            if idle and not self.loop._registry.leaving and not self.loop._registry.readable:
                break

    def ending(self) -> list[str]:
        """Go on to the end, and report what is wrong."""
        try:
            self.go_on()
            self.check()
        except Exception as error:
            self.complaints.append(repr(error))
        finally:
            for end in self.ends():
                end.close()
        return self.complaints

    def check(self) -> None:
        """End the story, and collect complaints about what is wrong."""
        wrong = self.complaints
        loop = self.loop
        if loop._registry.leaving or self.steps or loop._registry.outer_batches:
            wrong.append("it does not come to its end")
        live = [each for each in self.objects if not each.closed]
        if loop._registry.objects:  # It wasn't reset.
            self.check_loop()
        else:
            asked = {**loop.other_fds, **loop._registry.readable}
            callbacks = loop._registry.post_loop_callbacks.keys() - {LOOPS_OWN}
            if loop._timers.heap or asked or callbacks or registered(loop):
                wrong.append("half reset")
        if any(not each.event_watch & 1 for each in live if each in self.listening):
            wrong.append("a watch was lost")
        for each in self.objects:
            queued = sum(1 if callable(it) else len(it) for it in each.write_buf)
            if each.write_buf_size != queued - each.write_buf_offset:
                wrong.append(f"{queued} bytes queued, {each.write_buf_size} counted")
        if any(each.event_watch & 4 and not each.write_buf for each in live):
            wrong.append("a watch for writing that nobody ends")
        if any(each.write_buf and not each.event_watch & 4 for each in live):
            wrong.append("a queue that nobody hears")
        for each in live:
            if isinstance(each.sock, socket.socket) and each.sock.family == socket.AF_INET:
                if each.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) > each.corked:
                    wrong.append("corked, and nobody knows")
        self.check_written()
        self.check_read()
        for name, count in self.fired.items():
            if count != 1 or name == "never":
                wrong.append(f"{name} fired {count} times")
        for each in live:
            each.close("the end")
        loop.close()
        if loop._registry.objects or loop._registry.leaving or loop._timers.heap:
            wrong.append("something is left in the loop")
        for end in self.ends():
            end.close()
        if after := set(os.listdir("/proc/self/fd")) - set(self.before):
            wrong.append(f"descriptors are left: {after}")

    def check_loop(self) -> None:
        """Check that the loop and its poller know exactly the objects that exist."""
        wrong = self.complaints
        there = registered(self.loop)
        for each in self.objects:
            if each.closed != (each.fd is None):
                wrong.append(f"half closed: {each.closed} {each.fd}")
        live = {each.fd: each for each in self.objects if not each.closed}
        known = {fd: each for fd, each in self.loop._registry.objects.items() if not each.closed}
        if known != live:
            wrong.append(f"in the map: {known}")
        if any(unread(each) for each in live.values() if each in self.listening):
            wrong.append("what has come is not heard")
        asked = {fd: each.event_watch & MASK for fd, each in live.items()}
        asked |= dict.fromkeys(self.loop.other_fds, 1)
        if there != asked:
            wrong.append(f"registered: {there}, and asked for: {asked}")

    def check_written(self) -> None:
        """Check that written data arrived once and in order, in whole blocks unless it was torn."""
        begun = [tokens(*block) for block in self.begun]
        accepted = sum(len(tokens(*block)) for block in self.written)
        possible = {len(b"".join(begun[:count])) for count in range(len(begun) + 1)}
        here = len(self.arrived)
        whole = here >= accepted and here in possible
        torn = any(each in self.torn for each in self.objects[:1])
        if not b"".join(begun).startswith(self.arrived) or not (whole or torn):
            self.complaints.append(f"{accepted} bytes written, {here} arrived")

    def check_read(self) -> None:
        """Check that data was read once and in order: first what was pushed back, then the rest."""
        for each in self.objects[1:]:
            got = each.got + b"".join(each.read_push_back)
            if each.sock is not None:
                with suppress(BlockingIOError):
                    got += os.read(each.sock.fileno(), 1000)
            pushed, token, rest = got.partition(b"0")
            right = b"".join(PIECES).startswith(pushed) and SENT.startswith(token + rest)
            if each.sock is not None:
                mine = self.pushed if each is self.objects[1] else 0
                right = right and len(pushed) >= mine and token + rest == SENT
            if not right:
                self.complaints.append(f"read {got!r}")


def lock_left_taken() -> list[str]:
    """A complaint if this thread holds the lock of all threads, which is then released."""
    try:
        alone.__exit__(None, None, None)
    except RuntimeError:  # It isn't taken.
        return []
    return ["the lock of all threads was left taken", *lock_left_taken()]


def unread(each: Reader) -> bool:
    assert isinstance(each.sock, socket.socket)
    try:
        return bool(each.sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def registered(loop: Loop) -> dict[int, int]:
    poller = loop._registry.open()
    return by_poll(poller) if isinstance(poller, Poll) else by_epoll(poller.fileno())


class Complaints(logging.Handler):
    """Collects the package's warnings: a descriptor closed twice, an unknown one."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


BOUNDARIES = ("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "POP_JUMP_BACKWARD") + (
    ("POP_JUMP",) if sys.version_info < (3, 11) else ()
)
"""Prefixes of the instructions at whose end CPython checks for signals (ceval.c,
CHECK_EVAL_BREAKER); POP_JUMP only if it jumps. A handler can't run after any other."""

LOOKS_FIRST = ("JUMP_BACKWARD",) if sys.version_info >= (3, 13) else ()
"""Those that check before they jump: a handler's exception is raised at the jump itself."""

NEXT = 4
"""The size of a conditional jump with its cache, in bytes: the distance to the next instruction."""

NOT_TAKEN = "NOT_TAKEN"
"""A no-op after a jump that was not made. CPython 3.14 and later leave many of these out of the
`try` that contains them; only a trace function can raise there."""


TAKES: Final = type(alone).__enter__.__code__
"""It takes the lock last of all and returns: no handler can run from there to the `with`."""


@cache
def instructions(code: CodeType) -> Mapping[int, str]:
    return {each.offset: each.opname for each in dis.get_instructions(code)}


class Held(Protocol):
    """The range of an exception handler (`dis.Bytecode.exception_entries`, 3.11)."""

    start: int
    end: int
    target: int


def left_out_of_a_try(code: CodeType) -> list[str]:
    """The places in `code`, and in functions defined in it, where a jump leads back into a `try`
    (or `with`) that doesn't contain the jump itself, according to CPython's exception table."""
    found = [
        place
        for inner in code.co_consts
        if isinstance(inner, CodeType)
        for place in left_out_of_a_try(inner)
    ]
    bytecode = dis.Bytecode(code)
    table: list[Held] = getattr(bytecode, "exception_entries")
    names = {each.offset: each.opname for each in bytecode}

    def handlers(at: int) -> set[int]:
        """The handlers of an exception raised at `at`, from the innermost outwards."""
        seen: set[int] = set()
        while to := {each.target for each in table if each.start <= at < each.end} - seen:
            (at,) = to
            seen.add(at)
        # The others restore a comprehension's variable, and the like.
        return {each for each in seen if names[each] == "PUSH_EXC_INFO"}

    for each in bytecode:
        if each.opname == "JUMP_BACKWARD" and handlers(each.argval) - handlers(each.offset):
            found.append(place(code, each.positions.lineno if each.positions else None))
    return found


def function(where: str) -> str:
    """The name of the function of a place."""
    return where.partition(":")[0]


def place(code: CodeType, number: int | None) -> str:
    line = linecache.getline(code.co_filename, number or 0)  # A generator's start has no number.
    return f"{code.co_name}: {line.strip()}"


def keyboard_interrupt() -> None:
    raise KeyboardInterrupt


class Interrupter:
    """Calls `handler` at the `at`th place of the package where a signal's handler may run; or, with
    `anywhere`, before the `at`th instruction, where perhaps only a trace function can raise."""

    def __init__(
        self,
        at: int,
        anywhere: bool = False,
        handler: Callable[[], None] = keyboard_interrupt,
    ) -> None:
        self.at = at
        self.handler = handler
        self.anywhere = anywhere
        self.count = 0
        self.where: str | None = None
        """The function and the line at which it was called."""
        self.returning = False
        """Whether it was before the return of that function."""
        self._before: dict[FrameType, int] = {}
        self._takes: FrameType | None = None
        """The function that has just taken the lock."""

    def trace(self, frame: FrameType, event: str, arg: object) -> TraceFunction | None:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self.step

    def step(self, frame: FrameType, event: str, arg: object) -> TraceFunction:
        if event == "return":
            self._before.pop(frame, None)
            if frame.f_code is TAKES:
                self._takes = frame.f_back
        if event != "opcode":
            return self.step
        before = self._before.get(frame)
        self._before[frame] = frame.f_lasti
        here = instructions(frame.f_code)[frame.f_lasti]
        behind = "RESUME" if before is None else instructions(frame.f_code)[before]
        if frame is self._takes:
            self._takes = None
            is_place = False
        elif self.anywhere:
            is_place = here != NOT_TAKEN
        elif behind.startswith(LOOKS_FIRST) or here.startswith(LOOKS_FIRST):
            is_place = here.startswith(LOOKS_FIRST)
        else:
            falls = behind.startswith("POP_JUMP") and frame.f_lasti - (before or 0) <= NEXT
            # A call that raised goes to its exception handler without checking for signals.
            is_place = behind.startswith(BOUNDARIES) and not falls and here != "PUSH_EXC_INFO"
        if is_place:
            if self.count == self.at:
                self._before.clear()
                self.where = place(frame.f_code, frame.f_lineno)
                self.returning = here.startswith("RETURN_")
                sys.settrace(None)
                self.handler()
            self.count += 1
        return self.step


class Printed(io.StringIO):
    """Hears what is printed on standard error."""

    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self.heard = heard

    def write(self, text: str) -> int:
        self.heard.append(text)
        return len(text)


@contextmanager
def complaints() -> Iterator[list[str]]:
    """The package's warnings (a descriptor closed twice, an unknown one), and what it prints: one
    that could not be unregistered."""
    heard = Complaints()
    logger = logging.getLogger("danga_raw")
    logger.addHandler(heard)
    logger.propagate = False
    try:
        with redirect_stderr(Printed(heard.heard)):
            yield heard.heard
    finally:
        # If a handler raised in the middle of logging, this thread still holds logging's lock: in a
        # later test, another thread that logs would wait for it for ever.
        lock = cast(threading.Lock, vars(logging)["_lock"])
        with suppress(RuntimeError):  # It isn't held any more.
            while True:
                lock.release()
        logger.removeHandler(heard)
        logger.propagate = True


MAY_TEAR = (
    "read",
    "__read_pushed_back",
    "write",
    "__write_new",
    "__write_queued",
    "__queue",
    "_size",
)
"""Functions in which an exception may come after a read(2) or write(2), or after taking a
pushed-back piece, but before the result is recorded. Then the connection is closed."""


def ending(story: Story, where: str | None) -> list[str]:
    """End a story, and report what is wrong."""
    wrong = story.ending()
    if story.torn and function(where or "") not in MAY_TEAR:
        wrong.append("a connection was closed without need")
    return wrong


def interrupted(at: int, backend: str, anywhere: bool = False) -> tuple[Interrupter, list[str]]:
    """Tell the story, interrupted at the `at`th place, and report what is wrong."""
    interrupter = Interrupter(at, anywhere)
    with complaints() as heard:
        story = Story(backend)
        sys.settrace(interrupter.trace)
        try:
            story.go_on()
            if interrupter.where is not None:
                story.complaints.append("the exception was swallowed")
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        # Just outside a `with`, only a trace function can raise.
        left = [each for each in lock_left_taken() if not anywhere]
        return interrupter, ending(story, interrupter.where) + left + heard


def closes(number: int) -> Callable[[Story], None]:
    """A handler that closes one of the objects."""

    def close(story: Story) -> None:
        for each in story.objects[number : number + 1]:
            each.close("by a signal's handler")

    return close


def adds_a_timer(story: Story) -> None:
    if not story.over:
        story.due.add("handler's timer")
        story.loop.add_timer(-1, lambda: story.fire("handler's timer"))


def handled(
    at: int, backend: str, handler: Callable[[Story], None]
) -> tuple[Interrupter, list[str]]:
    """Tell the story with a signal at the `at`th place, and report what is wrong."""
    interrupter = Interrupter(at, handler=lambda: handler(story))
    with complaints() as heard:
        story = Story(backend)
        sys.settrace(interrupter.trace)
        try:
            story.go_on()
        except Exception as error:
            story.complaints.append(repr(error))
        finally:
            sys.settrace(None)
        return interrupter, story.ending() + heard


def interrupted_by_signal(seconds: float, backend: str) -> tuple[str, list[str]]:
    """Tell the story, interrupted by a signal `seconds` after its start. The place of the
    interruption, empty if it was outside the package, and what is wrong."""
    where = ""
    with complaints() as heard:
        story = Story(backend)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            story.go_on()
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt as error:
            at = error.__traceback__
            while at is not None:
                code = at.tb_frame.f_code
                where = place(code, at.tb_lineno) if code.co_filename.startswith(PACKAGE) else ""
                at = at.tb_next
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return where, ending(story, where) + lock_left_taken() + heard
