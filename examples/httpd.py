#!/usr/bin/env python3
"""A server of static files over HTTP/1.1: GET and HEAD, keep-alive, pipelined requests.

Read it from the bottom: main() makes a Server, which makes a Connection for each client, and
Connection.talk() is the conversation with it, from the first request to the last answer.
"""

import argparse
import errno
import logging
import mimetypes
import os
import re
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from email.utils import formatdate
from http import HTTPStatus
from io import BytesIO, FileIO
from resource import RLIMIT_NOFILE, getrlimit
from urllib.parse import quote, unquote_to_bytes

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # bare checkout

from danga_raw import Listener, Loop, Socket, log_exception

MAX_HEAD = 16 * 1024  # bytes of a request line and its header fields
PIECE = 128 * 1024  # bytes of a file that may be in the write queue
STEPS_A_TURN = 64  # of one connection, before the others get their turn
EMPTY_LINES = re.compile(rb"\A(?:\r\n)+")
HEAD_END = re.compile(rb"\n\r?\n")
HEAD = re.compile(
    rb"(TOKEN) (?:http://[\w.:\[\]-]+)?(/[^\0- #?\x7f-\xff]*)(\?[^\0- #\x7f-\xff]*)?"
    rb" HTTP/1\.(\d)\r((?:\nTOKEN:[^\0-\x08\x0a-\x1f\x7f]*\r)*)".replace(
        b"TOKEN", rb"[!#-'*+.\-\w^`|~]+"
    )
)


class Refused(Exception):
    """A request that is answered with an error. The argument is the status."""


def parse(head: bytes) -> tuple[bytes, str, dict[str, str], bool]:
    """Path, query, fields and keep-alive. Strict, so that no proxy can read it differently."""
    if len(head) > MAX_HEAD:
        raise Refused(431 if b"\r\n" in head[:MAX_HEAD] else 414)
    if not (request := HEAD.fullmatch(head)):
        raise Refused(400)
    method, target, query, minor, lines = request.groups(b"")
    if method not in (b"GET", b"HEAD"):
        raise Refused(405)
    fields: dict[str, str] = {}
    for line in lines.decode("latin-1").split("\n")[1:]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t\r")
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    # Requests with a body are refused: it could be taken for the next request.
    body = "transfer-encoding" in fields or fields.get("content-length", "0") != "0"
    one_host = re.fullmatch(r"[^\0- ,/?#@]*", fields.get("host", "" if minor == b"0" else ","))
    if body or not one_host or b"\0" in (path := unquote_to_bytes(target)):
        raise Refused(400)
    wishes = fields.get("connection", "").lower()
    keep_alive = "close" not in wishes and (minor != b"0" or "keep-alive" in wishes)
    return path, query.decode(), fields, keep_alive


def names_in(path: bytes) -> list[str]:
    return [name for name in os.fsdecode(path).split("/") if name not in ("", ".")]


def open_below(folder: int, path: bytes) -> tuple[FileIO, str]:
    """Open the file at `path` below a folder, and return it and its name. For a folder, that is its
    index.html, or an IsADirectoryError if the path doesn't end in a slash.

    Goes name by name and follows no symbolic links, as they could lead out of the folder. Opens
    only regular files: to open a FIFO, for instance, can block, or wake another process. Checks
    again after opening, since the file may have been replaced after the first check."""
    to_index = path.endswith((b"/", b"/."))
    *above, name = names_in(path) + ["index.html"] * to_index
    if ".." in (*above, name):
        raise FileNotFoundError(errno.ENOENT, "it leads upwards")
    with ExitStack() as folders:
        for each in above:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY
            folders.callback(os.close, folder := os.open(each, flags, dir_fd=folder))
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode) and not to_index:
            raise IsADirectoryError(errno.EISDIR, "a folder")
        if stat.S_ISREG(mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            file = FileIO(name, opener=lambda _, __: os.open(name, flags, dir_fd=folder))
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return file, name
            file.close()
    raise FileNotFoundError(errno.ENOENT, "not a file")


def answer(head: bytes, root: int) -> tuple[bytes, FileIO | BytesIO, int, bool]:
    """The answer to a request: its head, its body, how much of that to send, keep-alive."""
    body: FileIO | BytesIO
    fields = {"Date": formatdate(usegmt=True)}
    path, query, keep_alive = b"", "", False
    try:
        path, query, asked, keep_alive = parse(head)
        body, name = open_below(root, path)
        info = os.fstat(body.fileno())
        size = info.st_size
        modified = formatdate(min(max(info.st_mtime, 0), time.time()), usegmt=True)
        known = asked.get("if-modified-since") == modified and "if-none-match" not in asked
        status = 304 if known else 200
        kind, encoding = mimetypes.guess_type("/" + name)
        kind = kind if kind and not encoding else "application/octet-stream"
        fields |= {"Last-Modified": modified, "Content-Type": kind}
    except (Refused, OSError) as error:
        if isinstance(error, Refused):
            status = error.args[0]
        elif isinstance(error, IsADirectoryError):
            # Without a host, as only the client knows it, and without "//", which would start one.
            status, slashed = 301, "".join(f"{name}/" for name in names_in(path))
            fields |= {"Location": f"/{quote(os.fsencode(slashed))}{query}"}
        else:
            status = 503 if error.errno in (errno.EMFILE, errno.ENFILE) else 404
        body = BytesIO(f"{status} {HTTPStatus(status).phrase}\n".encode())
        size = len(body.getvalue())
        fields |= {"Allow": "GET, HEAD", "Content-Type": "text/plain"}
    fields |= {"Content-Length": str(size), "Connection": "keep-alive" if keep_alive else "close"}
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *map(": ".join, fields.items())]
    left = 0 if status == 304 or head.startswith(b"HEAD ") else size
    return "\r\n".join([*lines, "", ""]).encode(), body, left, keep_alive


