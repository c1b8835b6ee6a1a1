"""web_server: files, folders, ranges, several files in one, PUT and DELETE."""

from __future__ import annotations

import base64
import hashlib
from email.utils import formatdate

from tests.perlbal.conversation import MODIFIED, Setting
from tests.perlbal.steps import (
    ask,
    file,
    get,
    hear,
    leave,
    manage,
    post,
    put,
    request,
    send,
    settled,
    shows,
    shut,
)
from tests.perlbal.tables import Table

FILES = {
    "docs/hello.txt": b"hello, world\n",
    "docs/empty.txt": b"",
    "docs/digits.bin": b"0123456789",
    "docs/page.html": b"<p>page</p>\n",
    "docs/style.css": b"p { }\n",
    "docs/code.js": b"f();\n",
    "docs/IMAGE.PNG": b"not a type in capitals",
    "docs/image.png": b"\x89PNG",
    "docs/noending": b"plain\n",
    "docs/two.tar.zip": b"PK",
    "docs/a b+c.txt": b"space and plus\n",
    "docs/per%cent.txt": b"percent\n",
    "docs/dots..txt": b"dots\n",
    "docs/caf\u00e9.txt": b"latin\n",
    "docs/.hidden": b"hidden\n",
    "docs/sub/index.html": b"<p>sub</p>\n",
    "docs/sub/other.html": b"<p>other</p>\n",
    "docs/bare/one.txt": b"1\n",
    "docs/bare/two.txt": b"2\n",
    "docs/second/home.htm": b"<p>home</p>\n",
    "docs/big.txt": b"0123456789abcdef" * 40_000,
    "secret.txt": b"SECRET\n",
}

WEBS = Setting(
    "webs",
    """
    CREATE SERVICE web
      SET role    = web_server
      SET listen  = {web}
      SET docroot = {folder}/docs
    ENABLE web

    CREATE SERVICE kept
      SET role    = web_server
      SET listen  = {kept}
      SET docroot = {folder}/docs/
      SET persist_client = on
      SET server_tokens  = off
      SET dirindexing    = on
      SET index_files    = index.html, home.htm
      SET enable_concatenate_get = on
    ENABLE kept

    CREATE SERVICE store
      SET role    = web_server
      SET listen  = {store}
      SET docroot = {folder}/docs
      SET persist_client = on
      SET enable_put     = on
      SET enable_delete  = on
      SET max_put_size   = 1k
    ENABLE store

    CREATE SERVICE deep
      SET role    = web_server
      SET listen  = {deep}
      SET docroot = {folder}/docs
      SET persist_client    = on
      SET enable_put        = on
      SET min_put_directory = 2
      SET enable_md5        = off
    ENABLE deep

    CREATE SERVICE rootless
      SET role   = web_server
      SET listen = {rootless}
      SET enable_concatenate_get = on
    ENABLE rootless
    """,
    services=("web", "kept", "store", "deep", "rootless"),
    files=FILES,
)

WEB = WEBS.at("web")
KEPT = WEBS.at("kept")
STORE = WEBS.at("store")
DEEP = WEBS.at("deep")

TABLE = Table()
row = TABLE.row

# --- files ----------------------------------------------------------------------------------------

for path in (
    "/hello.txt",
    "/empty.txt",
    "/page.html",
    "/style.css",
    "/code.js",
    "/IMAGE.PNG",
    "/image.png",
    "/noending",
    "/two.tar.zip",
    "/a%20b+c.txt",
    "/per%25cent.txt",
    "/dots..txt",
    "/caf%C3%A9.txt",
    "/.hidden",
    "/hello.txt?a=b&c=/../",
    "/hello.txt?a?b",
    "/%68ello.txt",
    "//hello.txt",
    "/./hello.txt",
    "/sub/../hello.txt",
    "/../secret.txt",
    "/%2e%2e/secret.txt",
    "/..%2fsecret.txt",
    "hello.txt",
    "/hello.txt/",
    "/nothing",
    "/nothing/at/all",
    "/hello.txt%00.html",
    "/hello.txt%zz",
    "/hello.txt%",
    "/HELLO.TXT",
    "http://elsewhere/hello.txt",
    "*",
):
    row(WEB, f"GET {path}", ask(get(path)))
