"""Heads of HTTP messages: the first line and the fields, read as strictly as RFC 9112 asks.

A field's name keeps the case in which it came, and its place among the others. What is doubled is
joined with a comma, but for Set-Cookie.
"""

from __future__ import annotations

import re
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

MAX_HEAD: Final = 102_400
"""Bytes of a head; as in the original."""

SERVER: Final = "Perlbal"
BODILESS: Final = (204, 304)
"""Codes of responses that have no body, whatever they say of one."""

_AS_IN_RFC: Final = (200, 204, 206, 302, 304, 403, 404, 411, 500, 501, 502, 503)
REASONS: Final = {
    **{code: HTTPStatus(code).phrase for code in _AS_IN_RFC},
    301: "Permanent Redirect",
    400: "Bad request",
    416: "Request range not satisfiable",
}

TOKEN: Final = re.compile(r"[!#$%&'*+.^`|~\w-]+", re.ASCII)
_REQUEST_LINE: Final = re.compile(r"(\w+) ([^\0- \x7f]+) HTTP/1\.(\d)\r?\n", re.ASCII)
_STATUS_LINE: Final = re.compile(r"HTTP/(\d{1,3})\.(\d{1,3})[ \t]+(\d{3})(?:[ \t]+(.*))?", re.ASCII)
_ABSOLUTE: Final = re.compile(r"http://([^/:?#@\[\]]+|\[[\da-f:.]+\])(?::\d+)?([/?].*)?", re.I)
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)
_NO_HOST: Final = re.compile(r"[\0- \x7f,/?#@\\<>\"]")
_FOLD: Final = re.compile(r"\r?\n[ \t]+")
_MAX_DIGITS: Final = 18
_CLOSE: Final = re.compile(r"\bclose\b", re.ASCII)
_KEEP_ALIVE: Final = re.compile(r"\bkeep-alive\b", re.ASCII)


class Refused(Exception):
    """A message that isn't taken. `status` is what its sender is told; 0: nothing at all."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class _Keys(dict[str, str]):
    """Names of fields that came before, and their keys: to check a name is dear, and most are few.
    A client that makes up names shouldn't fill the memory."""

    def __missing__(self, name: str) -> str:
        """The key of a name that is new. Raises `Refused` for what is none."""
        if not TOKEN.fullmatch(name):
            # What another server might take for something else gets an answer, what is plain
            # nonsense doesn't.
            told = name[:1] in " \t" or not name.isascii() or TOKEN.fullmatch(name.rstrip(" \t"))
            raise Refused(400 if told else 0, f"Invalid field name {name!r:.40}")
        key = name.lower()
        if len(name) <= 100:
            if len(self) >= 2000:
                self.clear()
            self[name] = key
        return key


_keys: Final = _Keys()


class Head:
    """The fields of a message. `values` has them by name in lower case, in their order."""

    __slots__ = ("names", "values")

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        """How a name is written, by its key; also of fields that were taken off."""
        self.values: dict[str, str] = {}

    def get(self, key: str) -> str | None:
        return self.values.get(key)

    def set(self, name: str, value: str) -> None:
        """Set a field, in the place and with the name it has already."""
        key = name.lower()
        self.names.setdefault(key, name)
        self.values[key] = value

    def drop(self, key: str) -> None:
        self.values.pop(key, None)

    def fill(self, lines: list[str], once: frozenset[str] = frozenset()) -> None:
        """Take the fields of these lines; `once` are the keys that may not be doubled. Raises
        `Refused`."""
        names, values = self.names, self.values
        for line in lines:
            name, colon, value = line.partition(":")
            key = _keys[name]
            if not colon:
                raise Refused(0, f"No field: {line!r:.40}")
            value = value.strip(" \t")
            if key not in values:
                names[key] = name
                values[key] = value
            elif key in once:
                raise Refused(400, f"Doubled {name}")
            elif key == "set-cookie":
                values[key] += "\r\nSet-Cookie: " + value
            else:
                values[key] += ", " + value


