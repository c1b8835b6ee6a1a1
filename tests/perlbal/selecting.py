"""selector and the plugins: where requests go, which are refused, and what is added to them."""

from __future__ import annotations

from tests.perlbal.conversation import Setting
from tests.perlbal.steps import (
    ask,
    asked,
    connect,
    get,
    good,
    hear,
    hear_or_wait,
    held,
    leave,
    manage,
    opens,
    post,
    request,
    send,
    serve,
    settled,
    silence,
    sockets,
)
from tests.perlbal.tables import Table

SELECTORS = Setting(
    "selectors",
    """
    LOAD vhosts
    LOAD Redirect
    LOAD AccessControl
    LOAD XFFExtras

    CREATE POOL one
      POOL one ADD {a}

    CREATE SERVICE alpha
      SET role    = web_server
      SET docroot = {folder}/alpha
    ENABLE alpha
    CREATE SERVICE beta
      SET role    = web_server
      SET docroot = {folder}/beta
      SET persist_client = on
    ENABLE beta
    CREATE SERVICE far
      SET role = reverse_proxy
      SET pool = one
      SET persist_backend = on
    ENABLE far
    CREATE SERVICE inner
      SET role    = selector
      SET plugins = vhosts
      VHOST inner inner.example.com = beta
      VHOST inner * = alpha
    ENABLE inner

    CREATE SERVICE vhosts
      SET listen  = {vhosts}
      SET role    = selector
      SET plugins = vhosts
      SET persist_client = on
      VHOST vhosts alpha.example.com = alpha
      VHOST vhosts BETA.example.com  = beta
      VHOST vhosts *.example.com     = far
      VHOST vhosts inner.example.com = inner
      VHOST vhosts *.inner.test      = inner
      VHOST vhosts managed.test      = management
      VHOST vhosts gone.test         = nowhere
      VHOST vhosts x.test;using:mapped.test = alpha
    ENABLE vhosts

    CREATE SERVICE all
      SET listen  = {all}
      SET role    = selector
      SET plugins = vhosts
      VHOST all * = beta
    ENABLE all

    CREATE SERVICE bare
      SET listen = {bare}
      SET role   = selector
    ENABLE bare

    CREATE SERVICE fallback
      SET listen  = {fallback}
      SET role    = selector
      SET plugins = vhosts
      SET default_service = alpha
    ENABLE fallback

    CREATE SERVICE late
      SET listen  = {late}
      SET role    = selector
      SET plugins = vhosts
      SET latency = 50
      VHOST late * = alpha
    ENABLE late

    CREATE SERVICE moved
      SET listen  = {moved}
      SET role    = reverse_proxy
      SET pool    = one
      SET persist_client = on
      SET plugins = redirect
      REDIRECT HOST old.example.com new.example.com
      REDIRECT HOST *.gone.example.com other.example.com
    ENABLE moved

    CREATE SERVICE extras
      SET listen  = {extras}
      SET role    = reverse_proxy
      SET pool    = one
      SET plugins = xffextras
      SET send_backend_port  = yes
      SET send_backend_proto = yes
    ENABLE extras

    CREATE SERVICE guarded
      SET listen  = {guarded}
      SET role    = web_server
      SET docroot = {folder}/alpha
      SET plugins = AccessControl
      ACCESS policy allow
      ACCESS deny ip 127.0.0.2
      ACCESS allow netmask 127.1.0.0/24
      ACCESS deny netmask 127.1.0.0/16
    ENABLE guarded

    CREATE SERVICE closed
      SET listen  = {closed}
      SET role    = web_server
      SET docroot = {folder}/alpha
      SET plugins = AccessControl
      SET persist_client = on
      ACCESS policy deny
      ACCESS allow ip 127.0.0.2
    ENABLE closed

    CREATE SERVICE observed
      SET listen  = {observed}
      SET role    = web_server
      SET docroot = {folder}/alpha
      SET plugins = AccessControl
      SET always_trusted = on
      SET observed.AccessControl.use_observed_ip = 1
      ACCESS deny ip 10.1.1.1
      ACCESS policy allow
    ENABLE observed

    CREATE SERVICE slow
      SET listen  = {slow}
      SET role    = reverse_proxy
      SET pool    = one
      SET plugins = AccessControl
      ACCESS queue_low ip 127.0.0.2
    ENABLE slow
    """,
    services=(
        "vhosts",
        "all",
        "bare",
        "fallback",
        "late",
        "moved",
        "extras",
        "guarded",
        "closed",
        "observed",
        "slow",
    ),
    backends=("a",),
    files={"alpha/index.html": b"alpha\n", "beta/index.html": b"beta\n", "beta/other": b"other\n"},
)

