"""How a server ends, and what becomes of those who are connected; and who is idle too long."""

from __future__ import annotations

import signal
from functools import partial

from tests.perlbal.conversation import Setting, Step
from tests.perlbal.steps import (
    ask,
    asked,
    begun,
    exits,
    get,
    good,
    hear,
    held,
    in_two,
    leave,
    manage,
    opens,
    pause,
    post,
    send,
    serve,
    settled,
    signalled,
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
    CREATE SERVICE web
      SET role    = web_server
      SET listen  = {web}
      SET docroot = {folder}
      SET persist_client = on
    ENABLE web
    """,
    services=("proxy", "web"),
    backends=("a",),
    files={"a.txt": b"a\n"},
)
PROXY = ENDING.at("proxy")

TABLE = Table()


def row(name: str, *steps: Step, differs: str = "", ours: tuple[str, ...] = ()) -> None:
    TABLE.row(PROXY, name, *steps, alone=True, differs=differs, ours=ours)


busy = (serve(held("x", good("late"))), send(get("/")), asked())

row("shutdown", manage("SHUTDOWN"), exits())
row("shutdown with an idle client", ask(get("/")), manage("SHUTDOWN"), exits())
row("shutdown with a client that waits", *busy, manage("SHUTDOWN"), exits())
row("graceful with nobody", manage("SHUTDOWN GRACEFUL"), exits())
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
