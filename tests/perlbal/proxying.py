"""reverse_proxy: requests to the backend, answers to the client, and which connections persist."""

from __future__ import annotations

import signal
from functools import partial

from tests.perlbal.conversation import LiveConversation, Setting, Step
from tests.perlbal.steps import (
    ask,
    asked,
    begun,
    closing,
    connect,
    connections,
    dropped,
    early,
    get,
    good,
    hear,
    hear_or_wait,
    held,
    in_two,
    leave,
    manage,
    opens,
    pause,
    post,
    put,
    quietly,
    raw,
    reply,
    request,
    reset,
    resetting,
    send,
    serve,
    settled,
    shut,
    signalled,
    silence,
    verify,
)
from tests.perlbal.tables import Table

PROXIES = Setting(
    "proxies",
    """
    LOAD AccessControl
    CREATE POOL one
      POOL one ADD {a}
    CREATE POOL two
      POOL two ADD {dead}
      POOL two ADD {a}
    CREATE POOL none
    CREATE POOL slow
      POOL slow ADD {c}

    CREATE SERVICE plain
      SET role   = reverse_proxy
      SET listen = {plain}
      SET pool   = one
    ENABLE plain

    CREATE SERVICE keep
      SET role   = reverse_proxy
      SET listen = {keep}
      SET pool   = one
      SET persist_client  = on
      SET persist_backend = on
    ENABLE keep

    CREATE SERVICE client
      SET role   = reverse_proxy
      SET listen = {client}
      SET pool   = one
      SET persist_client = 1
      SET persist_client_idle_timeout = 17
      SET server_tokens  = off
    ENABLE client

    CREATE SERVICE backend
      SET role   = reverse_proxy
      SET listen = {backend}
      SET pool   = one
      SET persist_backend = 1
      SET backend_persist_cache = 1
      SET max_backend_uses = 2
    ENABLE backend

    CREATE SERVICE trusting
      SET role   = reverse_proxy
      SET listen = {trusting}
      SET pool   = one
      SET always_trusted = true
    ENABLE trusting

    CREATE SERVICE masked
      SET role   = reverse_proxy
      SET listen = {masked}
      SET pool   = one
      SET trusted_upstream_proxies = 127.0.0.2, 127.1.0.0/16
    ENABLE masked

    CREATE SERVICE blind
      SET role   = reverse_proxy
      SET listen = {blind}
      SET pool   = one
      SET always_trusted = yes
      SET blind_proxy = yes
    ENABLE blind

    CREATE SERVICE headers
      SET role   = reverse_proxy
      SET listen = {headers}
      SET pool   = one
      HEADER headers INSERT X-Inserted: a value: with colon
      HEADER headers insert X-Replaced: ours
      HEADER headers REMOVE X-Removed
    ENABLE headers

    CREATE SERVICE verify
      SET role   = reverse_proxy
      SET listen = {verify}
      SET pool   = one
      SET persist_client  = on
      SET persist_backend = on
      SET verify_backend = on
      SET verify_backend_path = /alive?
    ENABLE verify

    CREATE SERVICE retries
      SET role   = reverse_proxy
      SET listen = {retries}
      SET pool   = one
      SET persist_client = on
      SET enable_error_retries = on
      SET error_retry_schedule = 0,.05
    ENABLE retries

    CREATE SERVICE half
      SET role   = reverse_proxy
      SET listen = {half}
      SET pool   = two
    ENABLE half

    CREATE SERVICE nobody
      SET role   = reverse_proxy
      SET listen = {nobody}
      SET pool   = none
    ENABLE nobody

    CREATE SERVICE cookie
      SET role   = reverse_proxy
      SET listen = {cookie}
      SET pool   = slow
      SET verify_backend = on
      SET high_priority_cookie = fast
      SET high_priority_cookie_contents = pass me
    ENABLE cookie

    CREATE SERVICE ranked
      SET role   = reverse_proxy
      SET listen = {ranked}
      SET pool   = slow
      SET verify_backend = on
      SET high_priority_cookie = fast
      SET high_priority_cookie_contents = yes
      SET plugins = AccessControl
      ACCESS QUEUE_LOW ip 127.0.0.3
    ENABLE ranked
    """,
    services=(
        "plain",
        "keep",
        "client",
        "backend",
        "trusting",
        "masked",
        "blind",
        "headers",
        "verify",
        "retries",
        "half",
        "nobody",
        "cookie",
        "ranked",
    ),
    backends=("a", "b", "c"),
    dead=("dead",),
)