row(
    WEB,
    "GET /sub/..",
    ask(get("/sub/..")),
    differs="no /.. at the end",
    ours=("HTTP/1.0 403 ", "Bogus URL"),
)
row(WEB, "GET of a file of 640,000 bytes", ask(get("/big.txt")))
row(KEPT, "GET of 1.1 stays", ask(get("/hello.txt")), ask(get("/page.html")), ask(get("/nothing")))
row(KEPT, "GET of 1.0 does not stay", ask(get("/hello.txt", version="1.0")))
row(
    KEPT, "GET of 1.0 that asks to", ask(get("/hello.txt", "Connection: keep-alive", version="1.0"))
)
row(KEPT, "GET with close", ask(get("/hello.txt", "Connection: close")))
row(KEPT, "a large file stays", ask(get("/big.txt")), ask(get("/hello.txt")))
row(WEB, "HEAD of a file", ask(request("HEAD", "/hello.txt")))
row(KEPT, "HEAD of a file stays", ask(request("HEAD", "/hello.txt")), ask(get("/hello.txt")))
row(KEPT, "HEAD of what is not there", ask(request("HEAD", "/nothing")), ask(get("/hello.txt")))
row(
    KEPT,
    "HEAD of a folder with a listing",
    ask(request("HEAD", "/bare/")),
    differs="no body to HEAD",
    ours=("timeout=30, max=100\r\n\r\n",),
)
for method in "OPTIONS", "TRACE", "BREW", "PUT", "DELETE":
    row(WEB, f"{method} where it is off", ask(request(method, "/hello.txt", "Content-Length: 0")))
row(WEB, "POST to a file", ask(post("/hello.txt", b"what")))
row(WEB, "without a docroot", ask(get("/hello.txt"), to="rootless"))
row(WEB, "out of no docroot", ask(get("/../hello.txt"), to="rootless"))
row(WEB, "several in one without a docroot", ask(get("/??a,b"), to="rootless"))
row(WEB, "two requests in one go", ask(get("/hello.txt") + get("/page.html")))
row(KEPT, "two requests in one go, kept", ask(get("/hello.txt") + get("/page.html")))
row(
    KEPT,
    "GET with a body",
    ask(request("GET", "/hello.txt", "Content-Length: 3", body=b"abc")),
    differs="an unread body closes",
    ours=("Connection: close", "hello, world"),
)
row(KEPT, "a request byte by byte", send(*[bytes([b]) for b in get("/hello.txt")]), hear())
row(KEPT, "the client leaves in the midst of a file", send(get("/big.txt")), leave(), settled())
row(KEPT, "the client shuts its side", send(get("/hello.txt")), shut(), hear(), alone=True)

# --- conditional requests and ranges --------------------------------------------------------------

DATE = formatdate(MODIFIED, usegmt=True)
OTHER = formatdate(MODIFIED + 1, usegmt=True)
for value in (
    DATE,
    OTHER,
    f"{DATE}; length=13",
    f"{DATE}; length=14",
    DATE.lower(),
    "Sunday, 09-Sep-01 01:46:40 GMT",
    "nonsense",
    "",
):
    row(KEPT, f"If-Modified-Since: {value}", ask(get("/hello.txt", f"If-Modified-Since: {value}")))
