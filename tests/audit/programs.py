"""The programs whose calls are compared, besides the scenarios and the examples."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.clients import PATIENCE, read_to_end

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
"""Echoes data over 20 pairs of sockets; the only argument is the number of rounds."""

FORMS = """
import ctypes, os, resource, select, socket, sys, tempfile
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
import signal
server = socket.create_server(("127.0.0.1", 0))
unix = socket.socket(socket.AF_UNIX)
unix.bind(b"\\0accepted\\x01")
unix.listen()
server6 = socket.create_server(("::1", 0), family=socket.AF_INET6) if socket.has_ipv6 else server
for listening in (server, unix, server6):
    libc.setblocking(listening)
    try:
        libc.accept(listening)
    except OSError:
        pass
    address = listening.getsockname()
    try:
        asking = libc.socket(listening.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        libc.connect(asking, address)
    except OSError:
        pass
    select.select([listening], [], [], 10)
    accepted, _ = libc.accept(listening)
    libc.setblocking(accepted)
    libc.getsockopt(asking)
    accepted.close()
    listening.close()
    refused = libc.socket(asking.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        libc.connect(refused, address)
    except OSError:
        pass
    select.select([], [refused], [], 1)
    libc.getsockopt(refused)
for path in ("/nowhere/at all", b"\\0nobody", "\\u00e9"):
    try:
        libc.connect(libc.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)
    except OSError:
        pass
ends = (ctypes.c_int * 2)()
libc.pipe2(ends, os.O_NONBLOCK | os.O_CLOEXEC)
libc.write(ends[1], bytes(1))
libc.read(ends[0], 512)
for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, 40, signal.SIGKILL):
    for handler in (signal.SIG_IGN, print, signal.SIG_DFL):
        try:
            libc.signal(number, handler)
        except OSError:
            pass
libc.getrusage(resource.RUSAGE_SELF)
events = (epoll_event * 3)()
far.send(b"x")
libc.epoll_wait(epfd, ctypes.byref(events), 3, 0xFFFFFFFF)
libc.epoll_wait(epfd, ctypes.byref(events), 0, 0)
libc.close(near.detach())
libc.close(epfd)
os._exit(0)
"""
"""Every flag, byte and kind of address, with the door's own functions."""

PARTS = """
import os, resource, signal, socket, sys
from danga_raw import Listener, Loop, Socket

loop = Loop()
loop.on_exception = lambda obj, error: None
ended = []

class Peer(Socket):
    def event_read(self):
        data = self.read(100)
        if data is None:
            self.close("end")
            ended.append(self)
        elif data:
            self.write(data)

    def event_err(self):
        self.close("error")

    event_hup = event_err

class Client(Peer):
    def event_connect(self, error):
        if error is None:
            self.write(b"question")
            self.watch_read(True)
        else:
            ended.append(self)

    def event_read(self):
        if self.read(100) is None:
            ended.append(self)
        self.close("answered")

def turn_until(condition):
    if not condition():
        loop.set_post_loop_callback(lambda *_: not condition())
        loop.run()

def accepted(connection, address):
    if len(ended) == 5:
        raise ValueError
    Peer(connection, loop).watch_read(True)

def serve(listening, ask):
    del ended[:]
    listener = Listener(listening, accepted, loop)
    address = listening.getsockname()
    for number in range(3):
        Client.connect(address, loop, timeout=60)
    turn_until(lambda: len(ended) == 3)
    raw = socket.socket(listening.family)
    raw.connect(address)
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    ended.extend([None, None])
    other = socket.socket(listening.family)
    other.connect(address)
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    del ended[:]
    raw.close()
    other.close()
    turn_until(lambda: ended)
    listener.close("over")
    loop.set_post_loop_callback(lambda *_: False)
    loop.run()
    del ended[:]
    Client.connect(address, loop)
    turn_until(lambda: ended)

serve(socket.create_server(("127.0.0.1", 0)), None)
if socket.has_ipv6:
    serve(socket.create_server(("::1", 0), family=socket.AF_INET6), None)
unix = socket.socket(socket.AF_UNIX)
unix.bind(b"\\0parts-%d" % os.getpid())
unix.listen()
serve(unix, None)
del ended[:]
Client.connect("/nowhere/at/all", loop)
turn_until(lambda: ended)

listening = socket.create_server(("127.0.0.1", 0))
listener = Listener(listening, accepted, loop)
waiting = [socket.create_connection(listening.getsockname()) for _ in range(2)]
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
probe = os.dup(0)
os.close(probe)
resource.setrlimit(resource.RLIMIT_NOFILE, (probe, limits[1]))
loop.set_post_loop_callback(lambda *_: False)
loop.run()
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
turn_until(lambda: loop.watched_sockets == 3)
listening.shutdown(socket.SHUT_RDWR)
turn_until(lambda: loop.watched_sockets == 2)
for one in waiting:
    one.close()
turn_until(lambda: not loop.watched_sockets)

# Wakes and signals
done = []
loop.call_soon(lambda: done.append("soon"))
loop.call_soon_threadsafe(lambda: done.append("first"))
loop.call_soon_threadsafe(lambda: done.append("second"))
turn_until(lambda: len(done) == 3)
loop.call_soon_threadsafe(lambda: done.append("again"))
turn_until(lambda: len(done) == 4)
for number in map(int, sys.argv[1:]):
    loop.add_signal_handler(number, lambda: done.append("signal"))
    os.kill(os.getpid(), number)
    turn_until(lambda: done[-1] == "signal")
    done.append(None)
    if number == signal.SIGUSR1:
        loop.remove_signal_handler(number)
loop.set_post_loop_callback(None)
loop.stop()
loop.run()
loop.close()
os._exit(0)
"""
"""Accepts and connects on every family, with success, refused and without room; is woken, and sends
itself the signals given as arguments."""

SIGNALS = ("10", "15", "37")
"""SIGUSR1, SIGTERM, and a real-time signal."""

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
"""Many descriptors that become ready at once."""

SCENARIOS = Path(__file__).parents[1] / "scenarios"
EXAMPLES = Path(__file__).parents[2] / "examples"


class Program(NamedTuple):
    """A program to run under both tracers."""

    name: str
    backend: str
    argv: tuple[str, ...]
    """A file and its arguments; DIR stands for the program's own folder."""
    source: str = ""
    """The text of DIR/program.py, if the program is made from one."""
    client: Callable[[int], None] | None = None
    """The client for it, if it is a server on a port; None if it ends by itself."""
    inject: str = ""
    """What strace injects into the wait, as written after "inject=NAME:"."""


def ask_for_locks(port: int) -> None:
    """Ten connections to ddlockd, each with twenty requests, some of them unknown commands."""
    for turn in range(10):
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            for number in range(5):
                lock = f"lock={turn}-{number}"
                lines = f"trylock {lock}\r\n\u00e9 \x01\r\nreleaselock {lock}\r\n"
                client.sendall(lines.encode())
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(client).count(b"OK") == 10


def ask_for_files(port: int) -> None:
    """Eight persistent connections to httpd at a time, and some that aren't persistent."""
    kept = [http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE) for _ in range(8)]
    for turn in range(20):
        for number, connection in enumerate(kept):
            connection.request("GET" if number % 2 else "HEAD", "/program.py")
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()
    for connection in kept:
        connection.close()
    for path, status in (("/none", 404), ("/program.py", 200)):
        once = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        once.request("GET", path, headers={"Connection": "close"})
        answer = once.getresponse()
        assert answer.status == status
        answer.read()
        once.close()


