"""reverse_proxy: the backend names a file, a URL or another service that has the answer."""

from __future__ import annotations

from email.utils import formatdate

from tests.perlbal.backends import Answer
from tests.perlbal.conversation import MODIFIED, Setting
from tests.perlbal.steps import (
    answered,
    ask,
    asked,
    begun,
    closing,
    connect,
    file,
    get,
    good,
    hear,
    hear_or_wait,
    held,
    in_two,
    leave,
    manage,
    opens,
    post,
    raw,
    reply,
    request,
    send,
    serve,
    settled,
    sockets,
)
from tests.perlbal.tables import Table

REPROXIES = Setting(
    "reproxies",
    """
    CREATE POOL one
      POOL one ADD {a}

    CREATE SERVICE proxy
      SET role   = reverse_proxy
      SET listen = {proxy}
      SET pool   = one
      SET persist_client  = on
      SET persist_backend = on
      SET enable_reproxy  = on
    ENABLE proxy

    CREATE SERVICE caching
      SET role   = reverse_proxy
      SET listen = {caching}
      SET pool   = one
      SET persist_client = on
      SET enable_reproxy = on
      SET reproxy_cache_maxsize = 2
    ENABLE caching

    CREATE SERVICE web
      SET role    = web_server
      SET docroot = {folder}/docs
      SET persist_client = on
    ENABLE web

    CREATE SERVICE other
      SET role = reverse_proxy
      SET pool = one
    ENABLE other
    """,
    services=("proxy", "caching"),
    backends=("a", "b", "c"),
    dead=("dead",),
    files={
        "docs/file.txt": b"0123456789",
        "docs/empty.txt": b"",
        "docs/big.bin": b"0123456789abcdef" * 40_000,
        "docs/page": b"from the web server\n",
    },
)

PROXY = REPROXIES.at("proxy")
CACHING = REPROXIES.at("caching")

CHUNKED = "Transfer-Encoding: chunked"
NO_CHUNKS = b"0\r\n\r\n"

TABLE = Table()
row = TABLE.row


def to_file(name: str, *fields: str, status: str = "200 OK") -> Answer:
    return good("", f"X-REPROXY-FILE: @folder@/docs/{name}", *fields, status=status)


def to(urls: str, *fields: str, status: str = "200 OK", body: str = "") -> Answer:
    return good(body, f"X-REPROXY-URL: {urls}", *fields, status=status)


# --- files ----------------------------------------------------------------------------------------

row(PROXY, "the backend is told what it may do", ask(get("/")))
row(PROXY, "a file", serve(to_file("file.txt", "Content-Type: x/y")), ask(get("/")), ask(get("/2")))
row(PROXY, "a large file", serve(to_file("big.bin")), ask(get("/")), ask(get("/2")))
row(PROXY, "a file that is not there", serve(to_file("none")), ask(get("/")), ask(get("/2")))
row(PROXY, "an empty file", serve(to_file("empty.txt")), ask(get("/")))
row(
    PROXY,
    "a folder",
    serve(to_file("")),
    send(get("/")),
    hear_or_wait(),
    alone=True,
    differs="a directory is not a file",
    ours=("HTTP/1.0 404 ",),
)
row(
    PROXY,
    "a file, field in lower case",
    serve(good("", "x-reproxy-file: @folder@/docs/file.txt")),
    ask(get("/")),
)
row(PROXY, "a file to HEAD", serve(to_file("file.txt")), ask(request("HEAD", "/")), ask(get("/2")))
row(PROXY, "a file to POST", serve(to_file("file.txt")), ask(post("/", b"abc")), ask(get("/2")))
row(
    PROXY,
    "a file with 204",
    serve(reply("204 No Content", "X-REPROXY-FILE: @folder@/docs/file.txt")),
    ask(get("/")),
)
row(
    PROXY,
    "a file with 304",
    serve(reply("304 Not Modified", "X-REPROXY-FILE: @folder@/docs/file.txt")),
    ask(get("/")),
    differs="the length of the new body",
    ours=("HTTP/1.0 200 OK\r\n", "Content-Length: 10"),
)
row(PROXY, "a file with 404", serve(to_file("file.txt", status="404 Not Found")), ask(get("/")))
row(
    PROXY,
    "a file of the size that was expected",
    serve(to_file("file.txt", "X-REPROXY-EXPECTED-SIZE: 10")),
    ask(get("/")),
)
row(
    PROXY,
    "a file of another size",
    serve(to_file("file.txt", "X-REPROXY-EXPECTED-SIZE: 11")),
    ask(get("/")),
)
for each in ("0", "06", "010", "nonsense"):
    expected = f"X-REPROXY-EXPECTED-SIZE: {each}"
    row(PROXY, f"a file, and {expected}", serve(to_file("file.txt", expected)), ask(get("/")))
    row(
        PROXY,
        f"a URL, and {expected}",
        serve(good("from b"), at="b"),
        serve(to("http://@b@/", expected)),
        ask(get("/")),
    )