row(KEPT, "304 stays", ask(get("/hello.txt", f"If-Modified-Since: {DATE}")), ask(get("/page.html")))
row(KEPT, "304 to HEAD", ask(request("HEAD", "/hello.txt", f"If-Modified-Since: {DATE}")))
row(KEPT, "a folder, not modified", ask(get("/sub/", f"If-Modified-Since: {DATE}")))
for value in (
    "bytes=0-0",
    "bytes=2-5",
    "bytes=9-9",
    "bytes=0-9",
    "bytes=0-10",
    "bytes=5-",
    "bytes=0-",
    "bytes=9-100",
    "bytes=10-",
    "bytes=10-20",
    "bytes=5-4",
    "bytes=-",
    "bytes=-0",
    "bytes=-00",
    "bytes=0-" + "9" * 25,
    "bytes=" + "9" * 25 + "-",
    "bytes=0-1,3-4",
    "bytes = 0-1",
    "bytes=a-b",
    "lines=0-1",
    "BYTES=0-1",
):
    row(KEPT, f"Range: {value}", ask(get("/digits.bin", f"Range: {value}")))
row(
    KEPT,
    "a range with space behind it",
    ask(get("/digits.bin", "Range: bytes=0-1 ")),
    differs="space after a value",
    ours=("HTTP/1.0 206 ",),
)
row(
    KEPT,
    "a range with zeros before its numbers",
    ask(get("/digits.bin", "Range: bytes=00-01")),
    differs="Content-Range in plain numbers",
    ours=("Content-Range: bytes 0-1/10",),
)
row(KEPT, "a range of the last bytes", ask(get("/digits.bin", "Range: bytes=-3")))
row(KEPT, "a range stays", ask(get("/digits.bin", "Range: bytes=1-2")), ask(get("/hello.txt")))
row(KEPT, "416 stays", ask(get("/digits.bin", "Range: bytes=99-")), ask(get("/hello.txt")))
row(KEPT, "a range of HEAD", ask(request("HEAD", "/digits.bin", "Range: bytes=1-2")))
row(KEPT, "a range of an empty file", ask(get("/empty.txt", "Range: bytes=0-")))
row(KEPT, "a range of a large file", ask(get("/big.txt", "Range: bytes=300000-600000")))
row(
    KEPT,
    "a range of what was not modified",
    ask(get("/digits.bin", "Range: bytes=1-2", f"If-Modified-Since: {DATE}")),
)

# --- folders --------------------------------------------------------------------------------------

for path in "/sub/", "/sub", "/sub?x", "/bare/", "/second/", "/":
    row(WEB, f"the folder {path}", ask(get(path)))
for path in "/bare/", "/bare", "/second/", "/second":
    row(KEPT, f"the folder {path}, listed", ask(get(path)))
row(
    KEPT,
    "a listing of odd names",
    file("docs/odd/a b&<c>'d'.txt", b""),
    ask(get("/odd/")),
    differs="names in a list are escaped",
    ours=("<a href='/odd/a%20b&amp;%3Cc%3E%27d%27.txt'>a b&amp;&lt;c&gt;&#x27;d&#x27;.txt</a>",),
)
row(
    KEPT,
    "a NUL behind a folder",
    ask(get("/sub/%00")),
    differs="no /.. at the end",
    ours=("HTTP/1.0 404 ",),
)
row(KEPT, "a listing stays", ask(get("/bare/")), ask(get("/hello.txt")))

# --- several files in one -------------------------------------------------------------------------

# The original checks an errno that may be from an older call, and so sometimes answers 404.

for path in (
    "/??hello.txt,page.html",
    "/bare/??one.txt,two.txt",
    "/bare/??one.txt,two.txt?v=12",
    "/??style.css,hello.txt",
    "/??noending,style.css",
    "/??hello.txt",
    "/??hello.txt,nothing",
    "/??hello.txt,bare",
    "/??empty.txt,hello.txt",
    "/nothing/??hello.txt",
    "/hello.txt/??hello.txt",
    "/bare??one.txt",
    "/bare/??../secret.txt",
    "/bare/??one.txt,../hello.txt",
    "/bare/??sub/../../one.txt",
    "/??bare/one.txt,sub/index.html",
    "/??hello.txt,,page.html",
    "/??hello.txt,",
    "/??,hello.txt",
    "/??,,",
    "/??",
    "/bare/??",
    "/bare/???",
    "/??hello.txt?",
    "/??hello.txt?a??page.html",
    "/??bare/??one.txt",
    "/????hello.txt",
    "/??" + ",".join(["hello.txt"] * 100),
    "/??" + ",".join(["hello.txt"] * 101),
):
    row(KEPT, f"several: {path[:40]}, {len(path)} bytes", ask(get(path)))
