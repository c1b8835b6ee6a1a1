"""Connections to the management port: commands of the language, or pages for a browser."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final

from danga_raw import Socket
from examples.perlbal.heads import Refused, Request, take_head
from examples.perlbal.language import Context
from examples.perlbal.pages import page

if TYPE_CHECKING:
    from examples.perlbal.server import Server

MAX_LINE: Final = 65_536
MAX_UNREAD: Final = 1_048_576
"""No more commands are read while more bytes of answers than this are unsent."""
READ_SIZE: Final = 512
"""Bytes per read, few enough that a batch of commands doesn't delay other connections."""
_HTTP: Final = (b"GET ", b"HEAD ", b"POST ")


class ClientManage(Socket):
    def __init__(self, server: Server, sock: socket.socket) -> None:
        super().__init__(sock, server.loop)
        self.server = server
        self.created = time.monotonic()
        self.context = Context(verbose=True)
        self.inbox = b""
        self.watch_read(True)

    def event_read(self) -> None:
        data = self.read(READ_SIZE)
        if data is None:
            return self._end()
        self.inbox += data
        self._go_on()

    def _go_on(self) -> None:
        if self.inbox.startswith(_HTTP):
            self._http()
        else:
            self._lines()

    def _lines(self) -> None:
        while not self.closed and not self.server.ended:
            if self.write_buf_size > MAX_UNREAD:
                # The peer doesn't read the answers.
                return self.watch_read(False)
            line, newline, rest = self.inbox.partition(b"\n")
            if not newline:
                if len(line) > MAX_LINE:
                    self.write(b"ERROR: the line is too long\r\n")
                    self._end()
                return
            self.inbox = rest
            text = line.decode("utf-8", "surrogateescape").removesuffix("\r")
            if text.strip().lower().startswith(("quit", "exit")):
                return self._end()
            answer: list[str] = []
            self.server.language.run(text, answer.append, self.context)
            if answer:
                lines = "".join(f"{each}\r\n" for each in answer)
                self.write(lines.encode("utf-8", "surrogateescape"))

    def _end(self) -> None:
        """Stop reading, and close once the queued answers are sent."""
        self.inbox = b""
        self.watch_read(False)
        self.write(self.close)

    def event_write(self) -> None:
        super().event_write()
        if not self.write_buf_size and not self.closed:
            self.watch_read(True)
            self._go_on()

    def _http(self) -> None:
        try:
            found = take_head(self.inbox)
            if found is None:
                return
            request = Request(found[0])
        except Refused:
            return self.close("parse_header_failure")
        self.server.requests += 1
        code, body = page(self.server, request.uri)
        data = body.encode("utf-8", "surrogateescape")
        head = f"HTTP/1.0 {code}\r\nContent-type: text/html\r\nContent-Length: {len(data)}\r\n\r\n"
        self.write(head.encode() + (b"" if request.method == "HEAD" else data))
        self._end()

    def event_err(self) -> None:
        self.close("error")

    def event_hup(self) -> None:
        self.close("hup")

    def as_string(self) -> str:
        return "Perlbal::" + super().as_string()
