"""Every call of the package fails once: `python -m tests.every_call_fails [--jobs 2] [--sample N]`.

Each scenario, and each server with its clients, is run once under strace to learn which calls the
package makes. Then, for each of these calls and each error that its manual page lists, it is run
again with that one call failing (`strace -e inject=CALL:error=E:when=N`). The result must be one of
the outcomes in `ERRORS`, with the loop intact and every other connection alive. The parts that
wake, accept and connect have their own stories (`failing_parts.py`), whose calls fail behind the
package's door.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Final

from benchmarks.progress import Progress
from tests import failing_parts
from tests.announced import ANNOUNCEMENTS
from tests.clients import PATIENCE, read_answer
from tests.failing_parts import RAISED, WARNED, Outcomes, each_of
from tests.strace import Call, StraceError, note, parse

ROOT: Final = Path(__file__).parent.parent
EXAMPLES: Final = ROOT / "examples"
SERVERS: Final = ("ddlockd", "echo", "httpd")
SCENARIOS: Final = Path(__file__).parent / "scenarios"
NAMES: Final = sorted(path.stem for path in SCENARIOS.glob("*.py") if path.stem != "story")

TRACED: Final = (
    "epoll_create1 epoll_ctl epoll_wait epoll_pwait read write setsockopt close socketpair socket "
    "accept accept4 pipe pipe2 dup open openat"
).split()

_BIRTHS: Final = frozenset("socketpair socket accept accept4 pipe pipe2 dup".split())

TRIES: Final = 3
"""On a busy machine, a story may seem to wait in vain, and be cut short before the call that was to
fail."""

CLOSES_BEHIND_THE_BACK: Final = frozenset({"dead_descriptor", "dead_descriptor_watched"})
"""Stories that close a descriptor behind its socket's back. If one is cut short, the socket's
close(2) may hit a reused number, as with any Python socket."""

MORE_WAITS: Final = 20
"""This many waits more than without a failure are a spin: a pausing server makes one or two a
second."""

MOST_FRUITLESS_WAITS: Final = 3
"""More than this many waits in a row that report events and are followed by no call are a spin."""


# --- what may come of which error -----------------------------------------------------------------

RETRIED: Final = "retried"
"""The call is repeated: by Python at once (EINTR), or later by the loop."""
CLOSED: Final = "closed"
"""The connection concerned is closed."""
TOLD: Final = "told"
"""`read` returns None to its caller, who should close."""
IGNORED: Final = "ignored"
"""This kind of descriptor can't be corked, so nothing is wrong."""