VHOSTS = SELECTORS.at("vhosts")
ALL = SELECTORS.at("all")
MOVED = SELECTORS.at("moved")

TABLE = Table()
row = TABLE.row


def host(name: str, path: str = "/", *fields: str) -> bytes:
    return get(path, f"Host: {name}", *fields)


# --- Vhosts ---------------------------------------------------------------------------------------

for name in (
    "alpha.example.com",
    "alpha.example.com:8080",
    "alpha.example.com.",
    "beta.example.com",
    "other.example.com",
    "deep.down.example.com",
    "example.com",
    "xexample.com",
    "inner.example.com",
    "x.inner.test",
    "nobody.test",
    "managed.test",
    "gone.test",
    "mapped.test",
    "127.0.0.1",
    "[::1]",
    " ",
):
    row(VHOSTS, f"Host: {name}", ask(host(name)))
row(
    VHOSTS,
    "Host: ALPHA.Example.COM",
    ask(host("ALPHA.Example.COM")),
    differs="hosts in any form",
    ours=("alpha",),
)
row(
    VHOSTS,
    "Host with the dot of the root and a port",
    ask(host("alpha.example.com.:80")),
    differs="hosts in any form",
    ours=("alpha",),
)
row(
    VHOSTS,
    "Host that is an IPv6 address",
    manage("VHOST vhosts [::1] = alpha"),
    ask(host("[::1]:80")),
    alone=True,
    differs="hosts in any form",
    ours=("\nOK\r\n", "alpha"),
)
row(
    VHOSTS,
    "two Hosts in one",
    ask(host("alpha.example.com, beta.example.com")),
    differs="strict heads",
    ours=("HTTP/1.0 400 ", "<closed>"),
)
row(VHOSTS, "no Host at all", ask(get("/", version="1.0")))
row(VHOSTS, "Host by a whole URL", ask(get("http://alpha.example.com/", version="1.0")))
row(
    VHOSTS,
    "Host by a whole URL, against the field",
    ask(host("beta.example.com", "http://alpha.example.com/")),
)
row(
    VHOSTS,
    "one connection to three services",
    ask(host("alpha.example.com")),
    ask(host("beta.example.com", "/other")),
    ask(host("x.example.com")),
    ask(host("alpha.example.com")),
)
row(
    VHOSTS,
    "one connection through two selectors, and back",
    ask(host("inner.example.com")),
    ask(host("x.inner.test")),
    ask(host("alpha.example.com")),
)
row(
    VHOSTS,
    "a POST to one service, then a GET to another",
    ask(request("POST", "/", "Host: x.example.com", "Content-Length: 3", body=b"abc")),
    ask(host("alpha.example.com")),
)
row(
    VHOSTS,
    "a POST in pieces",
    send(post("/", b"abcdef", "Host: x.example.com")[:-3], b"def"),
    hear(),
    ask(host("alpha.example.com")),
)
row(
    VHOSTS,
    "404, and on",
    ask(host("nobody.test")),
    ask(host("alpha.example.com")),
)
row(VHOSTS, "close is heeded", ask(host("alpha.example.com", "/", "Connection: close")))
row(VHOSTS, "1.0 without keep-alive", ask(get("/", "Host: alpha.example.com", version="1.0")))
row(VHOSTS, "HEAD", ask(request("HEAD", "/", "Host: beta.example.com")), ask(host("nobody.test")))
row(
    VHOSTS,
    "__using",
    ask(host("x.test", "/__using/mapped.test/x")),
    ask(host("x.test", "/__using/other.test/x")),
)
row(
    VHOSTS,
    "two requests in one go",
    ask(host("x.example.com") + host("x.example.com")),
    differs="a refusal says close",
    ours=("HTTP/1.0 400 ", "Connection: close", "Can't pipeline to HTTP/1.0<closed>"),
)
row(VHOSTS, "nonsense", ask(b"nonsense\r\n\r\n"))
row(ALL, "a selector that keeps none, a service that would", ask(host("any.test")))
row(SELECTORS.at("bare"), "a selector without a plugin", ask(host("any.test")))
row(
    SELECTORS.at("fallback"),
    "a default service",
    ask(host("any.test")),
    differs="default_service is used",
    ours=("alpha",),
)
row(
    SELECTORS.at("bare"),
    "a default service, and no plugin",
    manage("SET bare.default_service = alpha"),
    ask(host("any.test")),
    alone=True,
    differs="default_service is used",
    ours=("alpha",),
)
row(SELECTORS.at("late"), "latency", send(host("any.test")), silence(), hear())
row(
    VHOSTS,
    "a body during the latency",
    manage("SET vhosts.latency = 50"),
    send(post("/", b"abc", "Host: far.example.com")),
    hear_or_wait(),
    alone=True,
    differs="a body during the latency",
    ours=("abc", "HTTP/1.0 200 OK"),
)
row(
    VHOSTS,
    "SOCKS, of a connection that goes from service to service",
    ask(host("nobody.test", "/none", "Connection: keep-alive")),
    sockets,
    ask(host("beta.example.com")),
    sockets,
    manage("SET far.persist_client = on", "STATES"),
    serve(held("x", good("far"))),
    send(host("far.example.com")),
    asked(),
    sockets,
    manage("STATES", "STATES far", "STATES vhosts"),
    opens("x"),
    hear(),
    sockets,
    ask(host("inner.example.com")),
    sockets,
    alone=True,
)
row(
    VHOSTS,
    "STATES in a selector's latency",
    manage("SET vhosts.latency = 1000"),
    send(host("beta.example.com")),
    settled(),
    manage("STATES", "STATES vhosts"),
    sockets,
    hear(),
    send(host("beta.example.com")),
    settled(),
    manage("STATES", "STATES vhosts"),
    sockets,
    hear(),
    alone=True,
)
row(
    SELECTORS.at("late"),
    "a client that leaves in the latency",
    send(host("any.test")),
    settled(),
    leave(),
)
row(
    VHOSTS,
    "a vhost that is set later, and over another",
    manage("VHOST vhosts later.test = beta", "VHOST vhosts later.test = alpha"),
    ask(host("later.test")),
    manage("USE vhosts", "VHOST later.test = beta"),
    ask(host("later.test"), by="b"),
    alone=True,
)
row(
    VHOSTS,
    "what VHOST refuses",
    manage(
        "VHOST",
        "VHOST vhosts",
        "VHOST vhosts a.test",
        "VHOST vhosts a.test beta",
        "VHOST nowhere a.test = beta",
        "VHOST beta a.test = beta",
        "VHOST vhosts a/test = beta",
        "VHOST vhosts a.test = be/ta",
        "VHOST vhosts *a.test = beta",
        "VHOST vhosts a.test = ",
        "VHOST vhosts = beta",
        "VHOST a.test = beta",
    ),
)