row(
    KEPT,
    "several: the folder above",
    ask(get("/bare/??..")),
    differs="no /.. at the end",
    ours=("HTTP/1.0 403 ", "Bogus filenames"),
)
row(KEPT, "several, HEAD", ask(request("HEAD", "/??hello.txt,page.html")))
row(KEPT, "several, not modified", ask(get("/??hello.txt,page.html", f"If-Modified-Since: {DATE}")))
row(KEPT, "several, then another", ask(get("/??hello.txt,page.html")), ask(get("/digits.bin")))
row(WEB, "several, where it is off", ask(get("/??hello.txt,page.html")))

# --- PUT and DELETE -------------------------------------------------------------------------------


def md5(body: bytes) -> str:
    return "Content-MD5: " + base64.b64encode(hashlib.md5(body).digest()).decode()


row(STORE, "PUT of a new file", ask(put("/new/put1.txt", b"content")), shows("docs/new/put1.txt"))
row(STORE, "PUT over a file", ask(put("/p2", b"1st")), ask(put("/p2", b"2")), shows("docs/p2"))
row(STORE, "PUT of an empty file", ask(put("/p3", b"")), shows("docs/p3"))
row(
    STORE, "PUT in pieces", send(put("/p4", b"abcdef")[:-4], b"cd", b"ef"), hear(), shows("docs/p4")
)
row(STORE, "PUT with its sum", ask(put("/p5", b"good", md5(b"good"))), shows("docs/p5"))
row(STORE, "PUT with another sum", ask(put("/p6", b"good", md5(b"bad"))), shows("docs/p6"))
row(
    STORE,
    "PUT with a wrong sum over a file",
    file("docs/p7", b"old"),
    ask(put("/p7", b"good", md5(b"bad"))),
    shows("docs/p7"),
)
row(
    STORE,
    "PUT with nonsense for a sum",
    ask(put("/p8", b"good", "Content-MD5: x")),
    shows("docs/p8"),
)
row(STORE, "PUT that is too large", ask(put("/p9", b"x" * 1025)), shows("docs/p9"))
row(STORE, "PUT just as large", ask(put("/p10", b"x" * 1024)), shows("docs/p10"))
row(STORE, "PUT without a length", ask(request("PUT", "/p11")), shows("docs/p11"))
row(STORE, "PUT to a folder", ask(put("/sub", b"x")))
row(STORE, "PUT to a folder, with its sum", ask(put("/sub", b"x", md5(b"x"))), alone=True)
row(STORE, "PUT below a file", ask(put("/hello.txt/x", b"x")))
row(
    STORE,
    "PUT of a second file stays",
    ask(put("/p12", b"1")),
    ask(put("/p13", b"2")),
    shows("docs"),
)
for path in "/../x", "/a/../x", "/a b", "/a%20b", "/x..y", "/x?y", "/x:y", "/", "/sub/", "x":
    row(STORE, f"PUT {path}", ask(put(path, b"x")))