class Connection(Socket):
    """One client. Nothing is read from it while it is being answered, so nothing can pile up."""

    __slots__ = ("server", "client", "inbox", "talking", "since")

    def __init__(self, server: "Server", client: socket.socket) -> None:
        super().__init__(client, server.loop)
        self.server, self.client, self.since = server, client, time.monotonic()
        self.inbox = b""  # what has been read and not yet answered
        self.talking: Iterator[bool] = self.talk()
        self.go_on()

    def talk(self) -> Iterator[bool]:
        """The conversation. Yields False after it has written something, True if it needs input."""
        keep_alive = True
        while keep_alive:
            while (head := self.next_head()) is None:
                yield True
            start, body, left, keep_alive = answer(head, self.server.root)
            with body:
                self.tcp_cork(True)
                self.write(start)
                yield False
                while left and (piece := body.read(min(left, PIECE))):
                    left -= len(piece)
                    self.write(piece)
                    yield False
            if left:
                return  # the file has shrunk, but its length has been sent
            self.tcp_cork(False)
        # To close with unread input could lose the answer, so let the client close first.
        self.client.shutdown(socket.SHUT_WR)
        while True:
            self.inbox = b""
            yield True

    def next_head(self) -> bytes | None:
        """A request up to its empty line, or what there is of one that is too long; None if it is
        incomplete. Skips empty lines before it (RFC 9112, 2.2)."""
        self.inbox = EMPTY_LINES.sub(b"", self.inbox)
        if end := HEAD_END.search(self.inbox):
            # An end that not everybody takes for one stays in the head, which is refused for it.
            until = end.start() if end[0] == b"\n\r\n" else end.end()
            head, self.inbox = self.inbox[:until], self.inbox[end.end() :]
            return head
        if len(self.inbox) > MAX_HEAD + 2:
            head, self.inbox = self.inbox, b""
            return head
        return None

    def go_on(self) -> None:
        """Go on talking until it is the client's turn, or the other connections'."""
        hear = False
        try:
            for _ in range(STEPS_A_TURN):
                hear = next(self.talking)
                self.since = self.since if hear else time.monotonic()
                if hear or self.write_buf_size or self.closed:
                    break
            self.watch_read(hear)
        except (StopIteration, OSError):
            self.close("nothing more to say")
        if self.write_buf_size:
            self.write(self.go_on)  # called when everything queued before it has been written
        elif not hear and not self.closed:
            self.loop.add_timer(0, self.go_on)

    def event_read(self) -> None:
        if (data := self.read(MAX_HEAD)) is None:
            return self.close("end")
        self.inbox += data
        self.go_on()

    def event_write(self) -> None:
        self.since = time.monotonic()
        super().event_write()

    def close(self, reason: str | None = None) -> None:
        super().close(reason)
        self.talking = iter(())  # ends the conversation, which closes its file
        self.loop.call_soon(self.server.open_door)  # there may be room again

    event_err = close

    def event_hup(self) -> None:
        """On kqueue, perhaps only half a hang-up; on some systems, all that poll reports for a
        reset. Reading or writing tells which."""
        if self.event_watch & select.POLLIN:
            self.event_read()
        else:
            self.write(None)


class Server:
    """The listening socket, and whatever the connections share."""

    def __init__(self, loop: Loop, folder: str, host: str, port: int, timeout: float) -> None:
        if not timeout > 0:
            raise ValueError(f"--timeout is a number of seconds above 0, not {timeout}")
        self.loop, self.timeout = loop, timeout
        self.root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.room = max(1, getrlimit(RLIMIT_NOFILE)[0] // 2 - 4)  # half, as each may open a file
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # clients inherit it
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)  # to notice slow clients
        shape = "[%s]:%d" if ":" in host else "%s:%d"
        self.address = shape % listener.getsockname()[:2]
        self.listener = Listener(listener, self.accepted, loop)
        self.once_a_second()

    def accepted(self, client: socket.socket, address: object) -> None:
        Connection(self, client)
        self.open_door()

    def open_door(self) -> None:
        """Accept while there is room. Other clients wait in the kernel until a connection ends."""
        self.listener.watch_read(self.loop.watched_sockets <= self.room)  # the listener counts too

    def once_a_second(self) -> None:
        """Close idle connections, and accept again, even if that failed before."""
        self.loop.add_timer(1, self.once_a_second)
        for each in list(self.loop.descriptor_map.values()):
            if isinstance(each, Connection) and each.since < time.monotonic() - self.timeout:
                each.close("idle")
        self.open_door()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the files of a folder over HTTP.")
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--timeout", type=float, default=60, help="seconds without progress")
    options = parser.parse_args()
    mimetypes.init()  # reads files, which could fail later
    try:
        loop = Loop()
        server = Server(loop, options.folder, options.host, options.port, options.timeout)
        loop.on_exception = log_exception
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _, __: loop.stop())  # heard within a second, by the timer
        print(f"listening on http://{server.address}/", flush=True)
    except (OSError, OverflowError, ValueError) as error:
        parser.exit(2, f"httpd.py: {error}\n")
    while True:
        try:
            return loop.run()
        except OSError as error:  # Waiting failed, perhaps for lack of memory; nothing changed.
            logging.error("%s", error)
            time.sleep(1)


if __name__ == "__main__":
    main()
