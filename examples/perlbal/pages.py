"""The pages of the management service."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from examples.perlbal.language import Context

if TYPE_CHECKING:
    from examples.perlbal.server import Server

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