def _wish_to_go_on(values: dict[str, str]) -> bool | None:
    """What Connection says of the connection: to keep it open, to close it, or nothing."""
    if "connection" in values:
        wishes = values["connection"].lower()
        # Where a word isn't at all, which `in` tells soonest, nothing is searched.
        if "close" in wishes and _CLOSE.search(wishes):
            return False
        if "keep-alive" in wishes and _KEEP_ALIVE.search(wishes):
            return True
    return None


def _written(first: str, names: dict[str, str], values: dict[str, str]) -> bytes:
    lines = [first]
    for key, value in values.items():
        lines.append(f"{names[key]}: {value}")
    lines.append("\r\n")
    return "\r\n".join(lines).encode("latin-1")


_ONCE_IN_REQUEST: Final = frozenset(("host", "content-length", "transfer-encoding"))


class Request(Head):
    __slots__ = ("chunked", "keep_alive", "length", "low_priority", "method", "uri", "version")

    def __init__(self, text: str) -> None:
        """Read `text`, with the empty line at its end. Raises `Refused`."""
        super().__init__()
        line = _REQUEST_LINE.match(text)
        if line is None:
            raise Refused(0, f"Bogus request line {text!r:.40}")
        _, *lines = text.split("\r\n" if "\r" in text else "\n")
        count = len(lines)
        if "\0" in text or text.count("\n") != count or text.count("\r") not in (0, count):
            raise Refused(400, "Invalid line end")
        del lines[-2:]
        self.method, self.uri, minor = line.groups()
        self.version = "1." + minor
        self.low_priority = False
        """Set by a plugin: this request is to wait behind all others."""
        values = self.values
        self.fill(lines, _ONCE_IN_REQUEST)
        if self.uri[0] != "/" and "://" in self.uri:
            absolute = _ABSOLUTE.fullmatch(self.uri)
            if absolute is None:
                # A backend would find another host in it than the one that is looked at here.
                raise Refused(400, "Invalid URL")
            path = absolute[2] or "/"
            self.uri = path if path[0] == "/" else "/" + path
            # As bytes: only letters of ASCII have a lower case.
            self.set("Host", absolute[1].encode("latin-1").lower().decode("latin-1"))
        host = values.get("host")
        if host:
            if _NO_HOST.search(host):
                raise Refused(400, "Invalid Host")
        elif minor != "0":
            raise Refused(0, "HTTP/1.1 without Host")
        wish = _wish_to_go_on(values)
        self.keep_alive: bool = minor != "0" if wish is None else wish
        """Whether the client wants to go on after this request."""
        self.chunked = False
        self.length = 0
        """Bytes of the body; 0 also if it is chunked."""
        if "transfer-encoding" in values:
            if "content-length" in values:
                raise Refused(400, "Transfer-Encoding and Content-Length")
            if values["transfer-encoding"].lower() != "chunked":
                raise Refused(501, "Unknown Transfer-Encoding")
            self.chunked = True
            if minor == "0":
                self.keep_alive = False
        elif "content-length" in values:
            self.length = _length(values["content-length"])

    def to_bytes(self, values: dict[str, str]) -> bytes:
        """The request as it goes to a backend, with these fields."""
        return _written(f"{self.method} {self.uri} HTTP/1.0", self.names, values)

    def range(self, size: int) -> tuple[int, int, int]:
        """What is asked for of `size` bytes: 200 and all, 206 and a part, or 416; the place of its
        first byte, and of that behind its last."""
        asked = self.values.get("range")
        found = _RANGE.fullmatch(asked) if asked else None
        if found is None or not (found[1] or found[2]):
            return 200, 0, size
        start = _clamped(found[1])
        last = _clamped(found[2]) if found[2] else size - 1
        if start >= size or start > last or not (found[1] or last):
            return 416, 0, 0
        return 206, start, min(last + 1, size)