# --- Redirect -------------------------------------------------------------------------------------

row(
    MOVED,
    "a host that moved",
    ask(host("old.example.com", "/path?query=1")),
    ask(host("stays.test")),
)
row(MOVED, "a host that moved, in capitals", ask(host("OLD.example.com:81", "/")))
row(MOVED, "all below a host", ask(host("a.b.gone.example.com", "/x")))
row(MOVED, "a host that did not", ask(host("example.com")))
row(
    MOVED,
    "a host that moved, with the dot of the root",
    ask(host("old.example.com.", "/x")),
    differs="hosts in any form",
    ours=("Location: http://new.example.com/x\r\n",),
)
row(MOVED, "HEAD of what moved", ask(request("HEAD", "/", "Host: old.example.com")))
row(MOVED, "POST of nothing", ask(post("/", b"", "Host: old.example.com")))
row(
    MOVED,
    "POST",
    ask(post("/", b"x", "Host: old.example.com")),
    differs="an unread body closes",
    ours=("HTTP/1.0 301 ", "Connection: close"),
)
row(MOVED, "close", ask(host("old.example.com", "/", "Connection: close")))
row(
    MOVED,
    "a host that moved, and is no ASCII",
    manage("USE moved", "REDIRECT HOST b\u00fccher.test neue-b\u00fccher.test"),
    ask(host("b\xc3\xbccher.test")),
    alone=True,
)
row(
    MOVED,
    "what REDIRECT refuses",
    manage(
        "USE moved",
        "REDIRECT",
        "REDIRECT HOST",
        "REDIRECT HOST a.test",
        "REDIRECT PATH /a /b",
        "REDIRECT HOST a/test b.test",
        "REDIRECT HOST fine.test b.test",
    ),
    alone=True,
)

