"""reverse_proxy: bodies that are buffered in memory and on disk before a backend gets them."""

from __future__ import annotations

from tests.perlbal.conversation import LiveConversation, Setting
from tests.perlbal.steps import (
    ask,
    asked,
    closing,
    connections,
    get,
    hear,
    hear_or_wait,
    leave,
    manage,
    not_asked,
    post,
    raw,
    request,
    send,
    serve,
    settled,
    sockets,
)
from tests.perlbal.tables import Table

UPLOADS = Setting(
    "uploads",
    """
    CREATE POOL one
      POOL one ADD {a}

    CREATE SERVICE size
      SET role   = reverse_proxy
      SET listen = {size}
      SET pool   = one
      SET persist_client  = on
      SET persist_backend = on
      SET buffer_uploads      = on
      SET buffer_uploads_path = {folder}/spool
      SET buffer_upload_threshold_size = 150k
      SET buffer_upload_threshold_time = 0
      SET buffer_upload_threshold_rate = 0
      SET max_chunked_request_size     = 64k
    ENABLE size

    CREATE SERVICE rate
      SET role   = reverse_proxy
      SET listen = {rate}
      SET pool   = one
      SET buffer_backend_connect = 10
      SET buffer_uploads      = on
      SET buffer_uploads_path = {folder}/spool
      SET buffer_upload_threshold_size = 0
      SET buffer_upload_threshold_time = 0
      SET buffer_upload_threshold_rate = 1000000000
    ENABLE rate

    CREATE SERVICE time
      SET role   = reverse_proxy
      SET listen = {time}
      SET pool   = one
      SET buffer_backend_connect = 10
      SET buffer_uploads      = on
      SET buffer_uploads_path = {folder}/spool
      SET buffer_upload_threshold_size = 0
      SET buffer_upload_threshold_time = 5
      SET buffer_upload_threshold_rate = 0
    ENABLE time

    CREATE SERVICE memory
      SET role   = reverse_proxy
      SET listen = {memory}
      SET pool   = one
      SET persist_client = on
      SET buffer_backend_connect = 50k
      SET buffer_upload_threshold_rate = 1000000000
    ENABLE memory
    """,
    services=("size", "rate", "time", "memory"),
    backends=("a",),
    files={"spool/.keep": b""},
    environment={"PERLBAL_DEBUG_BUFFERED_UPLOADS": "1"},
)

SIZE = UPLOADS.at("size")
MEMORY = UPLOADS.at("memory")

TABLE = Table()
row = TABLE.row


def spool(talk: LiveConversation) -> None:
    """Note the files on disk, by name, without the parts that vary."""
    talk.barrier()
    names = [
        each.name for each in (talk.deployment.folder / "spool").iterdir() if each.name != ".keep"
    ]
    talk.note("spool", f"{len(names)} files: {[name.partition('-')[0] for name in names]}")


BODY = b"0123456789" * 20_000
SMALL = b"0123456789" * 10_000


