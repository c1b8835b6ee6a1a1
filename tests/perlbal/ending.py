"""How a server ends, what happens to its clients then, and which clients are idle too long."""

from __future__ import annotations

import signal
from functools import partial

from tests.perlbal.conversation import Setting, Step
from tests.perlbal.steps import (
    ask,
    asked,
    begun,
    connect,
    exits,
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
    reply,
    send,
    serve,
    settled,
    signalled,
    silence,
    verify,
)
from tests.perlbal.tables import Table

ENDING = Setting(
    "ending",
    """
    CREATE POOL one
      POOL one ADD {a}
    CREATE SERVICE proxy
      SET role   = reverse_proxy
      SET listen = {proxy}
      SET pool   = one
      SET persist_client  = on
      SET persist_backend = on
    ENABLE proxy
    CREATE SERVICE upload
      SET role   = reverse_proxy
      SET listen = {upload}
      SET pool   = one
      SET buffer_uploads = on
      SET buffer_uploads_path = {folder}
      SET buffer_upload_threshold_size = 1000
    ENABLE upload
    CREATE SERVICE reproxy
      SET role   = reverse_proxy
      SET listen = {reproxy}
      SET pool   = one
      SET enable_reproxy = on
    ENABLE reproxy
    CREATE POOL slow
      POOL slow ADD {b}
    CREATE SERVICE verify
      SET role   = reverse_proxy
      SET listen = {verify}
      SET pool   = slow
      SET verify_backend = on
    ENABLE verify
    CREATE POOL none
    CREATE SERVICE nobody
      SET role   = reverse_proxy
      SET listen = {nobody}
      SET pool   = none
    ENABLE nobody
    CREATE SERVICE web
      SET role    = web_server
      SET listen  = {web}
      SET docroot = {folder}
      SET enable_put = on
      SET persist_client = on
    ENABLE web
    """,
    services=("proxy", "upload", "reproxy", "verify", "nobody", "web"),
    backends=("a", "b"),
    files={"a.txt": b"a\n"},
)
PROXY = ENDING.at("proxy")

TABLE = Table()


def row(name: str, *steps: Step, differs: str = "", ours: tuple[str, ...] = ()) -> None:
    TABLE.row(PROXY, name, *steps, alone=True, differs=differs, ours=ours)


def asking(request: bytes, to: str, by: str = "client") -> tuple[Step, ...]:
    """A client sends this to a service, and waits."""
    return connect(by, to), send(request, by=by), settled()


busy = (serve(held("x", good("late"))), send(get("/")), asked())

row("shutdown", manage("SHUTDOWN"), exits())
row("shutdown with an idle client", ask(get("/")), manage("SHUTDOWN"), exits())
row("shutdown with a client that waits", *busy, manage("SHUTDOWN"), exits())
row("graceful with nobody", manage("SHUTDOWN GRACEFUL"), exits())
row(
    "graceful with an idle client that has sent CRLF behind its body",
    ask(post("/", b"abc") + b"\r\n"),
    manage("SHUTDOWN GRACEFUL"),
    exits(),
)
closing = partial(row, differs="the last answer says close")
signals = partial(row, differs="SIGTERM is graceful")

