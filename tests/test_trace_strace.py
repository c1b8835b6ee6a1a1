"""The package's own trace against strace's, of one and the same run, line for line.

From strace's text is dropped what the package did not make, by three rules and no look at the other
text: what came before the trace was on; what the program announced as its own (`announced.py`); and
what is about descriptors that no loop watches. The rest must be the package's lines. Two things are
put in the package's words, both stated in `in_its_words`; one is left out, stated in `retried`.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from danga_raw._strace import CALLS
from tests.announced import ANNOUNCEMENTS
from tests.clients import PATIENCE, read_to_end
from tests.needs import REQUIRED

pytestmark = pytest.mark.needs("strace")

ROOT = Path(__file__).parent.parent
SCENARIOS = Path(__file__).parent / "scenarios"
NAMES = sorted(path.stem for path in SCENARIOS.glob("*.pl"))
TRACED = ",".join(f"?{name}" for name, _ in CALLS.values() if name not in ("kqueue", "kevent"))

compared: dict[str, int] = {}
"""How many lines of each kind of run were the same."""


# --- the rules ----------------------------------------------------------------------------------

_CALL = re.compile(r"(\w+)\((-?\d+)?")
_ADDED = re.compile(r"epoll_ctl\(\d+, EPOLL_CTL_ADD, (\d+), .* = 0$")
_CLOSED = re.compile(r"close\((\d+)\) += 0$")
_MODE = re.compile(r'newfstatat\((\d+), "", \{st_mode=(S_IFSOCK|S_IFIFO|S_IFCHR|0)')


def packages_lines(text: str) -> list[tuple[int, str]]:
    """The package's calls in a trace of strace's: where they stand, and their lines."""
    pollers: dict[int, int | None] = {}  # by number: where its creation stands, until it is used
    watched: set[int] = set()
    dead: set[int] = set()  # closed by the program, of which a loop need not know
    kept: list[tuple[int, str]] = []
    lines = enumerate(text.splitlines())
    for _, line in lines:
        if re.match(r"fcntl\(\d+, F_DUPFD_CLOEXEC, \d+\)", line):
            break  # The trace has its descriptor, and goes on.
    for at, line in lines:
        match = _CALL.match(line)
        if match is None or line.endswith("= ?"):
            continue  # A signal, an end, or a call that the end cut off.
        name, fd = match[1], int(match[2] or -1)
        line = in_its_words(line)
        if name == "write" and fd == ANNOUNCEMENTS:
            if closed := _CLOSED.match(next(lines, (0, ""))[1]):
                watched.discard(int(closed[1]))
                dead.add(int(closed[1]))
        elif name in ("epoll_create1", "poll", "getrusage"):
            kept.append((at, line))
            if name == "epoll_create1" and (made := re.search(r"= (\d+)$", line)):
                pollers[int(made[1])] = len(kept) - 1
        elif name in ("epoll_ctl", "epoll_wait"):
            if fd in pollers:
                kept.append((at, line))
                pollers[fd] = None
            if added := _ADDED.match(line):
                watched.add(int(added[1]))
        elif name == "newfstatat":
            # The poll backend's look at what it is to watch, which is no regular file.
            if mode := _MODE.match(line):
                kept.append((at, line))
                watched.add(int(mode[1]))
        elif name == "setsockopt":
            if (fd in watched or fd in dead) and "TCP_CORK" in line:
                kept.append((at, line))
        elif name == "close" and fd in pollers:
            created = pollers.pop(fd)
            if created is None:
                kept.append((at, line))
            else:
                del kept[created]  # Lib/selectors.py makes one at its import, to see if it can.
        elif fd in watched or fd in dead and "= -1 EBADF (" in line:
            if not retried(line):
                kept.append((at, line))
            if name == "close":
                watched.discard(fd)
    return kept


def in_its_words(line: str) -> str:
    """strace says who failed a call, and what poll(2) answers inside when it is interrupted; the
    program sees an error, and EINTR."""
    line = line.removesuffix(" (INJECTED)")
    return line.replace(
        "= ? ERESTART_RESTARTBLOCK (Interrupted by signal)", "= -1 EINTR (Interrupted system call)"
    )


def retried(line: str) -> bool:
    """os.read and os.write make a call again that was interrupted (PEP 475), and tell nobody."""
    return line.startswith(("read(", "write(")) and "= -1 EINTR (" in line


_UNKNOWN = re.compile(r'^((?:read|newfstatat|getpeername|getsockname)\(\d+, (?:"", )?)0x[0-9a-f.]+')


def addressless(line: str) -> str:
    """An address in a buffer that Python made: all that may differ, and the column behind it."""
    if _UNKNOWN.match(line):
        line = re.sub(r" +=", " =", _UNKNOWN.sub(r"\1ADDRESS", line))
    return line


def compare(kind: str, theirs: str, own: str, ended: bool = False) -> list[str]:
    """Fail at the first line in which the two differ. A program that was `ended` may have been so
    between a call and its line; if it wasn't, the interpreter closes the sockets that are open when
    the package has made its last call."""
    expected = [addressless(line) for _, line in packages_lines(theirs)]
    found = [addressless(line) for line in own.splitlines()]
    for number, (here, there) in enumerate(zip(found, expected)):
        assert here == there, f"{kind}: line {number} of {len(found)} and {len(expected)}"
    missing, surplus = expected[len(found) :], found[len(expected) :]
    assert not surplus, f"{kind}: {surplus}"
    made = [line for line in missing if not (ended and line.startswith("close("))]
    assert len(made) <= ended, f"{kind}: {missing}"
    compared[kind] = compared.get(kind, 0) + len(found)
    return found


# --- running under both -------------------------------------------------------------------------


def command(folder: Path, argv: Sequence[str], inject: Sequence[str] = ()) -> list[str]:
    options = [word for expression in inject for word in ("-e", f"inject={expression}")]
    strace = ["strace", "-qq", "-o", str(folder / "theirs"), "-e", f"trace={TRACED}", *options]
    trace = [sys.executable, "-m", "danga_raw", "trace", "-o", str(folder / "own")]
    return [*strace, *trace, str(ROOT / "tests" / "announced.py"), *argv]


def environment(backend: str = "epoll") -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DANGA_RAW_")}
    # Where the reads of the interpreter are counted, it must make the same in every run.
    more = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    return {**kept, **more, "DANGA_RAW_BACKEND": backend}


def both(
    folder: Path, *argv: str, inject: Sequence[str] = (), backend: str = "epoll"
) -> tuple[str, str]:
    """strace's text and the package's of a program that ends by itself."""
    done = subprocess.run(
        command(folder, argv, inject),
        env=environment(backend),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    theirs, own = folder / "theirs", folder / "own"
    assert done.returncode == 0, done.stderr.decode()
    return theirs.read_text(), own.read_text()


@contextmanager
def served(folder: Path, backend: str, *argv: str) -> Iterator[int]:
    """The port of a server that runs under both, and is ended by SIGTERM."""
    with subprocess.Popen(
        command(folder, argv),
        env=environment(backend),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as strace:
        try:
            assert strace.stdout is not None
            greeting = strace.stdout.readline().strip().rstrip("/")
            assert greeting.startswith("listening on ")
            yield int(greeting.rpartition(":")[2])
            children = Path(f"/proc/{strace.pid}/task/{strace.pid}/children").read_text().split()
            os.kill(int(children[0]), signal.SIGTERM)
            strace.wait(PATIENCE)
        finally:
            if strace.poll() is None:
                os.killpg(strace.pid, signal.SIGKILL)


# --- what is run --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_is_traced_as_by_strace(name: str, tmp_path: Path) -> None:
    source = (SCENARIOS / f"{name}.pl").read_text()
    inject = re.findall(r"^# inject (\S+)$", source, re.MULTILINE)
    theirs, own = both(tmp_path, str(SCENARIOS / f"{name}.py"), inject=inject)
    lines = compare("scenarios", theirs, own)
    assert lines[0].startswith("epoll_create1(EPOLL_CLOEXEC)")


@pytest.mark.parametrize("name", NAMES if REQUIRED else NAMES[::3])
def test_a_scenario_on_poll_is_traced_as_by_strace(name: str, tmp_path: Path) -> None:
    source = (SCENARIOS / f"{name}.pl").read_text()
    inject = re.findall(r"^# inject epoll_wait:(\S+)$", source, re.MULTILINE)
    inject = [f"poll:{expression}" for expression in inject]
    theirs, own = both(tmp_path, str(SCENARIOS / f"{name}.py"), inject=inject, backend="poll")
    compare("scenarios on poll", theirs, own)


@pytest.mark.needs("ab", "curl")
@pytest.mark.parametrize("backend", ["epoll", "poll"])
def test_the_file_server_under_load_is_traced_as_by_strace(backend: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "small").write_bytes(b"a small file\n")
    (tree / "large").write_bytes(bytes(range(256)) * 4096)
    requests = "1200" if REQUIRED else "300"
    server = str(ROOT / "examples" / "httpd.py")
    with served(tmp_path, backend, server, "--port", "0", str(tree)) as port:
        url = f"http://127.0.0.1:{port}"
        for options in (["-k", "-c", "40"], ["-c", "8"]):
            load = ["ab", "-q", *options, "-n", requests, f"{url}/small"]
            subprocess.run(load, stdout=subprocess.DEVNULL, timeout=PATIENCE, check=True)
        curl = ["curl", "-s", f"{url}/large", f"{url}/none", "-I", f"{url}/small"]
        subprocess.run(curl, stdout=subprocess.DEVNULL, timeout=PATIENCE, check=True)
    theirs, own = (tmp_path / name for name in ("theirs", "own"))
    lines = compare(f"httpd on {backend}", theirs.read_text(), own.read_text(), ended=True)
    assert any(line.startswith("write(") for line in lines)


@pytest.mark.parametrize("backend", ["epoll", "poll"])
def test_the_lock_server_under_load_is_traced_as_by_strace(backend: str, tmp_path: Path) -> None:
    with served(tmp_path, backend, str(ROOT / "examples" / "ddlockd.py"), "0") as port:
        for turn in range(40 if REQUIRED else 10):
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                for number in range(5):
                    lock = f"lock={turn}-{number}"
                    lines = f"trylock {lock}\r\n\u00e9 \x01\r\nreleaselock {lock}\r\n"
                    client.sendall(lines.encode())
                client.shutdown(socket.SHUT_WR)
                assert read_to_end(client).count(b"OK") == 10
    theirs, own = (tmp_path / name for name in ("theirs", "own"))
    compare(f"ddlockd on {backend}", theirs.read_text(), own.read_text(), ended=True)


PUMP = """
import os, socket, sys
from danga_raw import Loop, Socket