ERRORS: Final[dict[str, Outcomes]] = {
    # epoll_ctl(2), ERRORS. The caller is told of a registration that fails. One that can't be
    # removed belongs to an object that is being closed, or to an other fd that is being replaced.
    "epoll_ctl ADD": each_of("EBADF EEXIST EINVAL ELOOP ENOMEM ENOSPC EPERM", RAISED),
    "epoll_ctl MOD": each_of("EBADF EINVAL ENOENT ENOMEM", RAISED),
    "epoll_ctl DEL": each_of("EBADF EINVAL ENOENT ENOMEM", WARNED, IGNORED),
    # epoll_wait(2), ERRORS.
    "epoll_wait": each_of("EBADF EFAULT EINVAL", RAISED) | each_of("EINTR", RETRIED),
    # read(2), ERRORS (but EISDIR); recv(2); tcp(7). os.read retries after EINTR (PEP 475).
    "read": each_of(
        "EBADF EFAULT EINVAL EIO ECONNREFUSED ECONNRESET ENOMEM ENOTCONN ETIMEDOUT", TOLD
    )
    | each_of("EAGAIN", RETRIED, CLOSED)
    | each_of("EINTR", RETRIED),
    # write(2), ERRORS; send(2); tcp(7). os.write retries after EINTR.
    "write": each_of(
        "EBADF EDESTADDRREQ EDQUOT EFAULT EFBIG EINVAL EIO ENOSPC EPERM EPIPE ECONNRESET ENOBUFS "
        "ENOMEM ENOTCONN ETIMEDOUT",
        CLOSED,
    )
    | each_of("EAGAIN", RETRIED, CLOSED)
    | each_of("EINTR", RETRIED),
    # setsockopt(2), ERRORS, and EOPNOTSUPP of a UNIX socket. Within `close` it is a warning.
    "setsockopt": each_of("EINVAL ENOPROTOOPT ENOTSOCK EOPNOTSUPP", IGNORED)
    | each_of("EBADF", CLOSED, WARNED)
    | each_of("EFAULT", RAISED, WARNED),
    # close(2), ERRORS. The descriptor is closed all the same, so it is never closed again.
    "close": each_of("EBADF EDQUOT EINTR EIO ENOSPC", WARNED),
    # accept4(2), ERRORS and "Error handling". The example servers make it themselves.
    "accept4": each_of(
        "EAGAIN EBADF ECONNABORTED EFAULT EINTR EINVAL EMFILE ENFILE ENOBUFS ENOMEM ENOTSOCK "
        "EOPNOTSUPP EPERM EPROTO ENETDOWN ENOPROTOOPT EHOSTDOWN ENONET EHOSTUNREACH ENETUNREACH",
        RETRIED,
    ),
}
"""Each call, each error that its manual page lists for it, and the outcomes it may have."""


# --- which calls are the package's ----------------------------------------------------------------


@dataclass(frozen=True)
class Own:
    """One call of the package in a run."""

    kind: str
    """As in `ERRORS`."""
    number: int
    """Its number among all calls of that name, as strace counts them."""
    fd: str
    """Its descriptor, named by the order in which they were made."""
    at: int
    """Its position in the run."""
    call: Call


def own_calls(calls: Sequence[Call], accepts: bool = False) -> list[Own]:
    """The package's calls: those on descriptors made in this trace, unless the program announced
    them as its own. With `accepts`, also those of accept4, which the servers make."""
    counts: Counter[str] = Counter()
    names: dict[int, str] = {}
    borrowed: set[int] = set()
    births = 0
    found: list[Own] = []
    theirs = False
    for at, call in enumerate(calls):
        counts[call.name] += 1
        mine, theirs = not theirs, call.name == "write" and call.fd == ANNOUNCEMENTS
        if theirs:
            continue
        if call.name in ("open", "openat") and call.result is not None:
            borrowed.add(call.result)
        elif call.name == "close" and call.fd in borrowed:
            borrowed.discard(call.fd)
            continue
        elif call.name == "epoll_create1" and call.result is not None:
            names[call.result] = "epoll"
        kind = kind_of(call)
        known = call.fd in names or (accepts and kind.startswith("epoll"))
        if kind in ERRORS and mine and (accepts if kind == "accept4" else known):
            about = int(call.args[2]) if call.name == "epoll_ctl" else call.fd
            if about is not None and about not in borrowed:
                name = names.get(about, str(about))
                found.append(Own(kind, counts[call.name], name, at, call))
        if call.name in _BIRTHS:
            for fd in call.descriptors:
                births += 1
                names[fd] = f"fd{births}"
    return found


def kind_of(call: Call) -> str:
    """The call's name in `ERRORS`; empty if it has none."""
    match call.name:
        case "epoll_ctl":
            return f"epoll_ctl {call.args[1].removeprefix('EPOLL_CTL_')}"
        case "epoll_pwait":
            return "epoll_wait"
        case "setsockopt":
            return "setsockopt" if call.args[2] == "TCP_CORK" else ""
        case "accept":
            return "accept4"
        case name:
            return name


# --- what came of it ------------------------------------------------------------------------------


class Fault(Exception):
    """An outcome that isn't allowed."""


