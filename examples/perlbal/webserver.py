"""The web server: files of a folder, read and written."""

from __future__ import annotations

import base64
import hashlib
import html
import os
import random
import re
import stat
import time
from collections.abc import Iterator
from errno import EMFILE, ENFILE
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import quote, unquote_to_bytes

from examples.perlbal.clients import NOTHING, Client, Exchange, Part
from examples.perlbal.heads import SERVER, Request, Response, http_date

if TYPE_CHECKING:
    from examples.perlbal.services import Service

MOST_CONCATENATED: Final = 100
MOST_DIRECTORIES: Final = 10_000
_PUT_NAME: Final = re.compile(r"((?:/[\w.-]+)*)/([\w.-]+)", re.ASCII)
_DELETE_NAME: Final = re.compile(r"(?:/[\w.-]+)+", re.ASCII)
_EXTENSION: Final = re.compile(rb"\.(\w+)$", re.ASCII)
_LENGTH: Final = re.compile(r"; length=(\d{1,18})", re.ASCII)

MIME_TYPES: Final = {
    "css": "text/css",
    "doc": "application/msword",
    "gif": "image/gif",
    "htm": "text/html",
    "html": "text/html",
    "jpg": "image/jpeg",
    "js": "application/x-javascript",
    "mp3": "audio/mpeg",
    "mpg": "video/mpeg",
    "pdf": "application/pdf",
    "png": "image/png",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "torrent": "application/x-bittorrent",
    "txt": "text/plain",
    "zip": "application/zip",
}
"""The types by ending, as the MIME command shows and changes them."""


def mime_type(path: bytes) -> str | None:
    found = _EXTENSION.search(path)
    return MIME_TYPES.get(found[1].decode("latin-1")) if found else None


def _opened(pieces: list[tuple[bytes, int]]) -> Iterator[Part]:
    """Files of these sizes, each opened when it is its turn. open(2); raises `OSError`."""
    for path, size in pieces:
        yield os.open(path, os.O_RDONLY | os.O_CLOEXEC), 0, size


class Sum(Protocol):
    """A sum that is being made."""

    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...