# --- XFFExtras ------------------------------------------------------------------------------------

row(SELECTORS.at("extras"), "port and protocol", ask(get("/")))
row(
    SELECTORS.at("extras"),
    "port and protocol in another's place",
    ask(get("/", "X-Forwarded-Port: 1", "X-Forwarded-Proto: gopher", "X-Forwarded-For: 10.1.1.1")),
)
for trusted in "127.0.0.1", "10.0.0.0/8":
    row(
        SELECTORS.at("extras"),
        f"port and protocol of a blind proxy that trusts {trusted}",
        manage("SET extras.blind_proxy = on", f"SET extras.trusted_upstream_proxies = {trusted}"),
        ask(get("/", "X-Forwarded-Port: 1")),
        alone=True,
    )
row(
    SELECTORS.at("extras"),
    "switched off",
    manage("SET extras.send_backend_port = no", "SET extras.send_backend_proto = off"),
    ask(get("/", "X-Forwarded-Port: 1")),
    alone=True,
)
row(
    SELECTORS.at("extras"),
    "what the parameters refuse",
    manage("SET extras.send_backend_port = maybe", "SET extras.send_backend = 1"),
)

# --- AccessControl --------------------------------------------------------------------------------

for source in "127.0.0.1", "127.0.0.2", "127.1.0.9", "127.1.1.9":
    row(SELECTORS.at("guarded"), f"from {source}", connect(source=source), ask(get("/")))
row(SELECTORS.at("closed"), "policy deny", ask(get("/")), ask(get("/")))
row(SELECTORS.at("closed"), "policy deny, HEAD", ask(request("HEAD", "/")))
row(SELECTORS.at("closed"), "policy deny, allowed", connect(source="127.0.0.2"), ask(get("/")))
row(SELECTORS.at("observed"), "observed", ask(get("/", "X-Forwarded-For: 10.1.1.1, 10.2.2.2")))
row(
    SELECTORS.at("observed"),
    "observed behind",
    ask(get("/", "X-Forwarded-For: 10.2.2.2, 10.1.1.1")),
)
row(SELECTORS.at("observed"), "observed oddly", ask(get("/", "X-Forwarded-For: 10.1.1.1\xa0,x")))
row(SELECTORS.at("observed"), "observed nobody", ask(get("/")))
for mask in "any", "0.0.0.0/1":
    row(
        SELECTORS.at("observed"),
        f"observed is what is no address, and {mask} is denied",
        manage("USE observed", f"ACCESS deny netmask {mask}"),
        *(
            ask(get("/", f"X-Forwarded-For: {said}"), to="observed", by=said)
            for said in ("unknown", "10.1.1", "256.1.1.1", "10.1.1.1:80", "", "::1", "10.1.1.2")
        ),
        alone=True,
    )
row(SELECTORS.at("slow"), "queue_low is answered too", connect(source="127.0.0.2"), ask(get("/")))
row(
    SELECTORS.at("guarded"),
    "reset, and other rules",
    manage("USE guarded", "ACCESS reset", "ACCESS deny ip 127.0.0.1"),
    ask(get("/")),
    manage("ACCESS reset"),
    ask(get("/"), by="b"),
    alone=True,
)
row(
    SELECTORS.at("guarded"),
    "what ACCESS refuses",
    manage(
        "ACCESS deny ip 127.0.0.1",
        "USE guarded",
        "ACCESS",
        "ACCESS deny",
        "ACCESS deny netmask 127.0.0.0/99",
        "ACCESS deny netmask 127/8",
        "ACCESS deny netmask 128.0.0.0/0.255.255.255",
        "ACCESS deny netmask 128.0.0.0:255.0.0.0",
        "ACCESS deny netmask 128.0.0.0-128.0.0.255",
        "ACCESS deny netmask 128.0.0.0-128.0.0.254",
        "ACCESS deny host localhost",
        "ACCESS policy maybe",
        "ACCESS policy",
        "ACCESS permit ip 127.0.0.9",
        "ACCESS reset now",
    ),
    alone=True,
)
row(
    SELECTORS.at("guarded"),
    "ACCESS and what is no address",
    manage(
        "USE guarded",
        "ACCESS deny ip",
        "ACCESS deny ip 127.0.0.x",
        "ACCESS deny ip 127.0.0.1.1",
        "ACCESS deny ip 127.0.0.0/8",
    ),
    alone=True,
    differs="values that can't work are refused",
    ours=("Error parsing ip\r\n",) * 4,
)
row(
    SELECTORS.at("observed"),
    "use_observed_ip that is off",
    manage("SET observed.AccessControl.use_observed_ip = 0"),
    ask(get("/", "X-Forwarded-For: 10.1.1.1")),
    alone=True,
)