row(PROXY, "no file at all", serve(good("x", "X-REPROXY-FILE:")), ask(get("/")))
row(PROXY, "no file and no URL", serve(good("x", "X-REPROXY-URL: ")), ask(get("/")))
row(PROXY, "no service", serve(good("x", "X-REPROXY-SERVICE: ")), ask(get("/")))
row(
    PROXY,
    "a URL's length takes the place of the first answer's",
    serve(good("from b"), at="b"),
    serve(reply("201 Made", "X-REPROXY-URL: http://@b@/", "Content-Length: 0", "Location: here")),
    ask(get("/")),
)
row(PROXY, "no file at all, but a URL", serve(to("http://@b@/", "X-REPROXY-FILE:")), ask(get("/")))
row(
    PROXY,
    "a file, and cookies with it",
    serve(to_file("file.txt", "Set-Cookie: a=1", "Set-Cookie: b=2")),
    ask(get("/")),
)
row(
    PROXY,
    "a file instead of a body",
    serve(good("this is dropped", "X-REPROXY-FILE: @folder@/docs/file.txt")),
    ask(get("/")),
    ask(get("/2")),
    differs="a dropped body is read",
    ours=("0123456789", "#1 GET /2 "),
)
for value in "bytes=2-5", "bytes=5-", "bytes=20-", "bytes=0-1,3-4", "bytes=9-99":
    row(
        PROXY,
        f"a file's {value}",
        serve(to_file("file.txt")),
        ask(get("/", f"Range: {value}")),
        ask(get("/2")),
    )
row(
    PROXY,
    "a file's range to HEAD",
    serve(to_file("file.txt")),
    ask(request("HEAD", "/", "Range: bytes=1-2")),
)

row(
    PROXY,
    "a file instead of chunks",
    serve(reply("200 OK", "X-REPROXY-FILE: @folder@/docs/file.txt", CHUNKED, body=NO_CHUNKS)),
    ask(get("/")),
    ask(get("/2")),
    differs="the length of the new body",
    ours=(
        "HTTP/1.0 200 OK\r\nAccept-Ranges: bytes\r\nContent-Length: 10\r\nConnection: keep-alive",
    ),
)

# --- URLs -----------------------------------------------------------------------------------------