class Echo(Socket):
    def event_read(self):
        data = self.read(100)
        if data is None:
            self.close("end")
        elif data:
            self.write(data)

    def event_err(self):
        self.close("error")

    event_hup = event_err

with Loop() as loop:
    pairs = [socket.socketpair() for _ in range(20)]
    for near, far in pairs:
        near.setblocking(False)
        far.setblocking(False)
        try:
            Echo(near, loop).watch_read(True)
        except OSError as error:
            sys.stderr.write(f"{error}\\n")
    rounds = 0

    def again(*_):
        global rounds
        for near, far in pairs:
            try:
                far.send(b"round %d" % rounds)
                far.recv(100)
            except OSError:
                pass
        rounds += 1
        return rounds < int(sys.argv[1]) and loop.watched_sockets

    loop.set_post_loop_callback(again)
    again()
    try:
        loop.run()
    except OSError as error:
        sys.stderr.write(f"{error}\\n")
    for obj in list(loop.descriptor_map.values()):
        obj.tcp_cork(True)
        obj.as_string()
        obj.close()
os._exit(0)
"""
"""Echoes what comes over 20 pairs of sockets; the rounds are the one argument."""

FAILURES = [
    *((name, error) for name in ("epoll_wait", "poll") for error in ("EINTR", "ENOMEM", "EBADF")),
    *(("read", error) for error in ("EINTR", "EAGAIN", "ECONNRESET", "ENOMEM")),
    *(("write", error) for error in ("EINTR", "EAGAIN", "ECONNRESET", "ENOMEM", "EPIPE")),
    *(("epoll_ctl", error) for error in ("ENOMEM", "ENOSPC")),
    ("close", "EIO"),
    ("setsockopt", "ENOPROTOOPT"),
]


@pytest.mark.parametrize(("name", "error"), FAILURES)
def test_a_failing_call_is_traced_as_by_strace(name: str, error: str, tmp_path: Path) -> None:
    pump = tmp_path / "pump.py"
    pump.write_text(PUMP)
    backend = "poll" if name == "poll" else "epoll"
    calm, own = both(tmp_path, str(pump), "5", backend=backend)
    compare("undisturbed", calm, own)
    lines = calm.splitlines()
    places = [
        sum(other.startswith(f"{name}(") for other in lines[: at + 1])
        for at, line in packages_lines(calm)
        if line.startswith(f"{name}(")
    ]
    for place in {places[0], places[len(places) // 2], places[-1]} if REQUIRED else places[:1]:
        inject = f"{name}:error={error}:when={place}"
        theirs, own = both(tmp_path, str(pump), "5", inject=[inject], backend=backend)
        assert theirs.count("(INJECTED)") == 1
        found = compare("failures", theirs, own)
        seen = any(f"= -1 {error} (" in line for line in found if line.startswith(f"{name}("))
        assert seen is not (error == "EINTR" and name in ("read", "write"))


FORMS = """
import ctypes, os, resource, socket, sys, tempfile
from danga_raw._epoll import EVENT, epoll_event
from danga_raw._libc import libc
from danga_raw._poll import pollfd