def programs(rounds: int, scenarios: int = 1) -> list[Program]:
    """All programs, with `rounds` of the pump, and every `scenarios`-th scenario."""
    file = "DIR/program.py"
    found = [Program("forms", "epoll", (file,), FORMS)]
    for backend in ("epoll", "poll"):
        found += [
            Program("parts", backend, (file,), PARTS),
            Program("parts with signals", backend, (file, *SIGNALS), PARTS),
            Program("pump", backend, (file, str(rounds)), PUMP),
            Program("many events", backend, (file, "3"), PUMP.replace("range(20)", "range(50)")),
            Program("ddlockd", backend, (str(EXAMPLES / "ddlockd.py"), "0"), "", ask_for_locks),
            Program(
                "httpd",
                backend,
                (str(EXAMPLES / "httpd.py"), "--port", "0", "DIR"),
                "x" * 5000,
                ask_for_files,
            ),
        ]
        for path in sorted(SCENARIOS.glob("*.pl"))[::scenarios]:
            inject = re.findall(r"^# inject epoll_wait:(\S+)$", path.read_text(), re.MULTILINE)
            script = str(path.with_suffix(".py"))
            found.append(Program(path.stem, backend, (script,), inject="".join(inject)))
    for first, events in ((40, "POLLIN"), (400, "POLLIN | POLLOUT")):
        source = READY.format(first=first, events=events)
        found.append(Program(f"ready from {first}", "poll", (file,), source))
    return found