row(
    SELECTORS.at("observed"),
    "use_observed_ip is gone when plugins are set once more",
    manage("SET observed.plugins = AccessControl"),
    ask(get("/", "X-Forwarded-For: 10.1.1.1")),
    alone=True,
)

# --- behind a selector ----------------------------------------------------------------------------

SAID = ("X-Forwarded-For: 10.1.1.1, 10.2.2.2", "X-Host: a", "X-Forwarded-Host: b")
for service in "vhosts", "far":
    row(
        VHOSTS,
        f"a client that is trusted by {service}",
        manage(f"SET {service}.always_trusted = on"),
        ask(host("x.example.com", "/", *SAID)),
        manage(f"SET {service}.blind_proxy = on"),
        ask(host("x.example.com", "/", *SAID)),
        alone=True,
    )
for service in "vhosts", "far":
    row(
        VHOSTS,
        f"a client that is denied by {service}, by what is said of it",
        manage(
            f"USE {service}",
            "SET plugins = AccessControl" + (", vhosts" if service == "vhosts" else ""),
            f"SET {service}.AccessControl.use_observed_ip = 1",
            "ACCESS deny ip 10.1.1.1",
            "VHOST vhosts * = far",
        ),
        ask(host("x.example.com", "/1", *SAID)),
        manage("SET always_trusted = on"),
        ask(host("x.example.com", "/2", *SAID)),
        ask(host("x.example.com", "/3")),
        alone=True,
    )
row(
    VHOSTS,
    "a service goes by what its selector believes",
    manage(
        "SET vhosts.always_trusted = on",
        "USE far",
        "SET plugins = AccessControl",
        "SET far.AccessControl.use_observed_ip = 1",
        "ACCESS deny ip 10.1.1.1",
        "VHOST vhosts * = far",
    ),
    ask(host("x.example.com", "/1", *SAID)),
    ask(host("x.example.com", "/2")),
    alone=True,
)
row(
    VHOSTS,
    "a selector doesn't go by what its service believed of the request before",
    manage(
        "SET far.always_trusted = on",
        "USE vhosts",
        "SET plugins = AccessControl, vhosts",
        "SET vhosts.AccessControl.use_observed_ip = 1",
        "ACCESS deny ip 10.1.1.1",
        "VHOST vhosts * = far",
    ),
    ask(host("x.example.com", "/1", *SAID)),
    ask(host("x.example.com", "/2")),
    alone=True,
    differs="back to the first service",
    ours=("HTTP/1.0 200 OK",) * 2,
)
row(
    VHOSTS,
    "a new node for a service that doesn't listen itself",
    manage("POOL one REMOVE {a}", "DISABLE far"),
    send(host("x.example.com")),
    settled(),
    manage("POOL one ADD {a}"),
    hear_or_wait(),
    alone=True,
    differs="a new node serves at once",
    ours=("HTTP/1.0 200 OK",),
)
row(
    VHOSTS,
    "plugins that are set once more have forgotten all",
    manage("SET vhosts.plugins = vhosts"),
    ask(host("alpha.example.com")),
    manage("VHOST vhosts alpha.example.com = alpha"),
    ask(host("alpha.example.com")),
    alone=True,
)

# --- plugins --------------------------------------------------------------------------------------

row(
    VHOSTS,
    "plugins are listed, loaded and unloaded",
    manage("PLUGINS", order="any"),
    manage("LOAD vhosts", "LOAD VHOSTS", "UNLOAD vhosts", "LOAD include", "LOAD"),
    alone=True,
)
row(
    ALL,
    "a service takes only plugins that are loaded",
    manage("SET all.plugins = vhosts, include", "SET all.plugins = nothing"),
    ask(host("any.test")),
    alone=True,
    differs="no OK after an ERROR",
    ours=("Plugin include not loaded; not registered for all.\r\n", "HTTP/1.0 500 "),
)
row(
    VHOSTS,
    "a command of a plugin that is not loaded",
    manage("INCLUDE = x", "THROTTLE x"),
)