epfd = libc.epoll_create1(os.O_CLOEXEC)
near, far = socket.socketpair()
fd = near.fileno()
def control(op, fd, mask):
    return libc.epoll_ctl(epfd, op, fd, EVENT.pack(mask, fd + (9 << 32)))
control(1, fd, 0)
for bit in range(32):
    control(3, fd, 1 << bit)
for mask in (0xFFFFFFFF, 0x800, 0x801):
    control(3, fd, mask)
control(9, fd, 1)
control(2, fd, 1)
control(2, fd, 1)
control(1, fd, 0x38)
for mask in [*(1 << bit for bit in range(16)), 0xFFFF, 0x4800, 0]:
    table = (pollfd * 1)(pollfd(fd, ctypes.c_short(mask).value, 0))
    libc.poll(ctypes.byref(table), ctypes.c_ulong(1), 0)
libc.poll(ctypes.byref(table), ctypes.c_ulong(0), 1)
for first in range(256):
    for then in (b"", b"1", b"8", b"x"):
        libc.write(fd, bytes([first]) + then)
        far.recv(9)
for length in (31, 32, 33, 34, 5000):
    for byte in (b"a", bytes(1), bytes([9])):
        libc.write(fd, byte * length)
        far.recv(9999)
        far.send(byte * length)
        libc.read(fd, 9999)