there = serve(good("from b", "X-B: 1", "Content-Type: b/b"), at="b")
row(
    PROXY,
    "a URL",
    there,
    serve(to("http://@b@/path?x=1", "X-A: 1", "Content-Type: a/a")),
    ask(get("/")),
    ask(get("/2")),
)
row(
    PROXY,
    "a URL in capitals, and another",
    there,
    serve(to("HTTP://@b@/1 http://@b@/2")),
    ask(get("/")),
    differs="hosts in any form",
    ours=("GET /1 HTTP/1.0", "from b"),
)
row(PROXY, "a URL without a path", there, serve(to("http://@b@")), ask(get("/")))
row(
    PROXY,
    "a URL instead of chunks",
    there,
    serve(reply("200 OK", "X-REPROXY-URL: http://@b@/", CHUNKED, body=NO_CHUNKS)),
    ask(get("/")),
    ask(get("/2")),
    differs="the length of the new body",
    ours=("HTTP/1.0 200 OK\r\nContent-Length: 6\r\nConnection: keep-alive",),
)
row(
    PROXY,
    "a URL that has chunks",
    serve(closing(reply("200 OK", CHUNKED, body=b"6\r\nfrom b\r\n" + NO_CHUNKS)), at="b"),
    serve(to("http://@b@/", "X-A: 1")),
    ask(get("/")),
    differs="the length of the new body",
    ours=("HTTP/1.0 200 OK\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n",),
)
row(
    PROXY,
    "only Range and Host go along",
    there,
    serve(to("http://@b@/")),
    ask(get("/", "X-Thing: 1", "Range: bytes=0-1", "Cookie: c=d", "Accept: x")),
)
row(
    PROXY,
    "a URL to HEAD",
    serve(reply("200 OK", "Content-Length: 6"), at="b"),
    serve(to("http://@b@/")),
    ask(request("HEAD", "/")),
    ask(get("/2")),
)
row(PROXY, "a URL to POST", there, serve(to("http://@b@/")), ask(post("/", b"abc")), ask(get("/2")))
row(
    PROXY,
    "a URL with 204",
    there,
    serve(reply("204 No Content", "X-REPROXY-URL: http://@b@/")),
    ask(get("/")),
)
row(
    PROXY,
    "a URL with 304",
    there,
    serve(reply("304 Not Modified", "X-REPROXY-URL: http://@b@/")),
    ask(get("/")),
    differs="the length of the new body",
    ours=("HTTP/1.0 200 OK\r\n", "Content-Length: 6", "from b"),
)
for what, fields, differs in (
    ("says so", ("Content-Length: 0",), ""),
    ("doesn't", (), "the length of the new body"),
):
    row(
        PROXY,
        f"the URL has no content, and {what}",
        serve(reply("204 No Content", *fields), at="b"),
        serve(to("http://@b@/")),
        ask(get("/")),
        ask(get("/2")),
        differs=differs,
        ours=("HTTP/1.0 200 OK\r\n", "Content-Length: 0\r\n", "Connection: keep-alive\r\n"),
    )
row(
    PROXY,
    "a URL with bytes that are no ASCII",
    there,
    serve(to("http://@b@/\xc3\xa0\xc2\x85.jpg")),
    ask(get("/")),
)
row(
    PROXY,
    "a URL with 404 keeps it",
    there,
    serve(to("http://@b@/", status="404 Gone")),
    ask(get("/")),
)
row(
    PROXY,
    "the first URL's host is down",
    there,
    serve(to("http://@dead@/1 http://@b@/2")),
    ask(get("/")),
)
for title, answer, differs in (
    ("has nothing to say", closing(raw(b"")), "a lost backend closes its client"),
    ("talks nonsense", raw(b"what is this\r\n\r\n"), "garbage is a 502"),
):
    row(
        PROXY,
        f"the first URL's host {title}",
        serve(answer, at="b"),
        serve(good("from c"), at="c"),
        serve(to("http://@b@/1 http://@c@/2")),
        send(get("/")),
        asked(at="b"),
        hear_or_wait(),
        alone=True,
        differs=differs,
        ours=("GET /2 HTTP/1.0", "from c"),
    )