def _clamped(digits: str) -> int:
    """A number; one that is larger than any file is some other such number."""
    return int(digits.lstrip("0")[: _MAX_DIGITS + 1] or "0")


def _length(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS:
        return int(text)
    if re.fullmatch(r"-\d+", text):
        raise Refused(400, "Invalid request: Content-Length < 0")
    raise Refused(400, "Invalid request: Content-Length")


class Response(Head):
    """The head of a response, of ours or of a backend's."""

    __slots__ = ("code", "length", "reason", "stays_open")

    def __init__(self, code: int) -> None:
        super().__init__()
        self.set_code(code)
        self.stays_open = False
        """Whether who sent it keeps the connection open unless he says otherwise."""
        self.length: int | None = None
        """Bytes of the body of a backend's; None if they aren't told, 0 where no body can be."""

    def set_code(self, code: int) -> None:
        self.code = code
        self.reason = REASONS.get(code, "")

    def to_bytes(self) -> bytes:
        return _written(f"HTTP/1.0 {self.code} {self.reason}", self.names, self.values)

    def kept_alive(self, head_only: bool) -> bool:
        """Whether who sent this will keep the connection open; `head_only` for what had no body
        whatever its length is said to be."""
        wish = _wish_to_go_on(self.values)
        if self.stays_open:
            return wish is not False
        return bool(wish) and self.tells_its_end(head_only)

    def tells_its_end(self, head_only: bool) -> bool:
        """Whether it is known where it ends: by a length, or as it can't have a body."""
        return head_only or "content-length" in self.values or self.code in BODILESS


def parse_response(text: str) -> Response:
    """A backend's response, with the empty line at its end. Raises `Refused`."""
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)
    # RFC 9112, 2.2: a line may end with LF alone. Perlbal's own tests have backends that mix the two.
    text = text.replace("\r\n", "\n")
    if "\0" in text or "\r" in text:
        raise Refused(502, "A line of the backend's head ends oddly")
    first, *lines = text.removesuffix("\n\n").split("\n")
    line = _STATUS_LINE.fullmatch(first)
    if line is None:
        raise Refused(502, "No status line")
    response = Response(int(line[3]))
    response.reason = line[4] or response.reason
    response.stays_open = line[1] != "0" and (line[1], line[2]) != ("1", "0")
    response.fill(lines)
    values = response.values
    if "transfer-encoding" in values and "identity" not in values["transfer-encoding"].lower():
        # RFC 9112, 6.3: the length is not to be believed.
        values.pop("content-length", None)
    if "content-length" in values:
        text = values["content-length"]
        if "," in text and len(lengths := {each.strip(" \t") for each in text.split(",")}) == 1:
            values["content-length"] = text = lengths.pop()  # RFC 9112, 6.3
        response.length = _length(text)
    if response.code in BODILESS:
        response.length = 0
    return response


def wire(text: str) -> str:
    """Text of the language, which is UTF-8, as it is written in a head, whose letters are bytes."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def read_off(text: str) -> str:
    """The same the other way."""
    return text.encode("latin-1").decode("utf-8", "surrogateescape")


def take_head(data: bytes) -> tuple[str, bytes] | None:
    """A head, with the empty line at its end, and what follows; None if the end isn't there yet.
    Raises `Refused` for one that is too long."""
    end = data.find(b"\n\r\n")
    after = end + 3
    short = data.find(b"\n\n", 0, after if end >= 0 else len(data))
    if short >= 0:
        end, after = short, short + 2
    if after > MAX_HEAD or end < 0 and len(data) >= MAX_HEAD:
        raise Refused(0, "A head that is too long")
    return (data[:after].decode("latin-1"), data[after:]) if end >= 0 else None


@lru_cache(1000)
def http_date(seconds: int) -> str:
    """A moment, in seconds since the epoch, as HTTP writes it, which has years of four digits."""
    return formatdate(min(max(-62_135_596_800, seconds), 253_402_300_799), usegmt=True)