libc.write(fd, bytes(32) + b"7")
for value in (0, 1, 7, -1):
    libc.setsockopt(fd, 6, 3, ctypes.byref(ctypes.c_int(value)), 4)
unbound, bound = (socket.socket(socket.AF_UNIX) for _ in range(2))
abstract, longest = (socket.socket(socket.AF_UNIX) for _ in range(2))
folder = tempfile.mkdtemp(dir="/tmp")
os.chdir(folder)
bound.bind(folder + "/a \\n\\x01" + 50 * "1")
abstract.bind(b"\\0abs\\x01" + 50 * b"2")
longest.bind(107 * "z")
listener, listener6 = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET6)
client = socket.create_connection(listener.getsockname())
for sock in (near, unbound, bound, abstract, longest, listener, listener6, client):
    control(1, sock.fileno(), 0x38)
    for ask in (libc.getsockname, libc.getpeername):
        try:
            ask(sock)
        except OSError:
            pass
for name in os.listdir("."):
    os.unlink(name)
os.rmdir(folder)
null = os.open("/dev/null", os.O_RDWR)
reader, writer = os.pipe()
terminal, other_end = os.openpty()
for other in (fd, null, reader, terminal, other_end, os.eventfd(0) if hasattr(os, "eventfd") else 0):
    libc.fstat(other)