PLAIN = PROXIES.at("plain")
KEEP = PROXIES.at("keep")
CLIENT = PROXIES.at("client")
BACKEND = PROXIES.at("backend")
TRUSTING = PROXIES.at("trusting")
MASKED = PROXIES.at("masked")
BLIND = PROXIES.at("blind")
HEADERS = PROXIES.at("headers")
VERIFY = PROXIES.at("verify")
RETRIES = PROXIES.at("retries")
HALF = PROXIES.at("half")
NOBODY = PROXIES.at("nobody")
COOKIE = PROXIES.at("cookie")
RANKED = PROXIES.at("ranked")

TABLE = Table()
row = TABLE.row

# --- the request, as the backend gets it ----------------------------------------------------------

row(PLAIN, "a request of 1.1 becomes one of 1.0", ask(get("/x?y=1&z=%20", "X-Thing: v")))
row(PLAIN, "a request of 1.0 without Host", ask(get("/x", version="1.0")))
row(PLAIN, "names keep their case and order", ask(get("/", "ZED: 1", "aLPHA: 2", "X-m: 3")))
row(PLAIN, "doubled fields are joined", ask(get("/", "A: 1", "B: 2", "a: 3", "A: 4")))
row(PLAIN, "doubled cookies are joined", ask(get("/", "Cookie: a=1", "Cookie: b=2")))
row(PLAIN, "a doubled Set-Cookie of a request", ask(get("/", "Set-Cookie: a=1", "Set-Cookie: b=2")))
row(PLAIN, "an empty value", ask(get("/", "X-Empty:", "X-Space:   ")))
row(
    PLAIN,
    "space around a value",
    ask(get("/", "X-Wide:  \t v  ")),
    differs="space after a value",
    ours=("X-Wide: v\r\n",),
)
row(PLAIN, "bytes above ASCII in a value", ask(get("/", "X-Latin: caf\xe9")))
row(
    PLAIN,
    "a whole URL becomes a path and a Host",
    ask(get("http://Elsewhere:81/p/q?r", "Host: here")),
)
row(PLAIN, "a whole URL without a path", ask(get("http://elsewhere", version="1.0")))
row(PLAIN, "a whole URL that is no ASCII", ask(get("http://\xc3\x89T\xc3\xa9.test/\xc3\x89")))
row(
    PLAIN,
    "a whole URL in capitals",
    ask(get("HTTP://elsewhere/p", "Host: here")),
    differs="hosts in any form",
    ours=("GET /p HTTP/1.0", "Host: elsewhere"),
)
row(
    PLAIN,
    "a whole URL of a host and a query",
    ask(get("http://elsewhere?p", "Host: here")),
    differs="hosts in any form",
    ours=("GET /?p HTTP/1.0", "Host: elsewhere\r\n"),
)
row(PLAIN, "a path of a star", ask(request("OPTIONS", "*")))
row(PLAIN, "a path that is none", ask(get("nothing")))
row(PLAIN, "an odd method", ask(request("BREW", "/pot")))
row(
    PLAIN,
    "Keep-Alive and Connection of the client",
    ask(get("/", "Connection: keep-alive, X-Hop", "Keep-Alive: 300", "X-Hop: 1")),
)
row(PLAIN, "the head comes byte by byte", send(*[bytes([each]) for each in get("/slow")]), hear())
row(PLAIN, "the head comes in lines of LF", send(b"GET /lf HTTP/1.0\nX-A: 1\n\n"), hear())
row(PLAIN, "a head of a hundred fields", ask(get("/", *[f"X-{n}: {n}" for n in range(100)])))
row(PLAIN, "a head of just under the limit", ask(get("/", "X-Long: " + "x" * 102_000)))
row(PLAIN, "a path of 8,000 bytes", ask(get("/" + "p" * 8000)))
row(
    HEADERS,
    "fields are put in another's place, and taken out",
    ask(get("/", "x-replaced: theirs", "x-inserted: theirs", "X-REMOVED: 1", "X-Kept: 1")),
)
row(HEADERS, "a field is put in", ask(get("/", "x-replaced: theirs")))

# --- X-Forwarded-For and the like -----------------------------------------------------------------

