"""The management port: commands of the language, or pages for a browser."""

from __future__ import annotations

import html
import re
import socket
import time
from typing import TYPE_CHECKING, Final

from danga_raw import Socket
from examples.perlbal.heads import Refused, Request, take_head
from examples.perlbal.language import Context

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


# --- pages ----------------------------------------------------------------------------------------

_TOP = """\
<!DOCTYPE html>
<html lang="en">
<head><title>perlbal management interface</title><meta charset="utf-8">
<style>
body { font-family: sans-serif; max-width: 70em; margin: 1em auto; padding: 0 1em }
h2 { font-size: 1em; background: #ddd; padding: .3em }
pre { overflow-x: auto }
td, th { text-align: left; padding: .2em 1em .2em 0 }
</style></head>
<body>
"""
_BOTTOM = "<hr><p><a href='/'>Perlbal management</a></p></body></html>\n"


def _answer(server: Server, command: str) -> str:
    """A command and its answer, with links to the services in it."""
    lines: list[str] = []
    server.language.run(command, lines.append, Context(verbose=False))
    text = html.escape("\n".join(line for line in lines if line != "."), quote=False)
    text = re.sub(r"service '(\w+)'", r"service <a href='/service?\1'>\1</a>", text)
    return f"<h2>{command}</h2>\n<pre>{text}</pre>\n"


def _front(server: Server) -> str:
    rows = "".join(
        f"<tr><td><a href='/service?{name}'>{name}</a><td>{html.escape(service.role)}"
        f"<td>{html.escape(service.listen or '')}"
        f"<td>{'enabled' if service.enabled else 'disabled'}</tr>\n"
        for name, service in sorted(server.services.items())
    )
    return (
        "<h1>perlbal management interface</h1>\n"
        "<ul><li><a href='/socks'>Sockets</a></li>"
        "<li><a href='/obj'>Objects in use</a></li></ul>\n"
        f"<table><tr><th>Service<th>Role<th>Listens on<th>State</tr>\n{rows}</table>\n"
        + _answer(server, "queues")
        + _answer(server, "nodes")
    )


def page(server: Server, uri: str) -> tuple[str, str]:
    """The status and the page for a URI."""
    if uri == "/":
        body = _front(server)
    elif uri == "/socks":
        body = _answer(server, "socks summary") + _answer(server, "socks")
    elif uri == "/obj":
        body = _answer(server, "states")
    elif found := re.fullmatch(r"/service\?(\w+)", uri, re.ASCII):
        body = _answer(server, f"show service {found[1]}")
    else:
        return "404 Not found", f"{_TOP}<h1>404 Not found</h1>\n{_BOTTOM}"
    return "200 OK", _TOP + body + _BOTTOM