def has_outcome(outcome: str, failed: Own, own: Sequence[Own], calls: Sequence[Call]) -> bool:
    """True if a call that failed had this outcome, as the calls after it show."""
    behind = [each for each in own if each.at > failed.at and each.fd == failed.fd]
    notes = [text for call in calls[failed.at + 1 :] if (text := note(call)) is not None]
    match outcome:
        case "retried" if failed.call.errno == "EINTR" and failed.kind in ("read", "write"):
            again = calls[failed.at + 1]
            return (again.name, again.fd) == (failed.call.name, failed.call.fd)
        case "retried" if failed.kind == "write":
            # Or it waits its turn: the object is watched, or the story has ended the watch.
            return any(each.kind in ("write", "epoll_ctl MOD") for each in behind) or any(
                each.kind == "epoll_ctl MOD" and "EPOLLOUT" in each.call.args[3]
                for each in own
                if each.fd == failed.fd
            )
        case "retried":
            return any(each.kind == failed.kind for each in behind)
        case "closed":
            return any(each.kind in ("epoll_ctl DEL", "close") for each in behind)
        case "told":
            return any(text.endswith((" read end", " told end")) for text in notes)
        case "raised":
            name = failed.kind.partition(" ")[0]
            # The first two are notes of scenarios that catch it themselves.
            return any(re.match(rf"raised$|died yes$|raised .*\b{name}\(", text) for text in notes)
        case "warned":
            name = failed.kind.partition(" ")[0]
            said = [c.args[1] for c in calls[failed.at :] if c.name == "write" and c.fd == 2]
            return any(re.search(rf"{name}|^\"fd \d+: ", text) for text in said)
        case _:
            return True


def spin(calls: Iterable[Call]) -> bool:
    """True if waits keep reporting events without any call in between."""
    in_a_row = 0
    for call in calls:
        if call.name in ("epoll_wait", "epoll_pwait"):
            in_a_row = in_a_row + 1 if call.result else 0
            if in_a_row > MOST_FRUITLESS_WAITS:
                return True
        else:
            in_a_row = 0
    return False


def ends(own: Sequence[Own]) -> Counter[tuple[str, str]]:
    """How often each descriptor was closed, or removed from the poller."""
    return Counter(
        (each.kind, each.fd)
        for each in own
        if each.kind in ("epoll_ctl DEL", "close") and not each.call.injected
    )


# --- the runs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run: a story, which of its calls is to fail, and how."""

    story: str
    own: Own
    error: str

    def __str__(self) -> str:
        own = self.own
        return f"{self.story}: {own.kind} {own.number} on {own.fd} fails: {self.error}"

    @property
    def injection(self) -> str:
        return f"{self.own.call.name}:error={self.error}:when={self.own.number}"


@dataclass(frozen=True)
class Told:
    """The calls of a story that was told."""

    calls: Sequence[Call]
    own: Sequence[Own]


class Stage:
    """A process that tells one scenario after another, each in a child process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.failed_story"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if "DANGA_RAW" not in name},
        )

    def tell(self, name: str, inject: Sequence[str] = ()) -> Told:
        """Tell a scenario, with strace's injections, and check its loop afterwards."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{SCENARIOS / name}.py\n".encode())
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        with tempfile.NamedTemporaryFile("r", errors="replace") as trace:
            command = ["strace", "-o", trace.name, "-s", "120", "-p", str(pid)]
            command += ["-e", "trace=" + ",".join(f"?{call}" for call in TRACED)]
            command += [word for each in inject for word in ("-e", f"inject={each}")]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
                assert strace.stderr is not None
                attached = strace.stderr.readline()
                try:
                    os.kill(pid, signal.SIGUSR1 if "attached" in attached else signal.SIGKILL)
                    strace.communicate(timeout=PATIENCE)
                except subprocess.TimeoutExpired:
                    os.kill(pid, signal.SIGKILL)
            lines = trace.read().splitlines()
        if not lines or lines[-1] != "+++ exited with 0 +++":
            tail = "\n".join(lines[-15:])
            raise StraceError(f"{name} failed, or did not end in time: {attached}{tail}")
        calls = list(parse(lines))
        return Told(calls, own_calls(calls))

    def close(self) -> None:
        self._process.communicate()