FORWARDED = ("X-Forwarded-For: 10.1.1.1, 10.2.2.2", "X-Host: xh", "X-Forwarded-Host: xfh")
row(PLAIN, "an unknown client's forwarding fields are dropped", ask(get("/", *FORWARDED)))
row(
    PLAIN,
    "another protocol is not asked for",
    ask(
        get("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    ),
    differs="no other protocol",
    ours=("Host: here\r\nConnection: close\r\nHTTP2-Settings: AAMAAABk\r\n",),
)
row(TRUSTING, "a trusted client's are kept and added to", ask(get("/", *FORWARDED)))
row(TRUSTING, "a trusted client without any", ask(get("/")))
row(TRUSTING, "a trusted client with an empty one", ask(get("/", "X-Forwarded-For: ")))
for each in (
    "1.1.1.1,2.2.2.2",
    "1.1.1.1 ,  2.2.2.2",
    "1.1.1.1,,",
    ",1.1.1.1",
    ",",
    "a b",
    "a,\xa0\x85b",
):
    row(TRUSTING, f"a trusted client's [{each}]", ask(get("/", f"X-Forwarded-For: {each}")))
row(MASKED, "not of the netmasks", ask(get("/", *FORWARDED)))
row(MASKED, "of the netmasks, an address", connect(source="127.0.0.2"), ask(get("/", *FORWARDED)))
row(MASKED, "of the netmasks, a net", connect(source="127.1.200.3"), ask(get("/", *FORWARDED)))
row(MASKED, "just beside the netmasks", connect(source="127.2.0.1"), ask(get("/", *FORWARDED)))
row(BLIND, "a blind proxy touches nothing", ask(get("/", *FORWARDED)))
row(BLIND, "a blind proxy adds nothing", ask(get("/")))

# --- the answer, as the client gets it ------------------------------------------------------------

row(PLAIN, "an answer of 1.0", serve(good(version="1.0")), ask(get()))
row(
    PLAIN,
    "an answer without a length ends with the connection",
    serve(closing(reply("200 OK", "X-A: 1", body=b"until the end"))),
    ask(get()),
)
row(
    PLAIN,
    "an answer's names keep case and order",
    serve(good("x", "zED: 1", "Alpha: 2", "server: s")),
    ask(get()),
)
row(
    PLAIN,
    "doubled fields of an answer are joined",
    serve(good("x", "A: 1", "B: 2", "a: 3")),
    ask(get()),
)
row(
    PLAIN,
    "doubled Set-Cookies stay apart",
    serve(good("x", "Set-Cookie: a=1", "X: y", "set-cookie: b=2")),
    ask(get()),
)
row(
    KEEP,
    "an answer's length is said twice",
    serve(good("abc", "Content-Length: 3")),
    send(get("/1")),
    hear_or_wait(1),
    differs="a repeated length is one",
    ours=("\r\nContent-Length: 3\r\n",),
)
row(PLAIN, "an own reason phrase", serve(good("x", status="200 Quite Fine")), ask(get()))
row(PLAIN, "an odd status", serve(good("x", status="299 Odd")), ask(get()))
row(PLAIN, "a status above all", serve(good("x", status="999 Far")), ask(get()))
row(PLAIN, "an empty reason phrase", serve(good("x", status="200 ")), ask(get()))
row(PLAIN, "an empty body", serve(good("")), ask(get()))
row(
    PLAIN,
    "a redirect with a body",
    serve(good("go", "Location: /there", status="302 Found")),
    ask(get()),
)
row(PLAIN, "an error of the backend", serve(good("broken", status="500 Broken")), ask(get()))
row(PLAIN, "204 without a length", serve(reply("204 No Content")), ask(get()))
row(PLAIN, "304 without a length", serve(reply("304 Not Modified", "ETag: x")), ask(get()))
row(
    PLAIN,
    "304 with a length that is not sent",
    serve(reply("304 Not Modified", "Content-Length: 5")),
    ask(get()),
)
row(
    PLAIN,
    "HEAD, with a length that is not sent",
    serve(reply("200 OK", "Content-Length: 5000")),
    ask(request("HEAD", "/")),
)
row(PLAIN, "HEAD, without a length", serve(closing(reply("200 OK"))), ask(request("HEAD", "/")))
row(PLAIN, "a body of 1 MB", serve(good(bytes(range(250)) * 4000)), ask(get()))
row(
    PLAIN,
    "a chunked answer is passed on as it is",
    serve(closing(reply("200 OK", "Transfer-Encoding: chunked", body=b"2\r\nok\r\n0\r\n\r\n"))),
    ask(get()),
)
row(
    PLAIN,
    "a chunked answer with a length loses it",
    serve(
        closing(
            reply(
                "200 OK",
                "Transfer-Encoding: chunked",
                "Content-Length: 99",
                body=b"2\r\nok\r\n0\r\n\r\n",
            )
        )
    ),
    ask(get()),
)
row(
    PLAIN,
    "a head in two pieces",
    serve(in_two("go", good("later"), 20)),
    send(get()),
    begun(),
    silence(),
    opens("go"),
    hear(),
)
row(
    PLAIN,
    "a body in two pieces",
    serve(in_two("go", good("sooner or later"), 45)),
    send(get()),
    begun(),
    opens("go"),
    hear(),
)
row(PLAIN, "a backend that speaks in lines of LF", serve(good("x")), ask(get()))
row(
    PLAIN,
    "X-REPROXY fields go through where reproxying is off",
    serve(good("x", "X-REPROXY-FILE: /etc/passwd")),
    ask(get()),
)

# --- which connections persist --------------------------------------------------------------------

row(KEEP, "two requests of 1.1 on one connection", ask(get("/1")), ask(get("/2")))
row(
    KEEP,
    "two requests of 1.0 with keep-alive",
    ask(get("/1", "Connection: keep-alive", version="1.0")),
    ask(get("/2", "Connection: Keep-Alive", version="1.0")),
)
row(KEEP, "1.0 without keep-alive is closed", ask(get("/", version="1.0")))
row(KEEP, "1.1 with close is closed", ask(get("/", "Connection: close")))
row(KEEP, "1.1 with Close in capitals among others", ask(get("/", "Connection: x, CLOSE")))
for version, word in ("1.1", "closed"), ("1.1", "te,close"), ("1.0", "keep-alives"):
    row(
        KEEP,
        f"{word} to and from {version}",
        serve(good("1", f"Connection: {word}", version=version)),
        ask(get("/1", f"Connection: {word}", version=version)),
        ask(get("/2"), by="another"),
    )
row(KEEP, "no length, no persistence", serve(closing(reply("200 OK", body=b"end"))), ask(get()))
row(
    KEEP,
    "a 1.0 backend with keep-alive stays",
    serve(good("1", "Connection: keep-alive", version="1.0")),
    ask(get("/1")),
    ask(get("/2")),
)
row(
    KEEP,
    "a 1.0 backend without keep-alive goes",
    serve(good("1", version="1.0")),
    ask(get("/1")),
    dropped(),
    ask(get("/2")),
)
row(
    KEEP,
    "a 1.1 backend with close goes",
    serve(good("1", "Connection: close")),
    ask(get("/1")),
    dropped(),
    ask(get("/2")),
)
row(KEEP, "204 keeps both", serve(reply("204 No Content")), ask(get("/1")), ask(get("/2")))
row(KEEP, "304 keeps both", serve(reply("304 Not Modified")), ask(get("/1")), ask(get("/2")))
row(
    KEEP,
    "304 with a length keeps both",
    serve(reply("304 Not Modified", "Content-Length: 5")),
    ask(get("/1")),
    ask(get("/2")),
)
row(
    KEEP,
    "HEAD keeps both",
    serve(reply("200 OK", "Content-Length: 5")),
    ask(request("HEAD", "/1")),
    ask(get("/2")),
)
row(
    KEEP,
    "HEAD without a length keeps the client",
    serve(reply("200 OK")),
    ask(request("HEAD", "/1")),
    ask(get("/2")),
)
row(KEEP, "a length of nothing keeps both", serve(good("")), ask(get("/1")), ask(get("/2")))
row(KEEP, "two POSTs on one connection", ask(post("/1", b"one")), ask(post("/2", b"two")))
row(
    KEEP,
    "a line end behind a POST's body is eaten",
    ask(post("/1", b"one") + b"\r\n"),
    ask(post("/2", b"two")),
)
row(
    KEEP,
    "a line end behind a POST's body, later",
    ask(post("/1", b"one")),
    ask(b"\r\n" + get("/2")),
)
row(KEEP, "a POST without a body", ask(request("POST", "/1", "Content-Length: 0")), ask(get("/2")))
row(KEEP, "a POST without a length", ask(request("POST", "/1")), ask(get("/2")))
row(
    KEEP,
    "a GET with a body",
    ask(request("GET", "/1", "Content-Length: 3", body=b"abc")),
    ask(get("/2")),
)
row(
    KEEP,
    "two clients share a backend's connection, one after the other",
    ask(get("/1")),
    leave(),
    ask(get("/2")),
)
row(
    KEEP,
    "a kept backend connection that its backend closes",
    serve(closing(good("1"))),
    ask(get("/1")),
    dropped(),
    settled(),
    ask(get("/2")),
)
for title, behind in {"ends": b"", "has more to say": b"HTTP/1.0 200 OK\r\n"}.items():
    first = good("1").data
    row(
        KEEP,
        f"a kept backend connection that {title} when the next request is here already",
        serve(closing(in_two("x", raw(first + behind), len(first)))),
        ask(get("/1")),
        settled(),
        signalled(signal.SIGSTOP),
        send(get("/2")),
        opens("x"),
        dropped(),
        signalled(signal.SIGCONT),
        hear_or_wait(1),
        differs="a dead connection is not used",
        ours=("#2 GET /2 ", "ok"),
    )
for seconds in (0, 1):
    row(
        KEEP,
        f"Keep-Alive that ends in {seconds} s is not used again",
        serve(good("1", f"Keep-Alive: timeout={seconds}")),
        ask(get("/1")),
        settled(),
        ask(get("/2")),
    )
row(
    KEEP,
    "Keep-Alive counts from the end of the answer",
    serve(in_two("x", good("slowly", "Keep-Alive: timeout=3"), 63)),
    send(get("/")),
    begun(),
    pause(1.5),
    opens("x"),
    hear(),
    ask(get("/2")),
    connections(1),
)
row(
    KEEP,
    "Keep-Alive with time left is used again",
    serve(good("1", "Keep-Alive: timeout=9")),
    ask(get("/1")),
    settled(),
    ask(get("/2")),
)
row(CLIENT, "the client stays, the backend does not", ask(get("/1")), ask(get("/2")))
row(
    CLIENT,
    "the client says keep-alive, the backend says close",
    serve(closing(good("1", "Connection: close"))),
    ask(get("/1")),
    ask(get("/2")),
)
row(BACKEND, "the backend stays, the client does not", ask(get("/1")), ask(get("/2"), by="other"))
row(
    BACKEND,
    "a backend connection used as often as it may be",
    ask(get("/1")),
    ask(get("/2"), by="b"),
    ask(get("/3"), by="c"),
    dropped(),
    ask(get("/4"), by="d"),
)
row(
    BACKEND,
    "as many idle ones as are to be kept",
    serve(held("x", good("1")), held("y", good("2"))),
    send(get("/1"), by="one"),
    asked(1),
    send(get("/2"), by="two"),
    asked(2),
    opens("x"),
    hear("one"),
    opens("y"),
    hear("two"),
    dropped(1),
)

# --- what is not a request ------------------------------------------------------------------------

for title, data in {
    "nonsense": b"what is this\r\n\r\n",
    "two empty lines first": b"\r\n\r\nGET / HTTP/1.0\r\n\r\n",
    "1.1 without Host": b"GET / HTTP/1.1\r\n\r\n",
    "a version that is none": b"GET / HTTP/one\r\n\r\n",
    "no version at all": b"GET /\r\n\r\n",
    "a tab for a space": b"GET\t/ HTTP/1.1\r\nHost: here\r\n\r\n",
    "a space too much": b"GET  / HTTP/1.0\r\n\r\n",
    "a field without a colon": b"GET / HTTP/1.0\r\nX-No colon\r\n\r\n",
    "a field name with a space": b"GET / HTTP/1.0\r\nX Space: 1\r\n\r\n",
    "a head above the limit": b"GET / HTTP/1.0\r\nX: " + b"x" * 103_000,
    "a method with a dash": b"GE-T / HTTP/1.0\r\n\r\n",
}.items():
    row(PLAIN, f"no request: {title}", ask(data))
row(
    PLAIN,
    "an empty line first",
    ask(b"\r\nGET / HTTP/1.0\r\n\r\n"),
    differs="an empty line before a request",
    ours=("HTTP/1.0 200 OK\r\n",),
)
row(PLAIN, "a negative length", ask(request("POST", "/", "Content-Length: -1")))
row(
    PLAIN,
    "a negative length and a body",
    ask(request("POST", "/", "Content-Length: -7", body=b"abcdefg")),
)
refusing = partial(
    row,
    differs="a refusal says close",
    ours=("HTTP/1.0 400 ", "Connection: close", "Can't pipeline to HTTP/1.0<closed>"),
)
refusing(KEEP, "a second request in one go is refused", ask(get("/1") + get("/2")))
refusing(KEEP, "bytes behind a GET are refused", ask(get("/1") + b"x"))
refusing(
    KEEP,
    "a second request while the first is with the backend",
    serve(held("x", good("1"))),
    send(get("/1")),
    asked(),
    send(get("/2")),
    settled(),
    opens("x"),
    hear(),
)
row(
    KEEP,
    "bytes behind a POST's body are not passed on",
    ask(post("/1", b"one") + get("/2")),
    differs="nothing after a POST",
    ours=("Connection: close", "ok<closed>"),
)
row(
    KEEP,
    "a request behind a POST that is with the backend waits for its turn",
    serve(held("x", good("1"))),
    send(post("/1", b"one")),
    asked(),
    send(get("/2")),
    settled(),
    opens("x"),
    hear(times=2),
)
row(
    KEEP,
    "a request behind a GET whose answer is on its way",
    serve(in_two("x", good("one half and the other"), 60)),
    send(get("/1")),
    begun(),
    send(get("/2")),
    settled(),
    opens("x"),
    hear(times=2),
    differs="nothing after a POST",
    ours=("one half and the other", "<closed>"),
)

# --- backends that fail ---------------------------------------------------------------------------

for title, answer in {
    "closes within its head": closing(raw(b"HTTP/1.1 200 OK\r\nX-")),
    "talks nonsense": closing(raw(b"what is this\r\n\r\n")),
    "talks nonsense and stays": raw(b"what is this\r\n\r\n"),
    "gives a status that is no number": raw(b"HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n"),
    "sends a head without end": closing(raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000)),
}.items():
    row(
        PLAIN,
        f"a backend that {title}",
        serve(answer),
        send(get()),
        asked(),
        hear_or_wait(),
        differs="garbage is a 502",
        ours=("HTTP/1.0 502 ", "<closed>"),
        alone=True,
    )
row(
    PLAIN,
    "a backend that says no more than its code",
    serve(raw(b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx")),
    send(get()),
    asked(),
    hear_or_wait(),
    differs="garbage is a 502",
    ours=("HTTP/1.0 200 OK\r\n", "\r\n\r\nx"),
    alone=True,
)
for title, answer in {
    "closes without a word": closing(raw(b"")),
    "resets": resetting(raw(b"")),
}.items():
    row(
        PLAIN,
        f"a backend that {title}",
        serve(answer),
        send(get()),
        asked(),
        hear_or_wait(),
        differs="a lost backend closes its client",
        ours=("<closed>",),
        alone=True,
    )
row(
    PLAIN,
    "a backend that closes within its body",
    serve(closing(reply("200 OK", "Content-Length: 10", body=b"half"))),
    ask(get()),
)
row(
    KEEP,
    "a backend that closes within its body, kept client",
    serve(closing(reply("200 OK", "Content-Length: 10", body=b"half"))),
    send(get()),
    asked(),
    hear_or_wait(),
    differs="half an answer closes the client",
    ours=("half<closed>",),
)
row(
    PLAIN,
    "a backend that says more than its length",
    serve(closing(reply("200 OK", "Content-Length: 4", body=b"four and more"))),
    ask(get()),
    differs="no more than the length",
    ours=("four<closed>",),
)
row(
    KEEP,
    "a backend that says more than its length, kept",
    serve(reply("200 OK", "Content-Length: 4", body=b"four and more")),
    ask(get("/1")),
    ask(get("/2")),
    differs="no more than the length",
    ours=("four", "#2 GET /2"),
)
row(HALF, "one of two is down", ask(get("/1")), ask(get("/2"), by="b"), ask(get("/3"), by="c"))
bad = [good(str(number), status="500 Bad") for number in range(4)]
row(RETRIES, "a 500 is asked again until it is none", serve(*bad[:2]), ask(get()))
row(RETRIES, "a 500 is given through at last", serve(*bad), ask(get()))
row(
    RETRIES,
    "a 500 to HEAD",
    serve(reply("500 Bad", "Content-Length: 0")),
    ask(request("HEAD", "/")),
)
row(RETRIES, "a 500 to POST is not asked again", serve(*bad), ask(post("/", b"once")))
row(RETRIES, "a 503 is not asked again", serve(good("1", status="503 Busy")), ask(get()))
row(PLAIN, "a 500 without retries", serve(*bad), ask(get()))

# --- verifying ------------------------------------------------------------------------------------

alive = good("", "Connection: keep-alive")
row(
    VERIFY, "a new connection is asked OPTIONS first", verify(alive), ask(get("/1")), ask(get("/2"))
)
row(VERIFY, "an error to OPTIONS is good enough", verify(good("", status="403 No")), ask(get("/1")))
row(VERIFY, "OPTIONS with a body", verify(good("GET, HEAD")), ask(get("/1")))
row(
    VERIFY,
    "OPTIONS answered with close: the address goes unverified",
    verify(good("", "Connection: close")),
    ask(get("/1")),
    manage("noverify", blur=r"\d+(?=\r)"),
    ask(get("/2")),
    alone=True,
)
row(
    VERIFY,
    "OPTIONS not answered: the address goes unverified",
    verify(closing(raw(b""))),
    ask(get("/1")),
    alone=True,
)

# --- waiting --------------------------------------------------------------------------------------


def ask_later(request: bytes, by: str) -> Step:
    """Send, and wait until the server has it."""

    def step(talk: LiveConversation) -> None:
        talk.client(by).send(request)
        talk.barrier()

    return step


def queued(*requests: str | tuple[str, str], gone: tuple[str, ...] = ()) -> list[Step]:
    """Requests that arrive while all of them wait for the backend to be verified.

    The backend closes after each answer: connections are certain to be made in the order in which
    clients are served, but not to be free again in time.
    """
    asks = [(each, ()) if isinstance(each, str) else (each[0], each[1:]) for each in requests]
    steps: list[Step] = [
        verify(held("x", alive), at="c"),
        serve(*[good("x", "Connection: close")] * len(asks), at="c"),
    ]
    for path, fields in asks:
        steps += [send(get(path, *fields), by=path), settled()]
    steps += [leave(path) for path in gone]
    steps += [settled(), opens("x", at="c")]
    return steps + [hear(path) for path, _ in asks if path not in gone]


row(
    NOBODY,
    "no backend at all: the client waits",
    send(get("/")),
    silence(),
    manage("queues", order="any", blur=r"(?<=age )\d+"),
)
row(
    COOKIE,
    "first come, first served",
    *queued("/1", "/2", "/3", "/4"),
)
fast = "Cookie: x=y; fast=oh%20pass%20me%21"
row(
    COOKIE,
    "who has the cookie goes first",
    *queued(
        "/1", ("/2", "Cookie: fast=pass+me"), ("/3", fast), "/4", ("/5", "Cookie: fast=pass%20me")
    ),
)
COOKIES = (
    *("fast=yes", "fast=YES", "fast=yesterday", "fast", "FAST=yes", "fast =yes", "x=fast=yes"),
    *(
        "f%61st=%79es",
        "fast=no; fast=yes",
        "fast=yes; fast=no",
        "fast=a=yes",
        "fast=yes;  x=y",
        'fast="yes"',
        "a=b;fast=yes",
        "fast=y+es",
        "faster=yes",
        "a=b;\xa0fast=yes",
    ),
)
for each in COOKIES:
    row(RANKED, f"who is first with the cookie {each}", *queued("/1", ("/2", f"Cookie: {each}")))
row(
    VERIFY,
    "a backend that says it stays, and ends, is not asked for who waits",
    verify(alive, held("y", alive)),
    serve(closing(held("x", good("1")))),
    send(get("/1"), by="one"),
    asked(2),
    ask_later(get("/2"), "two"),
    signalled(signal.SIGSTOP),
    opens("x"),
    dropped(),
    signalled(signal.SIGCONT),
    hear("one"),
    opens("y"),
    hear_or_wait(1, "two"),
    alone=True,
    differs="a dead connection is not used",
    ours=("#2 GET /2 ",),
)
row(
    VERIFY,
    "a cookie without contents to look for: all are first",
    manage("SET verify.high_priority_cookie = fast"),
    verify(held("x", alive)),
    ask_later(get("/"), "client"),
    manage("QUEUES", order="any"),
    opens("x"),
    hear(),
    alone=True,
)
row(
    RANKED,
    "low behind normal behind high",
    verify(held("x", alive), at="c"),
    serve(*[good("x", "Connection: close")] * 5, at="c"),
    connect("low", source="127.0.0.3"),
    ask_later(get("/low"), "low"),
    ask_later(get("/1"), "normal"),
    ask_later(get("/high", fast), "normal, too"),
    ask_later(get("/high", "Cookie: fast=yes"), "high"),
    connect("low and high", source="127.0.0.3"),
    ask_later(get("/both", "Cookie: fast=yes"), "low and high"),
    manage("QUEUES", order="any", blur=r"(?<=age )\d+"),
    manage("STATES ranked", "STATES"),
    opens("x", at="c"),
    *(hear(by) for by in ("high", "low and high", "normal", "normal, too", "low")),
    alone=True,
)
row(
    COOKIE,
    "relief: the normal queue goes first when it is long enough",
    quietly("SET cookie.queue_relief_size = 2", "SET cookie.queue_relief_chance = 100"),
    *queued("/1", ("/2", fast), "/3", "/4"),
    alone=True,
)
row(
    COOKIE,
    "no relief: its chance is none",
    quietly("SET cookie.queue_relief_size = 2", "SET cookie.queue_relief_chance = 0"),
    *queued("/1", ("/2", fast), "/3", "/4"),
    alone=True,
)
row(COOKIE, "who waits and leaves is not served", *queued("/1", "/2", "/3", gone=("/2",)))
row(
    NOBODY,
    "a backend that comes later serves those who wait at once",
    send(get("/1")),
    settled(),
    manage("POOL none ADD {a}"),
    hear_or_wait(),
    alone=True,
    differs="a new node serves at once",
    ours=("GET /1 ", "HTTP/1.0 200 OK"),
)
row(
    PLAIN,
    "connect_ahead: connections that wait for clients",
    manage("SET plain.connect_ahead = 1"),
    connections(1),
    ask(get("/1")),
    connections(2),
    alone=True,
)
gone = serve(held("x", good("late")))
row(
    PLAIN,
    "a client that leaves while its backend thinks",
    gone,
    send(get("/gone")),
    asked(),
    leave(),
    dropped(),
    ask(get("/next"), by="next"),
)
row(
    PLAIN,
    "a client that resets while its backend thinks",
    gone,
    send(get("/gone")),
    asked(),
    reset(),
    dropped(),
    ask(get("/next"), by="next"),
)
row(PLAIN, "a client that shuts its side and waits", send(get("/half")), shut(), hear(), alone=True)
row(
    PLAIN,
    "a client that leaves within its head",
    send(b"GET / HT"),
    settled(),
    leave(),
    ask(get("/next"), by="next"),
)
row(
    PLAIN,
    "a pool's node that is removed is not asked",
    manage("POOL two REMOVE {dead}", "POOL two REMOVE {a}", "POOL two ADD {b}"),
    ask(get("/1"), to="half"),
    alone=True,
)
row(
    KEEP,
    "a pool's node that is removed, with an idle connection to it",
    ask(get("/1")),
    manage("POOL one REMOVE {a}"),
    send(get("/2")),
    silence(),
    alone=True,
    differs="a removed node is not used",
    ours=("<silent>",),
)
row(
    COOKIE,
    "a node that is taken out is not waited for",
    verify(held("x", good("", "Connection: keep-alive", version="1.0")), at="c"),
    send(get("/1")),
    connections(1, at="c"),
    manage("POOL slow ADD {a}", "POOL slow REMOVE {c}"),
    hear_or_wait(),
    opens("x", at="c"),
    alone=True,
    differs="a removed node is not used",
    ours=("#1 GET /1 ", "HTTP/1.0 200 OK"),
)
row(
    COOKIE,
    "another pool: connections on their way to the old one are not waited for",
    verify(held("x", good("", "Connection: keep-alive", version="1.0")), at="c"),
    send(get("/1")),
    connections(1, at="c"),
    manage("SET cookie.pool = one"),
    hear_or_wait(),
    opens("x", at="c"),
    alone=True,
    differs="a removed node is not used",
    ours=("GET /1 ", "HTTP/1.0 200 OK"),
)
row(
    KEEP,
    "another pool: idle connections to the old one are not used",
    ask(get("/1")),
    manage("CREATE POOL other", "POOL other ADD {b}", "SET keep.pool = other"),
    ask(get("/2")),
    alone=True,
)

# --- bodies ---------------------------------------------------------------------------------------

row(
    KEEP,
    "a backend's Connection and Keep-Alive are put in another's place",
    serve(good("1", "Keep-Alive: timeout=99", "X-A: 1", "Connection: keep-alive", "X-B: 2")),
    ask(get("/")),
)
row(PLAIN, "a body goes through", ask(post("/", b"name=value", "Content-Type: text/x-form")))
row(PLAIN, "a body in three pieces", send(post("/", b"abcdefghi")[:-6], b"def", b"ghi"), hear())
row(PLAIN, "a body of 300,000 bytes", ask(post("/", b"0123456789" * 30_000)))
row(PLAIN, "PUT is passed on", ask(put("/f", b"content")))
row(PLAIN, "DELETE with a body", ask(request("DELETE", "/f", "Content-Length: 3", body=b"why")))
row(
    PLAIN,
    "an early answer to a body that is not whole",
    serve(early(good("enough"))),
    send(post("/", b"x" * 500_000)[:200_000]),
    hear(),
)
row(
    KEEP,
    "an early answer, then the rest of the body, then the next request",
    serve(held("x", early(good("enough")))),
    send(post("/", b"x" * 200_000)[:150_000]),
    asked(),
    send(post("/", b"x" * 200_000)[150_000:]),
    settled(),
    opens("x"),
    hear(),
    ask(get("/2")),
)
row(
    PLAIN,
    "the client leaves in the midst of its body",
    send(post("/", b"x" * 300_000)[:150_000]),
    settled(),
    leave(),
    settled(),
    ask(get("/next"), by="next"),
    alone=True,
)
row(
    PLAIN,
    "the backend leaves in the midst of the body",
    serve(closing(early(raw(b"")))),
    send(post("/", b"x" * 300_000)[:150_000]),
    asked(),
    hear_or_wait(1.5),
    differs="a lost backend closes its client",
    ours=("<closed>",),
    alone=True,
)
row(
    PLAIN,
    "Expect: 100-continue",
    ask(request("POST", "/", "Expect: 100-continue", "Content-Length: 3", body=b"abc")),
    differs="100 Continue is ours",
    ours=("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.0 200 OK"),
)
row(
    PLAIN,
    "a backend that says 100 Continue",
    serve(raw(b"HTTP/1.1 100 Continue\r\n\r\n" + good("after").data)),
    send(request("POST", "/", "Expect: 100-continue", "Content-Length: 3", body=b"abc")),
    hear(),
    differs="100 Continue is ours",
    ours=("HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.0 200 OK", "after"),
)
row(
    PLAIN,
    "a chunked body without buffering",
    send(request("POST", "/", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n")),
    hear_or_wait(),
    differs="411 without buffering",
    ours=("HTTP/1.0 411 ",),
)
