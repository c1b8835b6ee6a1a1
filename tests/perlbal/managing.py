"""The management port: every command, its answers and its errors, and the pages over HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.perlbal.conversation import LiveConversation, Setting
from tests.perlbal.steps import (
    answered,
    ask,
    asked,
    begun,
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
    put,
    quietly,
    reply,
    request,
    send,
    serve,
    settled,
    shut,
    silence,
    sockets,
)
from tests.perlbal.tables import Table

MANAGED = Setting(
    "managed",
    """
    LOAD vhosts
    CREATE POOL one
      POOL one ADD {a}
      POOL one ADD 127.0.0.9:81
      POOL ADD one 127.0.0.8
    CREATE POOL spare

    CREATE SERVICE web
      SET role    = web_server
      SET listen  = {web}
      SET docroot = {folder}
      SET persist_client = on
      SET index_files    = a.html, b.html
    ENABLE web

    CREATE SERVICE proxy
      SET role   = reverse_proxy
      SET listen = {proxy}
      SET pool   = one
      SET buffer_size  = 100k
      SET idle_timeout = 45
    ENABLE proxy

    CREATE SERVICE idle
      SET role   = reverse_proxy
      SET listen = {idle}
      SET pool   = one

    CREATE SERVICE choice
      SET role    = selector
      SET plugins = vhosts
      VHOST choice a.test = web
    """,
    services=("proxy", "web", "idle"),
    backends=("a",),
    files={"a.html": b"a\n", "conf/one.conf": b"CREATE POOL included\n"},
)

PROXY = MANAGED.at("proxy")
WEB = MANAGED.at("web")

TABLE = Table()
row = TABLE.row

# --- refused commands: the same error text, and the state is unchanged ----------------------------

row(
    PROXY,
    "what is no command",
    manage(
        "nonsense",
        "NONSENSE with words",
        "= x",
        "!",
        "get",
        "show",
        "SHOW nothing",
        "SHOW SERVICE nobody",
        "SHOW POOL nobody",
        "SHOW SERVICE web now",
        "uptime now",
        "nodes x",
        "verbose",
        "verbose maybe",
        "states nobody",
        "queues x",
        "socks x",
        "proc x",
        "plugins x",
        "help me",
        "backends x",
        "pending x",
        "noverify x",
    ),
)
row(
    PROXY,
    "what CREATE refuses",
    manage(
        "CREATE",
        "CREATE SERVICE",
        "CREATE POOL",
        "CREATE SERVICE web",
        "CREATE SERVICE one",
        "CREATE POOL one",
        "CREATE POOL web",
        "CREATE POOL a-b",
        "CREATE SERVICE a b",
        "CREATE THING x",
        "create service WEB",
    ),
)
row(
    PROXY,
    "what SET refuses",
    manage(
        "SET",
        "SET x",
        "SET x = y",
        "SET web",
        "SET web.x = y",
        "SET web x = y",
        "SET nobody.x = y",
        "SET nobody x = y",
        "SET web.docroot",
        "SET web.docroot =",
        "SET web.pool = one",
        "SET proxy.docroot = /",
        "SET choice.docroot = /",
        "SET web.default_service = web",
        "SET proxy.pool = nobody",
        "SET web.role = nothing",
        "SET web.listen = nowhere",
        "SET web.listen = 1.2.3.4",
        "SET web.docroot = /nowhere/at/all",
        "SET proxy.buffer_uploads_path = /nowhere/at/all",
        "SET web.persist_client = maybe",
        "SET web.persist_client = 2",
        "SET web.idle_timeout = soon",
        "SET web.idle_timeout = -1",
        "SET web.idle_timeout = 1.5",
        "SET proxy.buffer_size = big",
        "SET proxy.buffer_size = 1g",
        "SET proxy.buffer_size = -1",
        "SET proxy.buffer_size = 1 k",
        "SET proxy.queue_relief_chance = 101",
        "SET proxy.queue_relief_chance = x",
        "SET proxy.trusted_upstream_proxies = nonsense",
        "SET web.enable_put = perhaps",
        "SET web.max_put_size = much",
        "SET web.min_put_directory = few",
        "SET one.balance_method = best",
        "SET one.nodefile = ",
    ),
    manage("SHOW SERVICE", "SHOW POOL"),
)
row(
    PROXY,
    "a service that is not there",
    manage("SET choice.default_service = nobody"),
    differs="the service that was not found",
    ours=("ERROR: Service 'nobody' not found",),
)
row(
    PROXY,
    "a pool's unknown parameter",
    manage("SET one.x = y", "USE one", "SET idle_timeout = 4"),
    differs="unknown pool parameters",
    ours=("ERROR: Unknown pool parameter 'x'", "ERROR: Unknown pool parameter 'idle_timeout'"),
)
row(
    PROXY,
    "values, in all their forms",
    manage(
        "SET web.persist_client = YES",
        "SET web.persist_client = No",
        "SET web.persist_client = oFF",
        "SET web.persist_client = TRUE",
        "SET web.persist_client=1",
        "set  web . persist_client = 1",
        "SET web persist_client = 0",
        "  SET   web.idle_timeout   =   20   ",
        "SET WEB.IDLE_TIMEOUT = 20 # a comment",
        "SET proxy.buffer_size = 1024",
        "SET proxy.buffer_size = 1024b",
        "SET proxy.buffer_size = 64K",
        "SET proxy.buffer_size = 1m",
        "SET proxy.buffer_size = 0",
        "SET proxy.pool = spare",
        "SET proxy.pool = one",
        "SET one.balance_method = random",
        "# nothing but a comment",
        "",
        "   ",
        "\t",
        "SET web.docroot = {folder}",
        "SET web.docroot = {folder}/",
        "SET web.listen = {web}",
        "SET proxy.error_retry_schedule = 0,1,2",
        "SET proxy.high_priority_cookie = x",
        "SET proxy.trusted_upstream_proxies = 10.0.0.0/8, 127.0.0.1",
        "SET proxy.persist_client_timeout = 9",
    ),
    manage("SHOW SERVICE"),
    alone=True,
)
row(
    PROXY,
    "a folder is shown as it was written",
    manage("SET web.docroot = {folder}/", "SHOW SERVICE web", "SET web.docroot = /"),
    manage("SHOW SERVICE web"),
    ask(get("/proc/nothing"), to="web"),
    alone=True,
)
row(
    PROXY,
    "spaces that are no ASCII are letters",
    file("a\u3000b/c\xa0d.html", b"found\n"),
    manage("SET web.docroot = {folder}/a\u3000b", "SET web.index_files = x, c\xa0d.html"),
    manage("SET web.idle_timeout = 3\xa0", "SET\xa0web.idle_timeout = 3", "USE web\x85"),
    manage("SET\x0cweb.idle_timeout\x0b=\r3"),
    ask(get("/"), to="web"),
    alone=True,
)
row(
    PROXY,
    "a file has only LF for the end of a line",
    file(
        "conf/ends.conf",
        b"USE web\r\nSET\x0cidle_timeout\x0b=\r17\r\nSET docroot = /\x1c\xc2\x85\n",
    ),
    manage("LOAD include", "INCLUDE = {folder}/conf/ends.conf"),
    alone=True,
    differs="INCLUDE reports errors",
    ours=(
        "ERROR: Directory not found for service web\r\nERROR: <folder>/conf/ends.conf, line 3: ",
    ),
)
row(
    PROXY,
    "lists with a comma too many",
    manage("SET choice.plugins = vhosts,", "SET choice.plugins = vhosts , ,", "PLUGINS"),
    manage("SET web.plugins = ,", "SET web.plugins = $NOSUCH", "SET web.index_files = , a.html,"),
    ask(get("/"), to="web"),
    alone=True,
)
row(
    PROXY,
    "values that can't work",
    manage(
        "POOL one ADD 1.2.3.4:99999",
        "POOL one ADD 1.2.3.4:0",
        "POOL one ADD 1.2.3.444",
        "SET web.listen = 99999",
        "SET proxy.error_retry_schedule = soon",
        "HEADER proxy INSERT a=b: c",
        "SET web.role = selector",
    ),
    alone=True,
    differs="values that can't work are refused",
    ours=(
        "99999 is no port",
        "0 is no port",
        "'1.2.3.444' is no address",
        "Listen argument",
        "'a=b' is no name of a header",
        "service web is enabled",
    ),
)
row(
    PROXY,
    "plugins that are in use, unloaded and taken off",
    manage("LOAD AccessControl", "SET proxy.plugins = accesscontrol", "UNLOAD accesscontrol"),
    manage("PLUGINS", "LOAD XFFExtras", "SET web.plugins = XFFExtras", "SET web.plugins = none"),
    manage("PLUGINS", "LOAD Redirect", "SET web.plugins = Redirect", "SET web.plugins = vhosts"),
    manage("PLUGINS"),
    alone=True,
    differs="a plugin is removed",
    ours=("UNLOAD accesscontrol\nOK", "SET web.plugins = none\nOK", "web Redirect\r\n"),
)
NETMASKS = (
    *("1.2.3", "10.1", "10/8", "10.1/16", "0", "0/0", "1.2.3.4.5", "abc", "/8", "1.2.3.4,,5.6.7.8"),
    *(
        "1.2.3.4",
        "1.2.3.4/0",
        "1.2.3.4/8",
        "1.2.3.4/33",
        "1.2.3.4/8/9",
        "1.2.3.4/",
        "any",
        "default",
    ),
    *("1.2.3.400/255.0.0.0", "1.2.3.04:255.0.0.0", "1.2.3.400/8"),
    *("1.2.3.4/255.255.255.0", "1.2.3.4/255.255.0.255", "1.2.3.4/0.0.0.255"),
    *("1.2.3.4:255.255.255.0", "1.2.3.4:24", "10.0.0.0-10.0.0.255", "10.0.0.0 - 10.0.3.255"),
    *("10.0.0.0-10.0.0.254", "10.0.0.5-10.0.0.6", "10.0.0.9-10.0.0.8", "1.2.3.4, 5.6.7.8/16"),
    *("1.2.3.4,", "1.2.3.4 , ,", "1.2.3.4,,5.6.7.8", ",1.2.3.4", ","),
)
row(
    PROXY,
    "netmasks, in all their forms",
    manage(*(f"SET proxy.trusted_upstream_proxies = {each}" for each in NETMASKS)),
    alone=True,
)
NODES = b"""# comment
127.0.0.1:8001
  127.0.0.1:8002   # more of it