libc.getrusage(resource.RUSAGE_SELF)
events = (epoll_event * 3)()
far.send(b"x")
libc.epoll_wait(epfd, ctypes.byref(events), 3, 0xFFFFFFFF)
libc.epoll_wait(epfd, ctypes.byref(events), 0, 0)
libc.close(near.detach())
libc.close(epfd)
os._exit(0)
"""
"""Every flag, byte and kind of address, by the door's own functions."""


READY = """
import os, socket
from danga_raw import Loop
from danga_raw._poll import POLLIN, POLLOUT, Poll
poll = Poll()
near, far = socket.socketpair()
far.send(b"x")
for n in range(34):
    os.dup2(near.fileno(), {first} + n)
    poll.register({first} + n, {events})
    assert len(list(poll.wait(-1))) == n + 1
os._exit(0)
"""
"""Many descriptors that are ready at once."""


def test_every_form_of_an_argument_is_printed_as_by_strace(tmp_path: Path) -> None:
    forms = tmp_path / "forms.py"
    forms.write_text(FORMS)
    lines = compare("forms", *both(tmp_path, str(forms)))
    assert len(lines) > 1100


def test_a_long_run_is_traced_as_by_strace(tmp_path: Path) -> None:
    pump = tmp_path / "pump.py"
    pump.write_text(PUMP)
    for backend in ("epoll", "poll"):
        theirs, own = both(tmp_path, str(pump), "60" if REQUIRED else "10", backend=backend)
        compare(f"a long run on {backend}", theirs, own)


def test_a_wait_with_more_events_than_strace_prints(tmp_path: Path) -> None:
    pump = tmp_path / "pump.py"
    pump.write_text(PUMP.replace("range(20)", "range(50)"))
    for backend in ("epoll", "poll"):
        lines = compare("many events", *both(tmp_path, str(pump), "3", backend=backend))
        assert any(", ...]" in line for line in lines)


@pytest.mark.parametrize("events", ["POLLIN", "POLLIN | POLLOUT"])
@pytest.mark.parametrize("first", [40, 400])
def test_a_poll_finds_as_many_as_strace_has_room_for(
    events: str, first: int, tmp_path: Path
) -> None:
    program = tmp_path / "ready.py"
    program.write_text(READY.format(events=events, first=first))
    lines = compare("ready", *both(tmp_path, str(program), backend="poll"))
    assert sum(line.startswith("poll(") for line in lines) == 34


def test_enough_was_compared(capsys: pytest.CaptureFixture[str]) -> None:
    # It stands last in this file, and so sees what the tests before it have compared.
    with capsys.disabled():
        print(f"\ntrace and strace: {sum(compared.values())} lines, none different: {compared}")
    if REQUIRED:
        assert sum(compared.values()) >= 10_000