class ServerStage:
    """An example server and its clients. One process for many runs, since it must survive them."""

    def __init__(self) -> None:
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        self._folder = tempfile.TemporaryDirectory()
        Path(self._folder.name, "hello.txt").write_bytes(BODY)
        self.lost = 0
        """How many connections the last run lost."""

    def _start(self, name: str) -> None:
        server = subprocess.Popen(
            [sys.executable, *COMMANDS[name], *([self._folder.name] if name == "httpd" else [])],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert server.stdout is not None
        self._servers[name] = server
        self._ports[name] = int(server.stdout.readline().rstrip(b"/\n").rpartition(b":")[2])

    def tell(self, name: str, inject: Sequence[str] = (), rounds: int = 1) -> Told:
        """`rounds` conversations with a server, with strace's injections."""
        if name not in self._servers:
            self._start(name)
        server = self._servers[name]
        with tempfile.NamedTemporaryFile("r", errors="replace") as trace:
            command = ["strace", "-o", trace.name, "-s", "120", "-p", str(server.pid)]
            command += ["-e", "trace=" + ",".join(f"?{call}" for call in TRACED)]
            command += [word for each in inject for word in ("-e", f"inject={each}")]
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
                assert strace.stderr is not None
                strace.stderr.readline()
                try:
                    talks = [converse(self._ports[name], TALKS[name]) for _ in range(rounds)]
                    self.lost = sum(talks)
                    fault = ""
                except OSError as error:
                    fault = f"a connection made afterwards is not served: {error!r}"
                strace.send_signal(signal.SIGINT)
                strace.communicate()
            lines = trace.read().splitlines()
        lines = [line for line in lines if not line.endswith("<detached ...>")]
        if fault or server.poll() is not None:
            self._end(name)
            raise StraceError("\n".join([fault, f"exit status {server.poll()}", *lines[-15:]]))
        calls = list(parse(lines))
        return Told(calls, own_calls(calls, accepts=True))

    def _end(self, name: str) -> None:
        server = self._servers.pop(name)
        server.kill()
        server.communicate()

    def close(self) -> None:
        for name in list(self._servers):
            self._end(name)
        self._folder.cleanup()


COMMANDS: Final = {
    "ddlockd": (str(EXAMPLES / "ddlockd.py"), "0"),
    "echo": ("-m", "danga_raw", "echo"),
    "httpd": (str(EXAMPLES / "httpd.py"), "--port", "0"),
}

BODY: Final = bytes(150_000)
"""Two pieces for httpd, both written at once, so that its calls are the same in every run."""


def ask_for_file(client: socket.socket) -> bool:
    client.sendall(b"GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = read_answer(client)
    return answer.status == 200 and answer.body == BODY


def ask_for_lock(client: socket.socket) -> bool:
    for line in (b"noop", b"trylock lock=a", b"releaselock lock=a"):
        client.sendall(line + b"\r\n")
        answer = b""
        while not answer.endswith(b"\n"):
            piece = client.recv(100)
            if not piece:
                return False
            answer += piece
        if not answer.startswith(b"OK"):
            return False
    return True


def ask_for_echo(client: socket.socket) -> bool:
    client.sendall(b"hello")
    answer = b""
    while len(answer) < 5 and (piece := client.recv(100)):
        answer += piece
    return answer == b"hello"


TALKS: Final = {"ddlockd": ask_for_lock, "echo": ask_for_echo, "httpd": ask_for_file}


def converse(port: int, ask: Callable[[socket.socket], bool]) -> int:
    """Several clients in turn, one of them connected all the time; how many were lost. Raises
    `OSError` if the next client after a loss is not served."""
    lost: set[socket.socket] = set()
    clients: list[socket.socket] = []

    def turn(client: socket.socket) -> None:
        try:
            if client not in lost and not ask(client):
                lost.add(client)
        except (OSError, AssertionError):
            lost.add(client)

    try:
        for _ in range(4):
            client = socket.create_connection(("127.0.0.1", port), PATIENCE)
            clients.append(client)
            turn(client)
            turn(clients[0])
            if client is not clients[0]:
                hang_up(client)
        if clients[-1] in lost:
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as last:
                if not ask(last):
                    raise OSError("hung up")
        hang_up(clients[0])
    finally:
        for client in clients:
            client.close()
    return len(lost)


def hang_up(client: socket.socket) -> None:
    """Close it after the server has, so that the trace has the server's close too."""
    with client, suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        # It takes longer only if the server's close(2) is the call that fails.
        client.settimeout(1)
        client.recv(1)


def length(told: Told) -> int:
    """Where the story itself ends, and the check of the loop begins."""
    marks = ("told", "waits", "raised ", "derailed")
    for at, call in enumerate(told.calls):
        text = note(call)
        if text is not None and text.startswith(marks) and text != "raised":
            return at
    raise StraceError("the story has no end")


def check(run: Run, stage: Stage, clean: Told) -> str:
    """The outcome of a run. Raises `Fault` for one that isn't allowed."""
    for _ in range(TRIES):
        try:
            told = stage.tell(run.story, [run.injection])
        except StraceError as error:
            raise Fault(str(error)) from None
        failed = [each for each in told.own if each.call.injected]
        if [each.number for each in failed] == [run.own.number]:
            break
    else:
        raise Fault(f"another call was hit: {[each.call.raw for each in failed]}")
    notes = [text for call in told.calls if (text := note(call)) is not None]
    if faults := [text for text in notes if text.startswith("fault")]:
        raise Fault("; ".join(faults))
    if "intact" not in notes:
        raise Fault("the loop was not proved")
    if spin(told.calls):
        raise Fault("waits that report events of which nothing comes")
    more = ends(told.own) - ends(clean.own)
    others = {fd for _, fd in more} - {failed[0].fd}
    if failed[0].kind == "epoll_ctl DEL":
        # An entry that could not be removed may still be in the epoll, which is replaced.
        others.discard("epoll")
    if others and run.story not in CLOSES_BEHIND_THE_BACK:
        raise Fault(f"other connections were closed: {others}")
    # Every epoll has the same name here, and one with entries that can't be removed is replaced.
    pollers = sum(call.name == "epoll_create1" for call in told.calls)
    for (kind, fd), count in ends(told.own).items():
        if kind == "close" and count > (pollers if fd == "epoll" else 1):
            raise Fault("a descriptor was closed twice")
    for outcome in ERRORS[run.own.kind][run.error]:
        if has_outcome(outcome, failed[0], told.own, told.calls):
            return outcome
    raise Fault(f"it was not {' or '.join(ERRORS[run.own.kind][run.error])}")


def check_server(run: Run, stage: ServerStage, clean: Told) -> str:
    """The outcome of a server's run. Raises `Fault` for one that isn't allowed."""
    # How many waits a conversation takes depends on how many events arrive together. If there were
    # too few for the failure, try another conversation; likewise if one went wrong, as on a machine
    # that stalls for a second, where a client hangs up in the middle.
    for rounds in range(1, TRIES + 1):
        try:
            told = stage.tell(run.story, [run.injection], rounds)
        except StraceError as error:
            if rounds == 1:
                continue
            raise Fault(str(error)) from None
        failed = [each for each in told.own if each.call.injected]
        # The requirements are the same whichever call of the server had that number this time.
        if [each.number for each in failed] == [run.own.number]:
            break
    else:
        raise Fault(f"another call was hit: {[each.call.raw for each in failed]}")
    if stage.lost > 1:
        raise Fault(f"{stage.lost} connections were lost")
    waits = [sum(each.kind == "epoll_wait" for each in one.own) for one in (clean, told)]
    if spin(told.calls) or waits[1] > rounds * waits[0] + MORE_WAITS:
        raise Fault(f"a spin: {waits[1]} waits instead of {waits[0]}")
    return CLOSED if stage.lost else "served"


@contextmanager
def stages(count: int) -> Iterator[Queue[Stage]]:
    """`count` stages, to be taken and put back."""
    free: Queue[Stage] = Queue()
    made = [Stage() for _ in range(count)]
    try:
        for stage in made:
            free.put(stage)
        yield free
    finally:
        for stage in made:
            stage.close()


def clean_runs(names: Iterable[str]) -> dict[str, Told]:
    """Each scenario and each server, without a failure."""
    told: dict[str, Told] = {}
    with stages(1) as free, closing(ServerStage()) as servers:
        stage = free.get()
        for name in names:
            told[name] = (servers if name in SERVERS else stage).tell(name)
    return told


def runs_of(clean: dict[str, Told]) -> list[Run]:
    """All possible runs."""
    return [
        Run(name, own, error)
        for name, told in clean.items()
        for own in told.own
        if name in SERVERS or own.at < length(told)
        for error in ERRORS[own.kind]
        if error != own.call.errno
    ]


def outcomes(
    runs: Sequence[Run], clean: dict[str, Told], jobs: int
) -> Iterator[tuple[Run, str, str]]:
    """Each run with its outcome, or with an empty one and what was wrong."""

    with stages(jobs) as free, ThreadPoolExecutor(jobs) as pool:

        def one(run: Run) -> tuple[Run, str, str]:
            stage = free.get()
            try:
                return run, check(run, stage, clean[run.story]), ""
            except Fault as fault:
                return run, "", str(fault)
            finally:
                free.put(stage)

        yield from pool.map(one, [run for run in runs if run.story not in SERVERS])

    with closing(ServerStage()) as servers:
        for run in runs:
            if run.story in SERVERS:
                try:
                    yield run, check_server(run, servers, clean[run.story]), ""
                except Fault as fault:
                    yield run, "", str(fault)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.every_call_fails", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sample", type=int, default=0, help="only so many runs, chosen by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("stories", nargs="*", metavar="STORY", default=[*NAMES, *SERVERS, "parts"])
    options = parser.parse_args()
    if unknown := set(options.stories) - {*NAMES, *SERVERS, "parts"}:
        parser.error(f"no story {min(unknown)!r}")
    clean = clean_runs(name for name in options.stories if name != "parts")
    runs = runs_of(clean)
    if options.sample:
        runs = random.Random(options.seed).sample(runs, min(options.sample, len(runs)))
    progress = Progress()
    progress.begin(len(runs))
    totals: Counter[tuple[str, str, str]] = Counter()
    faults = 0
    for run, outcome, fault in outcomes(runs, clean, options.jobs):
        if progress.live or progress.done % 500 == 0:
            progress.step(run.story)
        else:
            progress.done += 1
        where = "server" if run.story in SERVERS else ""
        totals[where, run.own.kind, outcome or "FAULT"] += 1
        if fault:
            faults += 1
            print(f"{run}\n    {fault[:1000]}", flush=True)
    progress.end()
    parts = failing_parts.runs() if "parts" in options.stories else []
    for part in parts:
        outcome, wrong = failing_parts.failed(part)
        totals["part", part.kind, "FAULT" if wrong else outcome] += 1
        if wrong:
            faults += 1
            print(f"{part}\n    {wrong}", flush=True)
    for (where, kind, outcome), count in sorted(totals.items()):
        print(f"{where:7}{kind:14} {outcome:8} {count:6}")
    print(f"{len(runs) + len(parts)} runs, {faults} faults")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