row(
    PROXY,
    "the first URL is 404",
    serve(good("no", status="404 No"), at="b"),
    serve(good("from c"), at="c"),
    serve(to("http://@b@/1 http://@c@/2")),
    ask(get("/")),
    ask(get("/2")),
)
row(
    PROXY,
    "the first URL is 500",
    serve(good("no", status="500 No"), at="b"),
    serve(good("from c"), at="c"),
    serve(to("http://@b@/1 http://@c@/2")),
    ask(get("/")),
)
row(
    PROXY,
    "two URLs of one host",
    serve(good("no", status="404 No"), good("yes"), at="b"),
    serve(to("http://@b@/1 http://@b@/2")),
    ask(get("/")),
)
row(
    PROXY,
    "no URL is good",
    serve(good("no", status="404 No"), at="b"),
    serve(to("http://@b@/1 http://@dead@/2")),
    ask(get("/")),
    ask(get("/2")),
)
row(PROXY, "no host is up", serve(to("http://@dead@/1")), ask(get("/")), ask(get("/2")))
row(PROXY, "no URL at all", serve(to("nonsense")), ask(get("/")))
row(PROXY, "another scheme", serve(to("gopher://@b@/ https://@b@/")), ask(get("/")))
row(
    PROXY,
    "the size that was expected",
    there,
    serve(to("http://@b@/", "X-REPROXY-EXPECTED-SIZE: 6")),
    ask(get("/")),
)
row(
    PROXY,
    "another size, then a good one",
    there,
    serve(good("longer from c"), at="c"),
    serve(to("http://@b@/ http://@c@/", "X-REPROXY-EXPECTED-SIZE: 13")),
    ask(get("/")),
)
row(
    PROXY,
    "206 is taken over",
    serve(
        good("rom", "Content-Range: bytes 1-3/6", "Accept-Ranges: bytes", status="206 Part"), at="b"
    ),
    serve(to("http://@b@/")),
    ask(get("/", "Range: bytes=1-3")),
)
row(
    PROXY,
    "206 for 206 has its own reason",
    serve(good("rom", "Content-Range: bytes 1-3/6", status="206 Part"), at="b"),
    serve(to("http://@b@/", status="206 Some")),
    ask(get("/", "Range: bytes=1-3")),
)
row(
    PROXY,
    "416 is taken over",
    serve(good("", "Content-Range: bytes */6", status="416 No"), at="b"),
    serve(to("http://@b@/")),
    ask(get("/", "Range: bytes=9-")),
)
row(
    PROXY,
    "a body instead of which the URL's is sent",
    there,
    serve(to("http://@b@/", body="dropped")),
    ask(get("/")),
    ask(get("/2")),
    differs="a dropped body is read",
    ours=("from b", "#1 GET /2 "),
)
row(
    PROXY,
    "a URL's connection is used again",
    serve(good("1", "Connection: keep-alive", version="1.0"), good("2"), at="b"),
    serve(to("http://@b@/1"), to("http://@b@/2")),
    ask(get("/")),
    ask(get("/")),
)
row(
    PROXY,
    "a URL that redirects once more is not followed",
    serve(to("http://@c@/"), at="b"),
    serve(to("http://@b@/")),
    ask(get("/")),
)
row(
    PROXY,
    "a URL's connection that was kept and ends at the next request is no host that is down",
    serve(good("1"), closing(raw(b"")), good("2"), at="b"),
    serve(to("http://@b@/1"), to("http://@b@/2")),
    ask(get("/1")),
    send(get("/2")),
    asked(2, at="b"),
    hear_or_wait(),
    alone=True,
    differs="a lost backend closes its client",
    ours=("#2 GET /2 ", "HTTP/1.0 200 OK\r\n", "\r\n\r\n2"),
)
row(
    PROXY,
    "a URL of 300,000 bytes",
    serve(good(b"0123456789" * 30_000), at="b"),
    serve(to("http://@b@/")),
    ask(get("/")),
    ask(get("/2")),
)
row(
    PROXY,
    "a URL in two pieces",
    serve(in_two("x", good("first and second"), 45), at="b"),
    serve(to("http://@b@/")),
    send(get("/")),
    begun(at="b"),
    opens("x", at="b"),
    hear(),
)
row(
    PROXY,
    "a URL without a length",
    serve(closing(reply("200 OK", body=b"to the end")), at="b"),
    serve(to("http://@b@/")),
    ask(get("/")),
)
row(
    PROXY,
    "a URL that ends within its body",
    serve(closing(reply("200 OK", "Content-Length: 9", body=b"half")), at="b"),
    serve(to("http://@b@/")),
    ask(get("/", "Connection: close")),
    alone=True,
)
row(
    PROXY,
    "the client leaves while the URL thinks",
    serve(held("x", good("late")), at="b"),
    serve(to("http://@b@/")),
    send(get("/")),
    asked(at="b"),
    leave(),
    settled(),
    ask(get("/2"), by="next"),
    alone=True,
)
row(
    PROXY,
    "both, a file and a URL",
    there,
    serve(good("", "X-REPROXY-FILE: @folder@/docs/file.txt", "X-REPROXY-URL: http://@b@/")),
    ask(get("/")),
)
row(
    PROXY,
    "REPROXY_STATE of a host whose connection is kept",
    serve(to("http://@b@/1")),
    ask(get("/1")),
    manage("REPROXY_STATE", blur=r"(?<=localport=)\d+|(?<=BackendHTTP)\S+"),
    alone=True,
)
row(
    PROXY,
    "REPROXY_STATE of a host whose kept connection is in use again",
    serve(good("1"), in_two("x", good("2"), -1), at="b"),
    serve(to("http://@b@/1"), to("http://@b@/2")),
    ask(get("/1")),
    send(get("/2")),
    begun(at="b"),
    sockets,
    manage("REPROXY_STATE", blur=r"(?<=localport=)\d+|(?<=client=)\d+"),
    opens("x", at="b"),
    hear(),
    alone=True,
)
row(
    PROXY,
    "STATES while a URL is asked for",
    serve(held("x", good("1")), at="b"),
    serve(to("http://@b@/1")),
    send(get("/1")),
    asked(at="b"),
    manage("STATES"),
    sockets,
    opens("x", at="b"),
    hear(),
    alone=True,
)
row(
    PROXY,
    "SOCKS of a file that the client is slow to take",
    file("big", bytes(9_000_000)),
    serve(good("", "X-REPROXY-FILE: @folder@/big")),
    connect("slow", buffer=4096),
    send(get("/"), by="slow"),
    answered(1),
    sockets,
    manage("SOCKS SUMMARY", "STATES"),
    leave("slow"),
    alone=True,
)
row(
    PROXY,
    "no more connections than are allowed",
    manage("SERVER max_reproxy_connections({b}) = 1", "REPROXY_STATE"),
    serve(held("x", good("1")), good("2"), at="b"),
    serve(to("http://@b@/1"), to("http://@b@/2")),
    send(get("/1"), by="one"),
    asked(at="b"),
    answered(1),
    send(get("/2"), by="two"),
    answered(2),
    manage("REPROXY_STATE", blur=r"(?<=localport=)\d+|(?<=client=)\d+"),
    opens("x", at="b"),
    hear("one"),
    hear("two"),
    alone=True,
    differs="max_reproxy_connections with its host",
    ours=("SERVER max_reproxy_connections(127.0.0.1:<b>) = 1", "clients_queued 127.0.0.1:<b> 1"),
)

