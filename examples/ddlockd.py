#!/usr/bin/env python3
"""ddlockd, the lock server of Danga Interactive, as a port from Perl looks: ddlockd.py [PORT].

A client sends lines, "trylock lock=NAME", "releaselock lock=NAME", "locks" or "noop", and gets "OK"
or "ERR code text" for each. Only the connection that took a lock can release it, and does so when
it ends.
"""

import logging
import re
import signal
import socket
import sys
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from operator import itemgetter
from os.path import abspath, dirname
from urllib.parse import parse_qsl, quote_plus

# The package is next to this folder: a bare checkout runs without being installed.
sys.path.insert(0, dirname(dirname(abspath(__file__))))

from danga_raw import Listener, Socket, default_loop, log_exception

MAX_LINE = 64 * 1024

PIECE = 64 * 1024
"""How many bytes of a long answer are made at a time, before the other clients get their turn."""

A_TURN = 1000
"""How many locks of a client that has left are released at a time, for the same reason."""

ERRORS = {
    "unknown_command": "Unknown server command",
    "empty_lock": "No lock was named",
    "taken": "Somebody holds this lock",
    "didnthave": "This connection doesn't hold this lock",
}


class Names:
    """Sorted names, in short runs, so that adding one moves only a few."""

    RUN = 500

    def __init__(self) -> None:
        self.runs: list[list[str]] = []

    def place(self, name: str) -> int:
        """The run that `name` is in, or would be."""
        return max(0, bisect_right(self.runs, name, key=itemgetter(0)) - 1)

    def add(self, name: str) -> None:
        if not self.runs:
            self.runs.append([name])
            return
        at = self.place(name)
        run = self.runs[at]
        insort(run, name)
        if len(run) > 2 * self.RUN:
            self.runs[at : at + 1] = [run[: self.RUN], run[self.RUN :]]

    def remove(self, name: str) -> None:
        at = self.place(name)
        run = self.runs[at]
        del run[bisect_left(run, name)]
        if not run:
            del self.runs[at]

    def after(self, name: str) -> Iterator[str]:
        """All names after `name`. Becomes invalid when names are added or removed."""
        for run in self.runs[self.place(name) :]:
            yield from run[bisect_right(run, name) :]


holder: dict[str, "Client"] = {}
"""The holder of each lock, even one that has left and whose lock is still to be released."""

names = Names()
"""The names of all locks."""


class Client(Socket):
    """One connection and the locks that it holds."""

    __slots__ = ("read_buf", "locks", "listed")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.read_buf = b""
        self.locks: set[str] = set()
        self.listed: str | None = None  # the last lock in an unfinished answer to "locks"
        self.watch_read(True)

    def event_read(self) -> None:
        data = self.read(8192)
        if data is None:
            self.close("end")
            return
        self.read_buf += data
        self.process_lines()

    def event_write(self) -> None:
        if self.write(None):
            self.go_on()

    def go_on(self) -> None:
        """Finish the answer to "locks", then process the next lines."""
        if self.listed is not None:
            self.list_more(self.listed)
        self.process_lines()

    def process_lines(self) -> None:
        # Back-pressure: a client that doesn't read its answers isn't read from.
        while not self.write_buf_size and not self.closed and self.listed is None:
            line, end, rest = self.read_buf.partition(b"\n")
            if len(line.removesuffix(b"\r")) > MAX_LINE:
                self.close("the line is too long")
                return
            if not end:
                break
            self.read_buf = rest
            self.process_line(line.removesuffix(b"\r").decode("latin-1"))
        self.watch_read(not self.write_buf_size and self.listed is None)

    def process_line(self, line: str) -> None:
        words = re.match(r"(\w+)\s*(.*)", line, re.ASCII)
        command: Callable[[dict[str, str]], None] | None = None
        if words:
            command = getattr(self, f"cmd_{words[1].lower()}", None)
        if words and command:
            command(dict(parse_qsl(words[2], encoding="latin-1")))
        else:
            self.err_line("unknown_command")

    def cmd_trylock(self, args: dict[str, str]) -> None:
        lock = args.get("lock")
        if not lock:
            self.err_line("empty_lock")
            return
        other = holder.get(lock)
        if other and not other.closed:
            self.err_line("taken")
            return
        if other:
            other.release(lock)
        holder[lock] = self
        names.add(lock)
        self.locks.add(lock)
        self.ok_line()

    def cmd_releaselock(self, args: dict[str, str]) -> None:
        lock = args.get("lock")
        if not lock:
            self.err_line("empty_lock")
        elif lock not in self.locks:
            self.err_line("didnthave")
        else:
            self.release(lock)
            self.ok_line()

    def cmd_locks(self, args: dict[str, str]) -> None:
        self.list_more("", b"LOCKS:\n")

    def list_more(self, listed: str, piece: bytes = b"") -> None:
        """Send some of the locks after `listed`, and the rest when the peer has read these."""
        self.listed = None
        for looked, lock in enumerate(names.after(listed)):
            if len(piece) >= PIECE or looked == A_TURN:
                self.listed = listed
                break
            listed = lock
            if not holder[lock].closed:
                # With a control character, part of a name could pass for another line.
                name = re.sub(r"[\x00-\x1f\x7f]", lambda control: quote_plus(control[0]), lock)
                piece += f"  {name} = {holder[lock].as_string()}\n".encode("latin-1")
        if piece:
            self.write(piece)
        if self.listed is not None and not self.write_buf_size:
            default_loop().call_soon(self.go_on)

    def cmd_noop(self, args: dict[str, str]) -> None:
        self.ok_line()

    def ok_line(self) -> None:
        self.write(b"OK \r\n")

    def err_line(self, code: str) -> None:
        self.write(f"ERR {code} {quote_plus(ERRORS[code])}\r\n".encode())

    def release(self, lock: str) -> None:
        self.locks.discard(lock)
        del holder[lock]
        names.remove(lock)

    def release_all(self) -> None:
        for _ in range(A_TURN):
            if not self.locks:
                return
            self.release(self.locks.pop())
        default_loop().call_soon(self.release_all)

    def close(self, reason: str | None = None) -> None:
        super().close(reason)
        self.listed = None
        self.release_all()

    def event_err(self) -> None:
        self.close("error")

    def event_hup(self) -> None:
        self.event_read()


def accepted(connection: socket.socket, address: object) -> None:
    Client(connection)


def main() -> None:
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(f"usage: ddlockd.py [-h] [PORT]\n\n{__doc__}", end="")
        return
    if len(sys.argv) > 2:
        sys.stderr.write(f"ddlockd.py: it takes one port, not {' '.join(sys.argv[1:])!r}\n")
        sys.exit(2)
    port = sys.argv[1] if len(sys.argv) > 1 else "7002"
    try:
        server = socket.create_server(("127.0.0.1", int(port)), backlog=1024)
        # The clients' sockets inherit these. Keepalive frees the locks of a machine that has died.
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        Listener(server, accepted)
        default_loop().on_exception = log_exception
        # There is nothing to clean up, so let Ctrl-C end the process as it would a C program.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("listening on %s:%d" % server.getsockname(), flush=True)
    except (OSError, OverflowError, ValueError) as error:
        sys.stderr.write(f"ddlockd.py: port {port}: {error}\n")
        sys.exit(2)
    while True:
        try:
            Socket.EventLoop()
        except OSError as error:  # Waiting failed, perhaps for lack of memory; nothing changed.
            logging.error("%s", error)
            time.sleep(1)


if __name__ == "__main__":
    main()
