"""The web server: files of a folder, read and written."""

from __future__ import annotations

import html
import os
import re
import stat
import time
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from examples.perlbal.clients import Exchange
from examples.perlbal.files import NewFile, SentFiles, code_of, open_file, opened
from examples.perlbal.heads import SERVER, Response, http_date, wire

MOST_CONCATENATED: Final = 100
MOST_DIRECTORIES: Final = 10_000
_PUT_NAME: Final = re.compile(r"((?:/[\w.-]+)*)/[\w.-]+", re.ASCII)
_DELETE_NAME: Final = re.compile(r"(?:/[\w.-]+)+", re.ASCII)
_EXTENSION: Final = re.compile(rb"\.(\w+)$", re.ASCII)
_MANY: Final = re.compile(rb"(.+)\?\?(.+?)(?:\?.+)?", re.DOTALL)
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


class WebExchange(Exchange):
    _file: NewFile | None = None
    """What a PUT is writing."""
    _size = 0
    """Bytes of it that have come."""

    def start(self) -> None:
        service = self.service
        method = self.request.method
        if method in ("GET", "HEAD"):
            self._get(service.docroot)
        elif method == "PUT" and service.enable_put:
            self._put()
        elif method == "DELETE" and service.enable_delete:
            self._delete()
        else:
            self.client.send_page(403 if method in ("PUT", "DELETE") else 400)

    def end_of_input(self) -> None:
        if self.client.body_left:
            self.client.close("remote_closure")
        else:
            # It may still listen.
            self.client.watch_read(False)

    # --- GET and HEAD -----------------------------------------------------------------------------

    def _get(self, folder: str | None) -> None:
        uri = self.request.uri.encode("latin-1")
        if b"%" in uri:
            uri = unquote_to_bytes(uri)
        if uri[:1] != b"/" or b"/../" in uri or uri.partition(b"?")[0].endswith(b"/.."):
            self.client.send_page(403, "Bogus URL")
        elif folder is None:
            self.client.send_page(500, "Docroot unconfigured")
        elif b"??" in uri:
            self._get_many(os.fsencode(folder), uri)
        else:
            self._get_one(os.fsencode(folder), uri.partition(b"?")[0])

    def _get_one(self, docroot: bytes, uri: bytes) -> None:
        client, request = self.client, self.request
        path = docroot + uri
        client.state = "wait_stat"
        fd = -1
        try:
            info = os.stat(path)
            if request.method == "GET" and stat.S_ISREG(info.st_mode):
                fd, info = open_file(path)
        except (OSError, ValueError) as error:
            return client.send_page(code_of(error))
        # Not st_mtime, a float: one just before a second would be that second.
        size, modified = info.st_size, http_date(info[stat.ST_MTIME])
        if stat.S_ISDIR(info.st_mode):
            return self._get_directory(docroot, uri, modified)
        if not stat.S_ISREG(info.st_mode):
            return client.send_page(404)
        known = self._known(modified, size)
        status, start, end = (304, 0, 0) if known else request.range(size)
        head = Response(status)
        if status == 416:
            head.set("Content-Range", f"bytes */{size}" if size else "*")
            head.set("Content-Length", "0")
        self._say_what_it_is(head, modified)
        head.set("Accept-Ranges", "bytes")
        if status in (200, 206):
            head.set("Content-Type", wire(mime_type(path) or "text/plain"))
            if status == 206:
                head.set("Content-Range", f"bytes {start}-{end - 1}/{size}")
            head.set("Content-Length", str(end - start))
        if fd >= 0:
            client.send_file(head, (fd, start, end))
        else:
            client.send_answer(head)

    def _say_what_it_is(self, head: Response, modified: str) -> None:
        head.set("Date", http_date(int(time.time())))
        if self.service.server_tokens:
            head.set("Server", SERVER)
        head.set("Last-Modified", modified)

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
                return self._get_one(docroot, index)
        if not service.dirindexing:
            return client.send_page(200, "Directory listing disabled")
        uri = uri.rstrip(b"/") + b"/"
        try:
            names = sorted([*os.listdir(docroot + uri), b".", b".."])
        except OSError as error:
            return client.send_page(code_of(error))
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
        self._say_what_it_is(head, modified)
        head.set("Content-Type", "text/html")
        head.set("Content-Length", str(len(body)))
        client.send_answer(head, body)

    def _get_many(self, docroot: bytes, uri: bytes) -> None:
        """Several files as one: /folder/??one,two?anything."""
        client, service = self.client, self.service
        found = _MANY.fullmatch(uri)
        base, names = (found[1], found[2].rstrip(b",")) if found else (b"", b"")
        files = names.split(b",") if names else []
        if base[-1:] != b"/":
            client.send_page(500, "Base directory (before ??) must end in slash.")
        elif not service.enable_concatenate_get:
            client.send_page(403, "Multiple file serving isn't enabled")
        elif len(files) > MOST_CONCATENATED:
            client.send_page(403, "Too many files requested")
        elif any(b".." in name.split(b"/") for name in files):
            client.send_page(403, "Bogus filenames")
        elif not os.path.isdir(docroot + base):
            client.send_page(404, "Base directory not a directory")
        else:
            self._concatenate([docroot + base + name for name in files])

    def _concatenate(self, paths: list[bytes]) -> None:
        client = self.client
        try:
            found = [(path, os.stat(path)) for path in paths]
            if not all(stat.S_ISREG(info.st_mode) for _, info in found):
                raise FileNotFoundError
        except (OSError, ValueError):
            return client.send_page(404, "One or more file does not exist")
        modified = http_date(max([0, *(info[stat.ST_MTIME] for _, info in found)]))
        known = self._known(modified, None)
        head = Response(304 if known else 200)
        if not known:
            head.set("Content-Length", str(sum(info.st_size for _, info in found)))
        self._say_what_it_is(head, modified)
        kinds = filter(None, map(mime_type, paths))
        head.set("Content-Type", wire(next(kinds, "text/plain")))
        if known or self.request.method == "HEAD":
            return client.send_answer(head)
        try:
            files = SentFiles(client, opened(found))
        except OSError as error:
            return client.send_page(code_of(error))
        client.send_files(head, files)

    # --- PUT --------------------------------------------------------------------------------------

    def _put(self) -> None:
        client, service, request = self.client, self.service, self.request
        if self._is_too_long(request.length):
            return
        found = _PUT_NAME.fullmatch(request.uri)
        if found is None or ".." in request.uri or service.docroot is None:
            return client.send_page(400, "Invalid filename")
        if service.min_put_directory:
            needed = [each for each in found[1].split("/") if each][: service.min_put_directory]
            if len(needed) < service.min_put_directory:
                return client.send_page(400, "Does not meet minimum directory requirement")
            if not self._verified("/".join([service.docroot, *needed])):
                return client.send_page(404, "Base directory does not exist")
        self.send_continue()
        md5 = request.get("content-md5") if service.enable_md5 else None
        try:
            self._file = NewFile(service.docroot + request.uri, md5 or "")
        except OSError as error:
            return self._failed("Internal error", error)
        if not client.body_left:
            self.body_done()

    def _is_too_long(self, length: int) -> bool:
        """Whether so many bytes are more than the service takes: then that is answered."""
        too_long = 0 < self.service.max_put_size < length
        if too_long:
            self.release()
            self.client.send_page(400, f"Content-length of {length} is invalid.")
        return too_long

    def _verified(self, folder: str) -> bool:
        """Whether a folder is there, or was."""
        known = self.client.server.verified_directories
        if folder not in known and os.path.isdir(folder):
            if len(known) >= MOST_DIRECTORIES:
                known.clear()
            known.add(folder)
        return folder in known

    def _failed(self, what: str, error: OSError) -> None:
        self.client.server.log(f"system error: {what} ({error})")
        self.release()
        self.client.send_page(500, what)

    def body(self, data: bytes) -> None:
        if self._file is None:
            return
        self._size += len(data)  # Of a chunked body nobody has told it before.
        if not self._is_too_long(self._size):
            try:
                self._file.write(data)
            except OSError as error:
                self._failed("Error saving file", error)

    def body_done(self) -> None:
        if self._file is not None:
            try:
                answer = self._file.finish()
            except OSError as error:
                return self._failed("Error saving file", error)
            self.release()
            self.client.send_page(*answer)

    def release(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.abandon()

    # --- DELETE -----------------------------------------------------------------------------------

    def _delete(self) -> None:
        client, docroot, uri = self.client, self.service.docroot, self.request.uri
        if ".." in uri or not _DELETE_NAME.fullmatch(uri) or docroot is None:
            return client.send_page(400, "Invalid filename")
        try:
            os.unlink(docroot + uri)
        except FileNotFoundError:
            client.send_page(404)
        except OSError as error:
            client.send_page(400, str(error.strerror))
        else:
            client.send_page(204)