row("graceful with an idle client", ask(get("/")), manage("SHUTDOWN GRACEFUL"), exits())
closing(
    "graceful: a client that waits is answered first",
    *busy,
    manage("SHUTDOWN GRACEFUL"),
    opens("x"),
    hear(),
    exits(),
    ours=("Connection: close", "<closed>", "exit 0"),
)
row(
    "graceful: half an answer is sent whole",
    serve(in_two("x", good("first and second half"), 50)),
    send(get("/")),
    begun(),
    manage("SHUTDOWN GRACEFUL"),
    opens("x"),
    hear(),
    exits(),
)
closing(
    "graceful: a body on its way is taken to the end",
    send(post("/", b"abcdef")[:-3]),
    settled(),
    manage("SHUTDOWN GRACEFUL"),
    send(b"def"),
    hear(),
    exits(),
    ours=("Connection: close", "<closed>", "exit 0"),
)
row(
    "graceful: nobody new is let in",
    *busy,
    manage("SHUTDOWN GRACEFUL"),
    settled(),
    ask(get("/a.txt"), by="late", to="web"),
)
closing(
    "graceful: the manager still answers",
    *busy,
    manage("SHUTDOWN GRACEFUL", "SHOW SERVICE", "STATES"),
    opens("x"),
    hear(),
    exits(),
    ours=("Connection: close", "<closed>", "exit 0"),
)
row(
    "graceful: not for ever",
    *busy,
    manage("SHUTDOWN GRACEFUL 1"),
    exits(),
)
row(
    "graceful: a client that leaves is not waited for",
    *busy,
    manage("SHUTDOWN GRACEFUL"),
    leave(),
    exits(),
)
row(
    "graceful: nothing is connected ahead any more",
    *asking(get("/"), "nobody"),
    manage("SET nobody.connect_ahead = 2", "SHUTDOWN GRACEFUL", "SHOW SERVICE nobody"),
    leave(),
    exits(),
)
GRACEFUL = manage("SHUTDOWN GRACEFUL")
row("graceful: who waits for a node waits on", *asking(get("/"), "nobody"), GRACEFUL, silence())
row(
    "graceful: a node that comes serves who waits",
    *asking(get("/"), "nobody"),
    GRACEFUL,
    manage("POOL none ADD {a}"),
    hear_or_wait(1.0),
    differs="a new node serves at once",
    ours=("Connection: close", "ok"),
)
row(
    "graceful: who waits for a node, not for ever",
    *asking(get("/"), "nobody"),
    manage("SHUTDOWN GRACEFUL 1"),
    exits(),
)
row(
    "graceful: a queue is served to its end",
    verify(held("x", good("", "Connection: keep-alive")), at="b"),
    # Each ends its connection; otherwise chance would decide which of two has the last request.
    serve(*[good("x", "Connection: close")] * 3, at="b"),
    *(step for by in "123" for step in asking(get(f"/{by}"), "verify", by)),
    GRACEFUL,
    opens("x", at="b"),
    *(hear(by) for by in "123"),
    exits(),
)
closing(
    "graceful: who has said nothing yet is answered",
    *asking(b"", "proxy"),
    GRACEFUL,
    silence(),
    ask(get("/")),
    exits(),
    ours=("Connection: close", "ok", "exit 0"),
)
closing(
    "graceful: half a head is waited for",
    *asking(get("/")[:10], "proxy"),
    GRACEFUL,
    ask(get("/")[10:]),
    exits(),
    ours=("Connection: close", "ok", "exit 0"),
)
row(
    "graceful: a body on its way to the disk is taken to the end",
    *asking(post("/", b"x" * 2000)[:-1000], "upload"),
    GRACEFUL,
    ask(b"x" * 1000),
    exits(),
)
row(
    "graceful: a URL is fetched to the end",
    serve(reply("200 OK", "X-REPROXY-URL: http://@b@/x", "Content-Length: 0")),
    serve(held("x", good("body")), at="b"),
    *asking(get("/"), "reproxy"),
    asked(at="b"),
    GRACEFUL,
    opens("x", at="b"),
    hear(),
    exits(),
)
row(
    "graceful: a URL that is named afterwards is fetched",
    serve(held("x", reply("200 OK", "X-REPROXY-URL: http://@b@/x", "Content-Length: 0"))),
    *asking(get("/"), "reproxy"),
    asked(),
    GRACEFUL,
    opens("x"),
    hear(),
    exits(),
)
closing(
    "graceful: a PUT is taken to the end",
    *asking(put("/new.txt", b"abcdef")[:-3], "web"),
    GRACEFUL,
    ask(b"def"),
    exits(),
    ours=("Connection: close", "exit 0"),
)
closing(
    "graceful, twice",
    *busy,
    GRACEFUL,
    GRACEFUL,
    opens("x"),
    hear(),
    exits(),
    ours=("Connection: close", "late", "exit 0"),
)
closing(
    "graceful, and 0 is no limit",
    *busy,
    manage("SHUTDOWN GRACEFUL 0"),
    settled(),
    opens("x"),
    hear(),
    exits(),
    ours=("Connection: close", "late", "exit 0"),
)
row("graceful, then at once", *busy, GRACEFUL, manage("SHUTDOWN"), exits(), hear())
row(
    "what SHUTDOWN refuses",
    manage("SHUTDOWN now", "SHUTDOWN GRACEFUL soon", "SHUTDOWN GRACEFUL -1"),
)
signals(
    "SIGHUP harms nothing",
    *busy,
    signalled(signal.SIGHUP),
    settled(),
    opens("x"),
    hear(),
    ours=("keep-alive", "late", "<open>"),
)
signals("SIGTERM with nobody", settled(), signalled(signal.SIGTERM), exits(), ours=("exit 0",))
signals(
    "SIGTERM: a client that waits is answered first",
    *busy,
    signalled(signal.SIGTERM),
    pause(0.1),
    opens("x"),
    hear(),
    exits(),
    ours=("Connection: close", "late", "exit 0"),
)
signals("SIGINT", settled(), signalled(signal.SIGINT), exits(), ours=("exit 0",))