row(
    STORE,
    "the client leaves in the midst of a PUT",
    send(put("/p14", b"abcdef")[:-4]),
    settled(),
    leave(),
    settled(),
    shows("docs/p14"),
    differs="an interrupted PUT",
    ours=("docs/p14 b'ab'",),
)
row(
    STORE,
    "the client leaves in the midst of a PUT with a sum",
    send(put("/p15", b"abcdef", md5(b"abcdef"))[:-4]),
    settled(),
    leave(),
    settled(),
    shows("docs/p15"),
)
row(DEEP, "PUT where the folders are", ask(put("/sub/x/y", b"1")), shows("docs/sub/x"))
row(
    DEEP,
    "PUT where the first folders are",
    file("docs/d1/d2/f", b"0"),
    ask(put("/d1/d2/d3/x", b"1")),
    ask(put("/d1/d2/y", b"1")),
    shows("docs/d1/d2"),
)
row(DEEP, "PUT where they are not", ask(put("/d4/d5/x", b"1")), shows("docs/d4"))
row(DEEP, "PUT in too few", ask(put("/x-few", b"1")), shows("docs/x-few"))
row(
    DEEP,
    "PUT with a wrong sum that nobody checks",
    file("docs/e/e/f", b""),
    ask(put("/e/e/x", b"good", md5(b"bad"))),
    shows("docs/e/e/x"),
)
CHUNKED = request("PUT", "/c1", "Transfer-Encoding: chunked")
row(
    STORE,
    "PUT in chunks",
    send(CHUNKED, b"3\r\nabc\r\n", b"4\r\ndefg\r\n", b"0\r\n\r\n"),
    hear(),
    shows("docs/c1"),
)
row(
    STORE,
    "PUT in chunks that say 100 Continue",
    send(request("PUT", "/c2", "Transfer-Encoding: chunked", "Expect: 100-continue")),
    send(b"3\r\nabc\r\n0\r\n\r\n"),
    hear(),
    shows("docs/c2"),
)
row(
    STORE,
    "PUT in chunks, none",
    ask(request("PUT", "/c3", "Transfer-Encoding: chunked", body=b"0\r\n\r\n")),
    shows("docs/c3"),
)
row(
    DEEP,
    "PUT in chunks, where the folders are not",
    ask(request("PUT", "/c4/c5/x", "Transfer-Encoding: chunked", body=b"1\r\nx\r\n0\r\n\r\n")),
    shows("docs/c4"),
    differs="chunks do not evade limits",
    ours=("HTTP/1.0 404 ", "Base directory does not exist", "docs/c4 is not there"),
)
row(
    STORE,
    "PUT in chunks that is too large",
    send(request("PUT", "/c6", "Transfer-Encoding: chunked", md5(b"y" * 1028)), b"400\r\n"),
    send(b"y" * 1024 + b"\r\n", b"4\r\nyyyy\r\n0\r\n\r\n"),
    hear(),
    shows("docs/c6"),
    differs="chunks do not evade limits",
    ours=("HTTP/1.0 400 ", "Content-length of 1028 is invalid.", "docs/c6 is not there"),
)
row(STORE, "DELETE", file("docs/gone", b"x"), ask(request("DELETE", "/gone")), shows("docs/gone"))
row(
    STORE, "PURGE, where DELETE is on", ask(request("PURGE", "/hello.txt")), shows("docs/hello.txt")
)
row(STORE, "DELETE of nothing", ask(request("DELETE", "/never")))
row(STORE, "DELETE of a folder", ask(request("DELETE", "/bare")), shows("docs/bare"))
row(STORE, "DELETE, and on", ask(request("DELETE", "/never")), ask(get("/hello.txt")))
for path in "/../secret.txt", "/a b", "/x..y", "/a/../hello.txt", "/":
    row(STORE, f"DELETE {path}", ask(request("DELETE", path)), shows("secret.txt"))

# --- types ----------------------------------------------------------------------------------------

row(
    WEB,
    "a type that is set",
    ask(get("/digits.bin")),
    manage("MIME SET bin application/x-bin"),
    ask(get("/digits.bin"), by="b"),
    manage("MIME REMOVE bin"),
    ask(get("/digits.bin"), by="c"),
    alone=True,
)