class WebExchange(Exchange):
    """A request to a web server."""

    def __init__(self, client: Client, service: Service, request: Request) -> None:
        super().__init__(client, service, request)
        # Of a PUT that is going on:
        self._fd = -1
        self._file = ""
        """The file that is being written."""
        self._final: str | None = None
        """What it is to be called once its sum is checked."""
        self._md5: Sum | None = None
        self._size = 0

    def start(self) -> None:
        client, service = self.client, self.service
        method = self.request.method
        if method in ("GET", "HEAD"):
            if service.docroot is None:
                client.send_page(500, "Docroot unconfigured")
            else:
                self._get(os.fsencode(service.docroot))
        elif method == "PUT":
            self._put()
        elif method == "DELETE":
            self._delete()
        else:
            client.send_page(400)

    def end_of_input(self) -> None:
        if self.client.body_left:
            self.client.close("remote_closure")
        else:
            # It may still listen.
            self.client.watch_read(False)

    # --- GET and HEAD -----------------------------------------------------------------------------

    def _get(self, docroot: bytes) -> None:
        uri = self.request.uri.encode("latin-1")
        if b"%" in uri:
            uri = unquote_to_bytes(uri)
        if uri[:1] != b"/" or b"/../" in uri or uri.partition(b"?")[0].endswith(b"/.."):
            self.client.send_page(403, "Bogus URL")
        elif b"??" in uri:
            self._get_many(docroot, uri)
        else:
            self._get_one(docroot, uri.partition(b"?")[0])

    def _get_one(self, docroot: bytes, uri: bytes) -> None:
        client, service, request = self.client, self.service, self.request
        path = docroot + uri
        client.state = "wait_stat"
        try:
            info = os.stat(path)
        except (OSError, ValueError):
            client.send_page(404)
            return
        is_file = stat.S_ISREG(info.st_mode)
        size = info.st_size
        modified = http_date(int(info.st_mtime))
        if not is_file:
            if stat.S_ISDIR(info.st_mode):
                self._get_directory(docroot, uri, modified)
            else:
                client.send_page(404)
            return
        known = self._known(modified, size)
        status, start, end = request.range(size)
        if known:
            status = 304
        head = Response(status)
        if status == 416:
            head.set("Content-Range", f"bytes */{size}" if size else "*")
            head.set("Content-Length", "0")
        head.set("Date", http_date(int(time.time())))
        if service.server_tokens:
            head.set("Server", SERVER)
        head.set("Last-Modified", modified)
        head.set("Accept-Ranges", "bytes")
        if status in (200, 206):
            head.set("Content-Type", mime_type(path) or "text/plain")
            if status == 206:
                head.set("Content-Range", f"bytes {start}-{end - 1}/{size}")
            head.set("Content-Length", str(end - start))
        client.setup_keepalive(head)
        if request.method == "HEAD" or status in (304, 416):
            client.state = "xfer_resp"
            client.send(head.to_bytes(), client.finished)
            return
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            client.send_page(503 if error.errno in (EMFILE, ENFILE) else 403)
            return
        client.send_file(head, (fd, start, end))

    def _known(self, modified: str, size: int | None) -> bool:
        """Whether the client says that it has just this already."""
        asked = self.request.values.get("if-modified-since")
        if not asked:
            return False
        if found := _LENGTH.search(asked):
            asked = asked[: found.start()] + asked[found.end() :]
            if size is not None and int(found[1]) and int(found[1]) != size:
                return False
        return asked == modified

    def _get_directory(self, docroot: bytes, uri: bytes, modified: str) -> None:
        client, service = self.client, self.service
        for name in service.index_files:
            index = uri + b"/" + os.fsencode(name)
            if os.path.isfile(docroot + index):
                self._get_one(docroot, index)
                return
        if not service.dirindexing:
            client.send_page(200, "Directory listing disabled")
            return
        uri = uri.rstrip(b"/") + b"/"
        try:
            names = sorted([*os.listdir(docroot + uri), b".", b".."])
        except OSError:
            client.send_page(403)
            return
        lines: list[str] = []
        for each in names:
            text = html.escape(each.decode("latin-1"))
            link = html.escape(quote(uri + each, safe="/!$&()*+,;=:@~-._"))
            if os.path.isdir(docroot + uri + each):
                lines.append(f"<b><a href='{link}/'>{text}</a></b><br />\n")
            else:
                lines.append(f"<a href='{link}'>{text}</a><br />\n")
        body = f"<html><body>{''.join(lines)}</body></html>".encode("latin-1")
        head = Response(200)
        head.set("Date", http_date(int(time.time())))
        if service.server_tokens:
            head.set("Server", SERVER)
        head.set("Last-Modified", modified)
        head.set("Content-Type", "text/html")
        head.set("Content-Length", str(len(body)))
        client.send_answer(head, body)

    def _get_many(self, docroot: bytes, uri: bytes) -> None:
        """Several files as one: /folder/??one,two?anything."""
        client, service = self.client, self.service
        base, _, rest = uri.rpartition(b"??") if uri.count(b"??") == 1 else uri.partition(b"??")
        names = rest.partition(b"?")[0].split(b",")
        if base[-1:] != b"/":
            client.send_page(500, "Base directory (before ??) must end in slash.")
        elif not service.enable_concatenate_get:
            client.send_page(403, "Multiple file serving isn't enabled")
        elif len(names) > MOST_CONCATENATED:
            client.send_page(403, "Too many files requested")
        elif any(b".." in name.split(b"/") for name in names):
            client.send_page(403, "Bogus filenames")
        elif not os.path.isdir(docroot + base):
            client.send_page(404, "Base directory not a directory")
        else:
            self._concatenate([docroot + base + name for name in names])

    def _concatenate(self, paths: list[bytes]) -> None:
        client, service = self.client, self.service
        kind = None
        newest = 0.0
        pieces: list[tuple[bytes, int]] = []
        for path in paths:
            try:
                info = os.stat(path)
            except (OSError, ValueError):
                info = None
            if info is None or not stat.S_ISREG(info.st_mode):
                client.send_page(404, "One or more file does not exist")
                return
            kind = kind or mime_type(path)
            newest = max(newest, info.st_mtime)
            pieces.append((path, info.st_size))
        modified = http_date(int(newest))
        known = self._known(modified, None)
        head = Response(304 if known else 200)
        if not known:
            head.set("Content-Length", str(sum(size for _, size in pieces)))
        head.set("Date", http_date(int(time.time())))
        if service.server_tokens:
            head.set("Server", SERVER)
        head.set("Last-Modified", modified)
        head.set("Content-Type", kind or "text/plain")
        client.setup_keepalive(head)
        if known or self.request.method == "HEAD":
            client.send(head.to_bytes(), client.finished)
            return
        client.send_files(head, NOTHING, _opened(pieces))

    # --- PUT --------------------------------------------------------------------------------------

    def _put(self) -> None:
        client, service, request = self.client, self.service, self.request
        if not service.enable_put:
            client.send_page(403)
            return
        if service.max_put_size and request.length > service.max_put_size:
            client.send_page(400, f"Content-length of {request.length} is invalid.")
            return
        found = _PUT_NAME.fullmatch(request.uri)
        if found is None or ".." in request.uri or service.docroot is None:
            client.send_page(400, "Invalid filename")
            return
        path, name = found[1], found[2]
        if service.min_put_directory:
            needed = [each for each in path.split("/") if each][: service.min_put_directory]
            if len(needed) < service.min_put_directory:
                client.send_page(400, "Does not meet minimum directory requirement")
                return
            if not self._verified("/".join([service.docroot, *needed])):
                client.send_page(404, "Base directory does not exist")
                return
        expected = request.get("expect")
        if client.body_left and expected is not None and "100-continue" in expected.lower():
            if request.chunked or request.version != "1.0":
                client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._open(service.docroot + path, name):
            client.send_page(500, "Internal error")
        elif not client.body_left:
            self.body_done()

    def _verified(self, folder: str) -> bool:
        """Whether a folder is there, or was."""
        known = self.client.server.verified_directories
        if folder in known:
            return True
        if not os.path.isdir(folder):
            return False
        if len(known) >= MOST_DIRECTORIES:
            known.clear()
        known.add(folder)
        return True

    def _open(self, folder: str, name: str) -> bool:
        """Open the file that is to be written, and make its folder if need be."""
        self._file = f"{folder}/{name}"
        flags = os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_TRUNC
        if self.service.enable_md5 and self.request.get("content-md5"):
            self._md5 = hashlib.md5(usedforsecurity=False)
            self._final = self._file
            self._file += f".{os.getpid()}.{random.randrange(0xFFFFFFFF)}.tmp"
            flags |= os.O_EXCL
        try:
            try:
                self._fd = os.open(self._file, flags, 0o644)
            except FileNotFoundError:
                os.makedirs(folder, 0o755, exist_ok=True)
                self._fd = os.open(self._file, flags, 0o644)
        except OSError as error:
            self.client.server.log(f"system error: Internal error ({error})")
            self._final = None
            return False
        return True

    def body(self, data: bytes) -> None:
        if self._fd < 0:
            return
        self._size += len(data)
        limit = self.service.max_chunked_request_size
        if self.request.chunked and limit and self._size > limit:
            self.client.close("max_chunked_request_size")
            return
        if self._md5 is not None:
            self._md5.update(data)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._failed("Error saving file", error)

    def _failed(self, what: str, error: OSError) -> None:
        self.client.server.log(f"system error: {what} ({error})")
        self.release()
        self.client.send_page(500, what)

    def body_done(self) -> None:
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            os.close(fd)
            if self._md5 is None or self._final is None:
                self.client.send_page(200)
                return
            actual = base64.b64encode(self._md5.digest()).decode().rstrip("=")
            expected = (self.request.get("content-md5") or "").strip().rstrip("=")
            if actual == expected:
                os.rename(self._file, self._final)
                self._final = None
                self.client.send_page(201)
                return
        except OSError as error:
            self._failed("Error saving file", error)
            return
        self.release()
        self.client.send_page(400, f"Content-MD5 mismatch, expected: {expected} actual: {actual}")

    # --- DELETE -----------------------------------------------------------------------------------

    def _delete(self) -> None:
        client, service = self.client, self.service
        uri = self.request.uri
        if not service.enable_delete:
            client.send_page(403)
            return
        if ".." in uri or not _DELETE_NAME.fullmatch(uri) or service.docroot is None:
            client.send_page(400, "Invalid filename")
            return
        try:
            os.unlink(service.docroot + uri)
        except FileNotFoundError:
            client.send_page(404)
        except OSError as error:
            client.send_page(400, str(error.strerror))
        else:
            client.send_page(204)

    def release(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        if self._final is not None:
            # What isn't checked isn't kept.
            self._final = None
            try:
                os.unlink(self._file)
            except OSError:
                pass