127.0.0.3
127.0.0.1:8004 words
x127.0.0.1:8005
127.0.0.1:8006:9
host.name:80
127.0.0.1:8001
127.0.0.1 8009
127.0.0.1:
1.2.3
127.0.0.1:8010,127.0.0.1:8011
"""
row(
    PROXY,
    "a nodefile, whatever is in it",
    file("nodes", NODES),
    manage("SET one.nodefile = {folder}/nodes", "SHOW POOL one", "SHOW POOL"),
    manage("SET one.nodefile = none", "POOL one ADD 127.0.0.1:8001", "SHOW POOL one"),
    alone=True,
)
row(
    PROXY,
    "the context",
    manage(
        "SET idle_timeout = 1",
        "USE",
        "USE nobody",
        "SET idle_timeout = 2",
        "USE web",
        "SET idle_timeout = 3",
        "SET nonsense = 3",
        "USE one",
        "SET balance_method = random",
        "CREATE SERVICE fresh",
        "SET role = web_server",
        "SET docroot = {folder}",
        "SHOW SERVICE",
    ),
    alone=True,
)
row(
    PROXY,
    "a context is one connection's",
    manage("USE web"),
    connect("other", "management"),
    send(b"SET idle_timeout = 3\r\n", by="other"),
    settled(),
)
row(
    PROXY,
    "what POOL refuses, and takes",
    manage(
        "POOL",
        "POOL one",
        "POOL one ADD",
        "POOL one ADD nothing",
        "POOL one ADD 1.2.3",
        "POOL one ADD 1.2.3.4:x",
        "POOL one ADD ::1",
        "POOL nobody ADD 1.2.3.4",
        "POOL one DROP 1.2.3.4",
        "POOL web ADD 1.2.3.4",
        "POOL spare ADD 1.2.3.4",
        "POOL ADD spare 1.2.3.5:99",
        "POOL spare ADD 1.2.3.6:99",
        "SHOW POOL spare",
        "POOL spare ADD 1.2.3.4:80",
        "SHOW POOL spare",
        "POOL spare REMOVE 9.9.9.9",
        "POOL REMOVE spare 1.2.3.5:99",
        "SHOW POOL spare",
        "SHOW POOL",
        "SHOW POOL one",
        "POOL spare REMOVE 1.2.3.4",
        "POOL spare REMOVE 1.2.3.6:99",
        "SHOW POOL spare",
    ),
    alone=True,
)
row(
    PROXY,
    "ENABLE and DISABLE",
    manage(
        "ENABLE",
        "ENABLE nobody",
        "ENABLE one",
        "ENABLE web",
        "DISABLE idle",
        "DISABLE management",
        "ENABLE choice",
        "ENABLE choice",
        "DISABLE choice",
        "DISABLE choice",
        "ENABLE web now",
        "SHOW SERVICE",
    ),
    alone=True,
)
row(
    WEB,
    "a disabled service does not listen, kept connections stay",
    ask(get("/a.html")),
    manage("DISABLE web"),
    settled(),
    ask(get("/a.html")),
    ask(get("/a.html"), by="late"),
    alone=True,
)
row(
    WEB,
    "DISABLE, and later ENABLE",
    manage("DISABLE web"),
    settled(),
    manage("ENABLE web"),
    ask(get("/a.html"), by="late"),
    alone=True,
)
row(
    WEB,
    "another listen moves the service",
    manage("SET web.listen = {idle}", "SHOW SERVICE"),
    ask(get("/a.html"), by="there", to="idle"),
    alone=True,
)
row(
    PROXY,
    "DEFAULT is for those that come later",
    manage(
        "DEFAULT",
        "DEFAULT x",
        "DEFAULT nonsense = 1",
        "DEFAULT idle_timeout = 12",
        "CREATE SERVICE later",
        "SET role = web_server",
    ),
    alone=True,
)
row(
    PROXY,
    "DEFAULT of a value that is none",
    manage("DEFAULT idle_timeout = soon"),
    alone=True,
    differs="DEFAULT checks its value",
    ours=("ERROR: Expecting integer value for parameter 'idle_timeout'",),
)
row(
    PROXY,
    "DEFAULT, dumped",
    manage("DEFAULT idle_timeout = 12", "CREATE SERVICE later", "SET role = web_server"),
    manage("DUMPCONFIG", order="any"),
    alone=True,
    differs="DUMPCONFIG can be read in again",
    ours=("CREATE SERVICE later", "SET idle_timeout = 12"),
)
OLD_HABITS = Setting(
    "old habits",
    """
    CREATE SERVICE first
      SET role = reverse_proxy
    CREATE SERVICE second
      SET role = reverse_proxy
    """,
    services=(),
    files={"nodes": b"127.0.0.1:8001\n"},
)
row(
    OLD_HABITS.at(""),
    "pools that are made by themselves",
    manage("SET first.nodefile = {folder}/nodes", "SHOW POOL", "SHOW POOL first_pool"),
    manage("CREATE POOL other", "SET first.nodefile = {folder}/nodes"),
    manage("SET second.nodefile = {folder}/nodes", "SET second.balance_method = random"),
    alone=True,
)
row(
    PROXY,
    "what HEADER refuses, and takes",
    manage(
        "HEADER",
        "HEADER proxy",
        "HEADER proxy INSERT",
        "HEADER proxy INSERT x",
        "HEADER proxy INSERT x:",
        "HEADER proxy INSERT x y",
        "HEADER proxy REMOVE",
        "HEADER proxy REPLACE x: y",
        "HEADER nobody INSERT x: y",
        "HEADER web INSERT x: y",
        "HEADER one INSERT x: y",
        "HEADER proxy INSERT X-One: Two Three",
        "HEADER proxy REMOVE X-Four",
    ),
    alone=True,
)
row(
    PROXY,
    "letters that are no ASCII stay as they are",
    manage("POOL one REMOVE 127.0.0.9:81", "POOL one REMOVE 127.0.0.8"),
    manage("HEADER proxy INSERT X-A: \u00dcB=\u00dcB", "MIME SET ab \u00dcB"),
    ask(get("/")),
    alone=True,
)
row(
    PROXY,
    "SERVER",
    manage(
        "SERVER",
        "SERVER x",
        "SERVER x = y",
        "SERVER aio_mode = none",
        "SERVER aio_mode = linux",
        "SERVER aio_mode = nonsense",
        "SERVER aio_threads = 2",
        "SERVER aio_threads = two",
        "SERVER max_connections = many",
        "SERVER nice_level = high",
        "SERVER track_obj = 2",
        "SERVER crash_backtrace = 7",
        "SERVER pidfile = /tmp/x",
        "SERVER max_reproxy_connections = 5",
        "SERVER max_reproxy_connections = lots",
        "SERVER max_reproxy_connections(127.0.0.1:80) = 5",
        "SERVER max_reproxy_connections(127.0.0.1:80) = x",
    ),
    alone=True,
)
row(
    PROXY,
    "MIME",
    manage(
        "MIME",
        "MIME LIST",
        "MIME SET",
        "MIME SET x",
        "MIME SET x text/x-x",
        "MIME SET X text/x-y",
        "MIME SET y text/\u20ac",
        "MIME LIST",
        "MIME REMOVE x",
        "MIME REMOVE x",
        "MIME REMOVE",
        "MIME NONSENSE",
        "MIME NONSENSE x y z",
    ),
    alone=True,
)

# --- what is listed -------------------------------------------------------------------------------

row(PROXY, "SHOW", manage("SHOW SERVICE", "SHOW POOL", "SHOW POOL one", "SHOW POOL spare"))
row(PROXY, "SHOW SERVICE of a proxy", manage("SHOW SERVICE proxy"))
row(PROXY, "SHOW SERVICE of a web server", manage("SHOW SERVICE web"))
row(PROXY, "SHOW SERVICE of a selector", manage("SHOW SERVICE choice"))
row(PROXY, "SHOW SERVICE of the manager", manage("SHOW SERVICE management"))
NUMBER = r"(?<=[ +])\d+(\.\d+)?(e-\d+)?"
row(PROXY, "UPTIME and VERSION", manage("UPTIME", blur=r"\d{2,}|(?<=uptime )\d+|version .*"))
row(PROXY, "PROC", manage("PROC", blur=NUMBER))
row(PROXY, "empty lists", manage("NODES", "BACKENDS", "PENDING", "NOVERIFY", "REPROXY_STATE"))
row(PROXY, "FD", manage("FD", blur=r"\d+"))
row(PROXY, "QUEUES", manage("QUEUES", order="any"))
row(PROXY, "STATES with nothing going on", manage("STATES", "STATES proxy", "STATES web"))
row(
    PROXY,
    "DUMPCONFIG",
    manage("DUMPCONFIG", order="any"),
    differs="DUMPCONFIG can be read in again",
    ours=("LOAD Vhosts", "SET plugins = Vhosts", "VHOST a.test = web", "SET buffer_size = 10"),
)
row(
    PROXY,
    "DUMPCONFIG of all that was changed",
    manage(
        "SET proxy.persist_backend = on",
        "SET proxy.buffer_uploads_path = {folder}",
        "SET proxy.queue_relief_size = 3",
        "SET proxy.max_backend_uses = 4",
        "SET proxy.error_retry_schedule = .5,1,1.25",
        "SET proxy.high_priority_cookie_contents = v1.0",
        "SET web.max_put_size = 1m",
        "SET web.server_tokens = off",
        "SET choice.latency = 20",
    ),
    manage("DUMPCONFIG", order="any"),
    alone=True,
    differs="DUMPCONFIG can be read in again",
    ours=(
        "SET persist_backend = on",
        "SET buffer_uploads_path = <folder>",
        "SET queue_relief_size = 3",
        "SET max_backend_uses = 4",
        "SET error_retry_schedule = 0.5,1,1.25",
        "SET high_priority_cookie_contents = v1.0",
        "SET max_put_size = 1",
        "SET server_tokens = off",
        "SET latency = 20",
    ),
)
row(
    PROXY,
    "DUMPCONFIG of netmasks",
    manage("SET proxy.trusted_upstream_proxies = 10.0.0.0/8", "DUMPCONFIG", order="any"),
    alone=True,
    differs="DUMPCONFIG can be read in again",
    ours=("SET trusted_upstream_proxies = 10.0.0.0/8",),
)
row(
    PROXY,
    "a request with its backend, as it is listed",
    manage("POOL one REMOVE 127.0.0.9:81", "POOL one REMOVE 127.0.0.8"),
    serve(held("x", good("late"))),
    send(get("/")),
    asked(),
    manage("STATES", "STATES proxy", "BACKENDS", "SHOW POOL one"),
    manage("SHOW SERVICE proxy", blur=r"(?<=age: )\d+|(?<=age )\d+"),
    manage("NODES", order="any", blur=r"\d{10}"),
    manage("SOCKS SUMMARY"),
    opens("x"),
    hear(),
    manage("NODES", order="any", blur=r"\d{10}"),
    manage("NODE {a}", order="any", blur=r"\d{10}"),
    manage("NODE 127.0.0.99"),
    alone=True,
)
row(PROXY, "SOCKS, in columns", manage("SOCKS", blur=r"(?s)(?<=   fd    age).*"))

KEPT = quietly(
    "POOL one REMOVE 127.0.0.9:81",
    "POOL one REMOVE 127.0.0.8",
    "SET proxy.persist_client = on",
    "SET proxy.persist_backend = on",
)
row(
    PROXY,
    "SOCKS, from a request's first bytes to between two",
    KEPT,
    serve(in_two("x", good("late"), 30), in_two("y", good("late"), -2)),
    sockets,
    send(b"GET /"),
    settled(),
    sockets,
    send(b" HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
    begun(),
    sockets,
    opens("x"),
    hear(),
    sockets,
    send(get("/2")[:9]),
    settled(),
    sockets,
    send(get("/2")[9:]),
    begun(2),
    sockets,
    opens("y"),
    hear(),
    alone=True,
)
for name, sent in (
    ("POST without a body", post("/", b"")),
    ("HEAD", request("HEAD", "/")),
    ("GET with a length", get("/", "Content-Length: 0")),
    ("POST", post("/", b"abc")),
):
    row(
        PROXY,
        f"SOCKS, of a {name}",
        KEPT,
        serve(held("x", good("late"))),
        send(sent),
        asked(),
        sockets,
        opens("x"),
        hear(),
        sockets,
        alone=True,
    )
row(
    PROXY,
    "SOCKS, of a body that has begun to come",
    KEPT,
    send(post("/", b"abcdef")[:-3]),
    settled(),
    manage("STATES", "STATES proxy"),
    sockets,
    alone=True,
)
row(
    PROXY,
    "SOCKS counts no request that a proxy's plugin has answered",
    KEPT,
    quietly("LOAD AccessControl", "SET proxy.plugins = AccessControl"),
    manage("USE proxy", "ACCESS DENY ip 127.0.0.1"),
    ask(get("/")),
    sockets,
    alone=True,
)
row(
    PROXY,
    "SOCKS counts what a web server's plugin has answered",
    quietly("LOAD Redirect", "SET web.plugins = Redirect"),
    manage("USE web", "REDIRECT HOST test test.test"),
    ask(get("/"), by="web", to="web"),
    sockets,
    alone=True,
)
row(
    PROXY,
    "STATES between a 500 and the next try",
    KEPT,
    quietly("SET proxy.enable_error_retries = on", "SET proxy.error_retry_schedule = 1"),
    serve(reply("500 No", "Content-Length: 0")),
    send(get("/")),
    answered(1),
    manage("STATES", "STATES proxy"),
    sockets,
    hear(),
    alone=True,
)
for name, half in (
    ("PUT", put("/new", b"abcdef")[:-3]),
    ("PUT in chunks", request("PUT", "/new", "Transfer-Encoding: chunked", body=b"3\r\nabc\r\n")),
):
    row(
        WEB,
        f"STATES of a {name} that has begun to come",
        quietly("SET web.enable_put = on"),
        send(half),
        settled(),
        manage("STATES", "STATES web"),
        leave(),
        ask(get("/a.html"), by="kept"),
        send(half, by="kept"),
        settled(),
        manage("STATES", "STATES web"),
        sockets,
        leave("kept"),
        alone=True,
    )


def urls(talk: LiveConversation) -> None:
    """Keep only the URLs of what the manager received."""
    talk.transcript["manager"] = re.findall(r"http://[^;\r]*", talk.transcript["manager"][-1])


row(
    PROXY,
    "SOCKS, of a request with bytes that are no ASCII",
    serve(held("x", good("late"))),
    send(get("/\xc3\xa9\xff", "Host: \xe9")),
    asked(),
    manage("SOCKS"),
    urls,
    opens("x"),
    hear(),
    alone=True,
)
row(PROXY, "HELP names the commands", manage("HELP", blur=r"(?s).*"))

# --- the protocol ---------------------------------------------------------------------------------


def said(*pieces: bytes) -> tuple[Callable[[LiveConversation], None], ...]:
    """Send these bytes to the port, and read its answer to the end."""
    return (connect("raw", "management"), send(*pieces, by="raw"), hear("raw"))


row(PROXY, "quit", *said(b"quit\r\n"))
row(PROXY, "quit, and more", *said(b"quit now\r\n"))
row(PROXY, "exit", *said(b"exit\n"))
row(PROXY, "an answer, and quit", *said(b"show pool\r\nquit\r\n"))
row(PROXY, "lines of LF", *said(b"show pool\nverbose off\nuse web\nquit\n"))
row(PROXY, "a line in pieces", *said(b"sh", b"ow po", b"ol\r", b"\nquit\r\n"))
row(PROXY, "empty lines", *said(b"\r\n\r\n   \r\n# x\r\nshow pool\r\nquit\r\n"))
row(
    PROXY,
    "an empty line of LF",
    connect("raw", "management"),
    send(b"\nshow pool\nquit\n", by="raw"),
    hear_or_wait(by="raw"),
    differs="an empty line of LF",
    ours=("one nodes 3",),
)
row(PROXY, "many lines in one go", *said(b"use web\r\n" * 200 + b"quit\r\n"))
row(
    PROXY,
    "no line end at all",
    connect("raw", "management"),
    send(b"quit", by="raw"),
    silence("raw"),
)
row(
    PROXY,
    "VERBOSE",
    manage("VERBOSE off", "USE web", "USE nobody", "SHOW POOL", "VERBOSE on", "USE web"),
)
row(
    PROXY,
    "the other side shuts",
    connect("raw", "management"),
    send(b"show pool\r\n", by="raw"),
    shut("raw"),
    settled(),
)
row(PROXY, "variables of the environment", manage("CREATE POOL x$NOSUCH", "SHOW POOL"), alone=True)
row(
    PROXY,
    "a variable that isn't set, at the end",
    manage("SET proxy.persist_client = $NOSUCH", "QUEUES $NOSUCH", "SERVER x = $NOSUCH"),
    alone=True,
)
row(
    PROXY,
    "INCLUDE",
    manage(
        "LOAD include",
        "INCLUDE",
        "INCLUDE x",
        "INCLUDE = {folder}/conf/none.conf",
        "INCLUDE = {folder}/conf/none*.conf",
        "INCLUDE = {folder}/conf/*.conf",
        "SHOW POOL",
    ),
    alone=True,
)
row(
    PROXY,
    "INCLUDE of many files, in their order",
    file("conf/d/a.conf", b"CREATE POOL many\n"),
    file("conf/d/B.conf", b"POOL many ADD 1.2.3.4\n"),
    file("conf/d/c.conf", b"POOL many ADD 1.2.3.5\n"),
    file("conf/d/_.conf", b"CREATE POOL first\n"),
    file("conf/x y.conf", b"POOL many ADD 1.2.3.6\n"),
    manage("LOAD include", "INCLUDE = {folder}/conf/d/*.conf", "SHOW POOL", "SHOW POOL many"),
    manage('INCLUDE = "{folder}/conf/x y.conf" {folder}/conf/x\\ y.conf', "SHOW POOL many"),
    manage("INCLUDE = ~/there/is/none"),
    alone=True,
)
row(
    PROXY,
    "INCLUDE of what is there already",
    manage("LOAD include", "INCLUDE = {folder}/conf/one.conf", "INCLUDE = {folder}/conf/one.conf"),
    alone=True,
    differs="INCLUDE reports errors",
    ours=("ERROR: pool 'included' already exists",),
)
row(
    PROXY,
    "INCLUDE of a file with an error",
    file("conf/bad.conf", b"CREATE POOL first\nNONSENSE\nCREATE POOL second\n"),
    manage("LOAD include", "INCLUDE = {folder}/conf/bad.conf", "SHOW POOL"),
    alone=True,
    differs="INCLUDE reports errors",
    ours=("ERROR: unknown command: nonsense", "first nodes 0"),
)

# --- pages ----------------------------------------------------------------------------------------


def status(talk: LiveConversation) -> None:
    """Compare only the first line of a page: the rest is for people."""
    heard = talk.transcript["page"]
    talk.transcript["page"] = [heard[0].partition("\r\n")[0], *heard[1:]]


for path in "/", "/socks", "/service?web", "/nothing":
    row(
        PROXY,
        f"the page {path}",
        connect("page", "management"),
        send(request("GET", path, version="1.0"), by="page"),
        hear("page"),
        status,
    )
row(
    PROXY,
    "a page in pieces",
    connect("page", "management"),
    send(b"GET /soc", b"ks HTTP/1.0\r\n", b"\r\n", by="page"),
    hear("page"),
    status,
)
