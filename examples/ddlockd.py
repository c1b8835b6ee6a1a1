#!/usr/bin/env python3
"""ddlockd, the lock server of Danga Interactive, as a port from Perl looks: ddlockd.py [PORT].

A client sends lines, "trylock lock=NAME", "releaselock lock=NAME", "locks" or "noop", and gets "OK"
or "ERR code text" for each. Only the holder of a lock can release it, and it dies with his
connection.
"""

import logging
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from os.path import abspath, dirname
from urllib.parse import parse_qsl, quote_plus

# The package lies beside this folder: a bare checkout runs without being installed.
sys.path.insert(0, dirname(dirname(abspath(__file__))))

from danga_raw import Socket, default_loop

MAX_LINE = 64 * 1024

ERRORS = {
    "unknown_command": "Unknown server command",
    "empty_lock": "No lock was named",
    "taken": "Somebody holds this lock",
    "didnthave": "This connection doesn't hold this lock",
}

holder: dict[str, "Client"] = {}
"""Who holds each lock."""

server = socket.socket()
"""Where the clients come in."""


class Client(Socket):
    """One connection and the locks that it holds."""

    __slots__ = ("read_buf", "locks")

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.read_buf = b""
        self.locks: set[str] = set()
        try:
            self.watch_read(True)
        except OSError:
            self.close("nobody would hear it")

    def event_read(self) -> None:
        data = self.read(8192)
        if data is None:
            self.close("end")
            return
        self.read_buf += data
        self.process_lines()

    def event_write(self) -> None:
        self.write(None)
        self.process_lines()

    def process_lines(self) -> None:
        # As long as answers wait to be sent, no more are made: who doesn't read, isn't read from.
        while not self.write_buf_size and not self.closed:
            line, end, rest = self.read_buf.partition(b"\n")
            if len(line.removesuffix(b"\r")) > MAX_LINE:
                self.close("the line is too long")
                return
            if not end:
                break
            self.read_buf = rest
            self.process_line(line.removesuffix(b"\r").decode("latin-1"))
        self.watch_read(not self.write_buf_size)

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
        elif lock in holder:
            self.err_line("taken")
        else:
            holder[lock] = self
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
        lines = ["LOCKS:"]
        for lock, client in sorted(holder.items(), key=lambda item: item[0]):
            # A control character would let a name pass for a line of its own.
            name = re.sub(r"[\x00-\x1f\x7f]", lambda control: quote_plus(control[0]), lock)
            lines.append(f"  {name} = {client.as_string()}")
        self.write("".join(f"{line}\n" for line in lines).encode("latin-1"))

    def cmd_noop(self, args: dict[str, str]) -> None:
        self.ok_line()

    def ok_line(self) -> None:
        self.write(b"OK \r\n")

    def err_line(self, code: str) -> None:
        self.write(f"ERR {code} {quote_plus(ERRORS[code])}\r\n".encode())

    def release(self, lock: str) -> None:
        self.locks.remove(lock)
        del holder[lock]

    def close(self, reason: str | None = None) -> None:
        for lock in list(self.locks):
            self.release(lock)
        super().close(reason)
        Socket.AddOtherFds({server.fileno(): accept})  # there may be room for another client

    def event_err(self) -> None:
        self.close("error")

    def event_hup(self) -> None:
        self.event_read()


def accept(state: int) -> None:
    """Take the clients that wait at the door."""
    while True:
        try:
            csock, _ = server.accept()
            csock.setblocking(False)
            Client(csock)
        except BlockingIOError:
            return
        except ConnectionAbortedError:
            continue
        except OSError:
            # No descriptor is free. The clients wait in the kernel until one leaves, or a second.
            Socket.OtherFds({})
            Socket.AddTimer(1, lambda: Socket.AddOtherFds({server.fileno(): accept}))
            return


def main() -> None:
    port = sys.argv[1] if len(sys.argv) > 1 else "7002"
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", int(port)))
        server.listen(1024)
        server.setblocking(False)
        # What the clients' sockets inherit. Keepalive frees the locks of a machine that has died.
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        Socket.AddOtherFds({server.fileno(): accept})
        default_loop().on_exception = lambda _, e: logging.error("a handler failed", exc_info=e)
        # Nothing is left to be done at the end: Ctrl-C may do what it does to a C program.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("listening on %s:%d" % server.getsockname(), flush=True)
    except (OSError, OverflowError, ValueError) as error:
        sys.stderr.write(f"ddlockd.py: port {port}: {error}\n")
        sys.exit(2)
    while True:
        try:
            Socket.EventLoop()
        except OSError as error:  # Waiting failed, for want of memory maybe; all is as it was.
            logging.error("%s", error)
            time.sleep(1)


if __name__ == "__main__":
    main()