# --- services -------------------------------------------------------------------------------------

row(PROXY, "a service", serve(good("", "X-REPROXY-SERVICE: web")), ask(get("/page")))
row(
    PROXY,
    "a service, and on",
    serve(good("", "X-REPROXY-SERVICE: web")),
    ask(get("/page")),
    ask(get("/2")),
    differs="back to the first service",
    ours=("from the web server", "#1 GET /2 "),
)
row(
    PROXY, "a service that is none", serve(good("", "X-REPROXY-SERVICE: nobody")), ask(get("/page"))
)
row(
    PROXY,
    "a service that asks again",
    serve(good("", "X-REPROXY-SERVICE: other"), good("2nd")),
    ask(get("/")),
    alone=True,
    differs="back to the first service",
    ours=("keep-alive", "2nd"),
)

# --- the cache ------------------------------------------------------------------------------------

DATE = formatdate(MODIFIED, usegmt=True)


def cached(urls: str, *fields: str, named: str = "Last-Modified Content-Type") -> Answer:
    return to(
        urls,
        f"X-REPROXY-CACHE-FOR: 60; {named}",
        f"Last-Modified: {DATE}",
        "Content-Type: a/a",
        *fields,
    )


row(
    CACHING,
    "the second time the backend is not asked",
    serve(cached("http://@b@/1")),
    ask(get("/c1")),
    ask(get("/c1")),
    alone=True,
    any_order=True,
)
row(
    CACHING,
    "only the named fields are kept",
    serve(cached("http://@b@/1", "X-One: 1", "X-Two: 2", named="X-Two last-modified")),
    ask(get("/c2")),
    ask(get("/c2")),
    alone=True,
    any_order=True,
)
row(
    CACHING,
    "another Host is another entry",
    serve(cached("http://@b@/1")),
    ask(get("/c3", "Host: one")),
    ask(get("/c3", "Host: two")),
    alone=True,
    any_order=True,
)
row(
    CACHING,
    "another query is another entry",
    serve(cached("http://@b@/1")),
    ask(get("/c4?1")),
    ask(get("/c4?2")),
    alone=True,
    any_order=True,
)
row(
    CACHING,
    "not modified, word for word",
    serve(cached("http://@b@/1")),
    ask(get("/c5")),
    ask(get("/c5", f"If-Modified-Since: {DATE}")),
    ask(get("/c5", "If-Modified-Since: x")),
    alone=True,
    any_order=True,
)
row(
    CACHING,
    "the oldest goes",
    *[serve(cached("http://@b@/1"))] * 4,
    *[ask(get(f"/c{n}")) for n in (6, 7, 8, 6, 8)],
    alone=True,
    any_order=True,
)
row(
    CACHING,
    "HEAD from the cache",
    serve(cached("http://@b@/1")),
    ask(get("/c9")),
    serve(reply("200 OK", "Content-Length: 6"), at="b"),
    ask(request("HEAD", "/c9")),
    alone=True,
    any_order=True,
)
row(
    CACHING,
    "for no time at all",
    serve(to("http://@b@/1", "X-REPROXY-CACHE-FOR: 0; X")),
    ask(get("/c10")),
    ask(get("/c10")),
    manage("SHOW SERVICE caching", order="any"),
    alone=True,
    any_order=True,
)
row(
    CACHING,
    "without names",
    serve(to("http://@b@/1", "X-REPROXY-CACHE-FOR: 60")),
    ask(get("/c11")),
    alone=True,
    any_order=True,
)
row(
    CACHING,
    "without names, with a comma",
    serve(to("http://@b@/1", "X-REPROXY-CACHE-FOR: 60, X")),
    ask(get("/c11")),
    alone=True,
    any_order=True,
)
row(
    CACHING,
    "the entry's URL has gone",
    serve(cached("http://@b@/1")),
    ask(get("/c12")),
    serve(good("", status="404 No"), at="b"),
    ask(get("/c12")),
    alone=True,
    any_order=True,
)
row(
    PROXY,
    "no cache where there is none",
    serve(cached("http://@b@/1")),
    ask(get("/c13")),
    ask(get("/c13")),
)
row(
    CACHING,
    "a file is not cached",
    serve(to_file("file.txt", "X-REPROXY-CACHE-FOR: 60; X")),
    ask(get("/c14")),
    ask(get("/c14")),
    alone=True,
    any_order=True,
)