def chunks(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + end


CHUNKED = request("POST", "/c", "Transfer-Encoding: chunked")

for name, half in (
    ("a body in chunks", CHUNKED + b"3\r\nabc\r\n"),
    ("a body for the disk", post("/d", BODY)[:1000]),
    ("a body in memory", post("/m", SMALL)[:1000]),
):
    row(
        SIZE,
        f"STATES of {name}, of a new client and of a kept one",
        send(half),
        settled(),
        manage("STATES", "STATES size"),
        sockets,
        leave(),
        ask(get("/"), by="kept"),
        send(half, by="kept"),
        settled(),
        manage("STATES", "STATES size"),
        sockets,
        leave("kept"),
        alone=True,
    )

# --- in memory ------------------------------------------------------------------------------------

row(
    MEMORY,
    "no backend is asked before so much of a body is there",
    send(post("/", SMALL)[:40_000]),
    not_asked(0),
    send(post("/", SMALL)[40_000:]),
    hear(),
)
row(MEMORY, "a small body is there at once", ask(post("/1", b"abc")), ask(post("/2", b"def")))
row(
    MEMORY,
    "the client leaves before a backend is asked",
    send(post("/", SMALL)[:40_000]),
    settled(),
    leave(),
    ask(get("/next"), by="next"),
)

for each in (SIZE, MEMORY):
    row(
        each,
        f"nothing to be gathered: a backend is asked at once, {each.service}",
        manage(f"SET {each.service}.buffer_backend_connect = 0"),
        send(post("/", BODY)[:150_000]),
        connections(1),
        spool,
        send(post("/", BODY)[150_000:]),
        hear(),
        alone=True,
    )

# --- on disk --------------------------------------------------------------------------------------

row(
    SIZE,
    "a large body is gathered first",
    send(post("/", BODY)[:150_000]),
    not_asked(0),
    spool,
    send(post("/", BODY)[150_000:]),
    hear(),
    spool,
)
row(SIZE, "a body below the size is not", ask(post("/", SMALL)), spool)
row(SIZE, "a large body, then another request", ask(post("/", BODY)), ask(get("/2")), spool)
row(SIZE, "two large bodies", ask(post("/1", BODY)), ask(post("/2", BODY)), spool)
row(
    SIZE,
    "the client leaves: the file goes",
    send(post("/", BODY)[:150_000]),
    settled(),
    spool,
    leave(),
    settled(),
    spool,
    ask(get("/next"), by="next"),
)
row(
    SIZE,
    "the backend leaves: the file goes",
    serve(closing(raw(b""))),
    send(post("/", BODY)),
    asked(),
    hear_or_wait(),
    leave(),
    settled(),
    spool,
    alone=True,
    differs="a lost backend closes its client",
    ours=("<closed>", "0 files"),
)
row(
    UPLOADS.at("rate"),
    "a slow body",
    send(post("/", SMALL)[:5_000]),
    settled(),
    send(post("/", SMALL)[5_000:]),
    hear(),
    spool,
)
row(UPLOADS.at("time"), "a body that will take no time", ask(post("/", SMALL)), spool)
row(
    UPLOADS.at("time"),
    "a body that will take days",
    send(request("POST", "/", f"Content-Length: {10**15}", body=b"0123456789" * 2)),
    spool,
    alone=True,
)

# --- in chunks ------------------------------------------------------------------------------------

row(SIZE, "chunks", ask(CHUNKED + chunks(b"abc", b"defg")), ask(get("/2")), spool)
row(
    SIZE,
    "Chunked in capitals",
    ask(request("POST", "/c", "Transfer-Encoding: Chunked", body=chunks(b"abc"))),
    # After refusing it, the original doesn't answer the next chunked request.
    alone=True,
    differs="strict chunks",
    ours=("Content-Length: 3\r\n", "abc", "HTTP/1.0 200 "),
)
row(SIZE, "chunks in pieces", send(CHUNKED, b"3\r", b"\nab", b"c\r\n", b"0\r\n", b"\r\n"), hear())
row(SIZE, "chunks, none", ask(CHUNKED + b"0\r\n\r\n"), ask(get("/2")))
row(
    SIZE,
    "chunks of PUT, and CRLF behind them",
    ask(request("PUT", "/c", "Transfer-Encoding: chunked") + chunks(b"abc") + b"\r\n"),
    ask(get("/2")),
)
row(SIZE, "chunks with lengths in capitals", ask(CHUNKED + b"A\r\n0123456789\r\n0\r\n\r\n"))
row(SIZE, "chunks with a trailer", ask(CHUNKED + b"3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"))
row(
    SIZE,
    "chunks that say 100 Continue",
    send(request("POST", "/c", "Transfer-Encoding: chunked", "Expect: 100-continue")),
    settled(),
    send(chunks(b"abc")),
    hear(),
)
row(SIZE, "chunks, too many", send(CHUNKED + chunks(*[b"x" * 1000] * 70)), hear_or_wait(), spool)
row(SIZE, "a chunk, too long", send(CHUNKED + b"20000\r\n" + b"x" * 100_000), hear_or_wait(), spool)
row(
    SIZE,
    "the client leaves in the midst of a chunk",
    send(CHUNKED + b"10\r\nabc"),
    settled(),
    leave(),
    settled(),
    spool,
    ask(get("/next"), by="next"),
)
