"""examples/perlbal: the configuration language, tried on a server that isn't started."""

import errno
import os
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from danga_raw import Loop
from examples.perlbal.language import Context
from examples.perlbal.parameters import LanguageError, netmask, schedule
from examples.perlbal.plugins import AccessControl, Vhosts
from examples.perlbal.server import Server
from examples.perlbal.services import Service
from tests.world import no_hanging

RANGE_ERROR = "Expecting integer value between 0 and 100, inclusive."
LISTEN_ERROR = "Listen argument must be ip:port or port. e.g. 192.168.0.1:80 or 81"


class ServerConsole:
    """A server, and its answers."""

    def __init__(self, loop: Loop) -> None:
        self.server = Server(loop)
        self.context = Context(verbose=True)

    def __call__(self, *lines: str) -> list[str]:
        answers: list[str] = []
        for line in lines:
            self.server.language.run(line, answers.append, self.context)
        return answers


@pytest.fixture
def say() -> Iterator[ServerConsole]:
    with Loop() as loop:
        yield ServerConsole(loop)


def out_of_descriptors(path: str) -> list[str]:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_case_spaces_and_comments_do_not_matter(say: ServerConsole) -> None:
    assert say("  CREATE \t SERVICE   Foo # a comment", "", "# nothing") == ["OK"]
    assert say("set ROLE=web_server", "SET foo persist_client = YES") == ["OK", "OK"]
    assert say.server.services["foo"].persist_client == 1


def test_services_and_pools_share_one_namespace(say: ServerConsole) -> None:
    say("CREATE POOL a", "CREATE SERVICE b")
    assert say("CREATE SERVICE a", "CREATE POOL b") == [
        "ERROR: pool 'a' already exists",
        "ERROR: service 'b' already exists",
    ]


def test_role_brings_its_defaults_and_those_set_by_default(say: ServerConsole) -> None:
    say("DEFAULT buffer_size = 10k", "CREATE SERVICE p", "SET role = reverse_proxy")
    service = say.server.services["p"]
    assert (service.buffer_size, service.buffer_backend_connect) == (10_240, 102_400)


def refused_by_stat(path: str) -> str:
    """What this Python says of a path that the system can't be asked for."""
    with pytest.raises(ValueError) as refused:
        os.stat(path)
    return str(refused.value)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("SET p.nope = 1", "Unknown service parameter 'nope'"),
        ("SET q.listen = 1", "service/pool 'q' does not exist"),
        ("SET p.docroot = /", "The 'docroot' option can only be set on a 'web_server' service"),
        ("SET p.persist_client = 2", "Expecting boolean value for parameter 'persist_client'"),
        ("SET p.connect_ahead = -1", "Expecting integer value for parameter 'connect_ahead'"),
        ("SET p.queue_relief_chance = 101", RANGE_ERROR),
        ("SET p.listen = 1.2.3.4", LISTEN_ERROR),
        ("SET p.listen = 99999", LISTEN_ERROR),
        ("SET p.pool = q", "Pool 'q' not found"),
        ("POOL q ADD 1.2.3.4", "Pool 'q' not found"),
        ("POOL a ADD 1.2.3.444", "'1.2.3.444' is no address"),
        ("POOL a ADD 1.2.3.4:0", "0 is no port"),
        ("ENABLE q", "service 'q' does not exist"),
        ("DISABLE p", "service p is already disabled"),
        ("USE q", "Non-existent pool or service 'q'"),
        ("SERVER nope = 7", "unknown server option '7'"),
        ("NOPE", "unknown command: nope"),
        ("XS", "xs is not supported here: there is no Perl here"),
        ("SET p.role = upload_tracker", "The role upload_tracker is not supported here"),
        ("SET p.server_process = /x", "The 'server_process' option is not supported here"),
        ("RELOAD vhosts", "Plugin Perlbal::Plugin::Vhosts doesn't support reloading"),
        ("RELOAD nope", "Unknown/unloaded plugin 'nope'"),
        ("USE ${ip:a b}", "Bogus-looking iface name"),
        ("USE ${ip:no_such}", "Can't find IP of interface 'no_such'"),
        ("SET a.nodefile = /no/such", "File not found"),
        ("SET p.enable_ssl = 1", "SSL is not supported here: put a server that has it in front"),
        (
            "LOAD throttle",
            "Plugin throttle is not supported here; there are"
            " accesscontrol, include, redirect, vhosts, xffextras",
        ),
        ("= 1", "invalid command"),
        ("$NOSUCH UNLOAD accesscontrol", "invalid command"),
        ("CREATE POOL ${a${b}", "Unknown config variable: b"),
        ("INCLUDE = a\0b", refused_by_stat("a\0b")),
        (
            "SET p.plugins = vhosts, redirect",
            "You can't load the vhost plugin on a service not of role selector.",
        ),
        ("FD", f"[Errno 24] {os.strerror(errno.EMFILE)}"),
    ],
)
def test_error_is_reported_and_changes_nothing(
    say: ServerConsole, line: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.listdir", out_of_descriptors)
    say("LOAD include", "CREATE POOL a", "CREATE SERVICE p", "SET role = reverse_proxy")
    say("SET pool = a", "LOAD vhosts", "LOAD redirect", "LOAD accesscontrol")
    say("SET plugins = accesscontrol", "ACCESS policy deny")
    before = say("DUMPCONFIG")
    assert say(line) == [f"ERROR: {answer}"]
    assert say("DUMPCONFIG") == before


def test_node_added_again_moves_to_the_end(say: ServerConsole) -> None:
    say("CREATE POOL a", "POOL a ADD 1.1.1.1", "POOL ADD a 2.2.2.2:81", "POOL a ADD 1.1.1.1:80")
    say("POOL a ADD [0:0::1]:82", "POOL a REMOVE 9.9.9.9")
    assert say("SHOW POOL a") == ["2.2.2.2:81 0", "1.1.1.1:80 0", "[::1]:82 0", "."]


def test_dumped_configuration_can_be_loaded_again(say: ServerConsole, tmp_path: Path) -> None:
    say("LOAD vhosts", "LOAD accesscontrol", "LOAD xffextras", "LOAD redirect")
    (tmp_path / "nodes").touch()
    say("CREATE POOL f", f"SET nodefile = {tmp_path / 'nodes'}")
    say("CREATE POOL a", "POOL a ADD 1.1.1.1")
    say("CREATE SERVICE p", "SET role = reverse_proxy", "SET pool = a", "SET buffer_size = 10k")
    say("SET plugins = accesscontrol xffextras", "SET send_backend_port = on")
    say("SET p.AccessControl.use_observed_ip = 1", "SET p.extra.note = some text")
    say("ACCESS DENY ip 1.1.1.1", "SET trusted_upstream_proxies = 10.0.0.0/8, fe80::/10")
    say("HEADER p INSERT x: y", "HEADER p REMOVE z")
    say("CREATE SERVICE s", "SET role = selector", "SET plugins = vhosts", "VHOST *.a.com = p")
    say("SET persist_client = on", "CREATE SERVICE w", "SET role = web_server", "ENABLE w")
    say("SET s.default_service = w", "SET plugins = redirect", "REDIRECT HOST a b/\u20ac")
    say("HEADER w INSERT x: \u20ac")
    dumped = say("DUMPCONFIG")
    assert dumped.pop() == "OK"
    assert "  SET p.accesscontrol.use_observed_ip = 1" in dumped
    file = tmp_path / "again.conf"
    file.write_text("\n".join(dumped), encoding="utf-8")
    with Loop() as loop:
        again = ServerConsole(loop)
        again.server.language.load_file(str(file), print)
        assert again("DUMPCONFIG") == [*dumped, "OK"]


def test_settings_of_a_plugin_no_longer_used_are_not_dumped(say: ServerConsole) -> None:
    say("LOAD accesscontrol", "CREATE SERVICE p", "SET plugins = accesscontrol")
    say("SET p.AccessControl.use_observed_ip = 1", "SET plugins = none")
    assert not [line for line in say("DUMPCONFIG") if "use_observed_ip" in line]


def test_list_may_be_empty_and_is_dumped_as_an_empty_list(say: ServerConsole) -> None:
    say("CREATE SERVICE w", "SET role = web_server", "SET index_files = ,")
    assert "  SET index_files = ," in say("DUMPCONFIG")


def test_parameters_of_a_plugin_exist_for_earlier_and_later_services(say: ServerConsole) -> None:
    say("CREATE SERVICE before", "LOAD xffextras", "CREATE SERVICE later")
    for name in say.server.services:
        say(f"SET {name}.role = reverse_proxy", f"SET {name}.send_backend_proto = off")
        assert say(f"SET {name}.send_backend_port = on") == ["OK"]
    dumped = [line for line in say("DUMPCONFIG") if "send_backend" in line]
    assert dumped == 2 * ["  SET send_backend_port = on"]


def test_change_of_role_resets_to_its_defaults_and_keeps_settings_without_one(
    say: ServerConsole, tmp_path: Path
) -> None:
    say("DEFAULT idle_timeout = 7", "CREATE SERVICE a", "SET listen = 127.0.0.1:1")
    say("SET idle_timeout = 5", "SET role = web_server", f"SET docroot = {tmp_path}")
    say("SET persist_client = on", "SET dirindexing = on", "SET role = reverse_proxy")
    service = say.server.services["a"]
    assert (service.idle_timeout, service.persist_client) == (7, 0)
    say("SET role = web_server")
    assert (service.dirindexing, service.docroot) == (0, str(tmp_path))
    assert service.listen == "127.0.0.1:1"


def test_file_is_read_up_to_its_first_error(say: ServerConsole, tmp_path: Path) -> None:
    file = tmp_path / "bad.conf"
    file.write_text("CREATE POOL a\nNOPE\nCREATE POOL b\n")
    answers: list[str] = []
    with pytest.raises(LanguageError, match="line 2: NOPE"):
        say.server.language.load_file(str(file), answers.append)
    assert answers == ["ERROR: unknown command: nope"]
    assert list(say.server.pools) == ["a"]


def test_endless_file_is_rejected(say: ServerConsole) -> None:
    (answer,) = say("LOAD include", "INCLUDE = /dev/zero")[1:]
    assert answer == "ERROR: /dev/zero is longer than 10000000 characters"


def test_file_that_would_block_a_running_server_is_rejected(
    say: ServerConsole, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    say.server.running = True
    with no_hanging(2):
        (answer,) = say("LOAD include", f"INCLUDE = {pipe}")[1:]
    assert answer == f"ERROR: Error opening config file ({pipe}): Not a file"


def test_variables_come_from_the_environment(
    say: ServerConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOL_NAME", "from_outside")
    say("CREATE POOL $POOL_NAME")
    assert list(say.server.pools) == ["from_outside"]
    assert say("CREATE POOL ${nope:x}") == ["ERROR: Unknown config variable type: nope"]


@pytest.mark.skipif(sys.platform != "linux", reason="the address is that of Linux's ioctl")
def test_interface_stands_for_its_address(say: ServerConsole) -> None:
    assert say("CREATE SERVICE p", "SET listen = ${ip:lo}:80") == ["OK", "OK"]
    assert say.server.services["p"].listen == "127.0.0.1:80"


def test_file_that_includes_itself_is_an_error(say: ServerConsole, tmp_path: Path) -> None:
    file = tmp_path / "round.conf"
    file.write_text(f"INCLUDE = {file}\n")
    answers = say("LOAD include", f"INCLUDE = {file}")
    assert answers[1] == f"ERROR: INCLUDE within INCLUDE, 10 deep: {file}"


def test_closest_pattern_wins(say: ServerConsole) -> None:
    service = Service(say.server, "")
    vhosts = Vhosts(say.server)
    maps = vhosts.maps[service] = dict.fromkeys(
        ("a.b.com", "*.a.b.com", "*.b.com", "*.com", "*"), ""
    )
    for name in maps:
        maps[name] = name
    while maps:
        assert vhosts.find(service, "a.b.com")[0] == next(iter(maps))
        del maps[next(iter(maps))]
    assert vhosts.find(service, "a.b.com") == []


def test_host_with_very_many_labels_costs_no_more_than_its_length(say: ServerConsole) -> None:
    service = Service(say.server, "")
    vhosts = Vhosts(say.server)
    vhosts.maps[service] = {"*.b.c": "x"}
    host = "a." * 5000 + "b.c"
    tracemalloc.start()
    try:
        assert vhosts.find(service, host) == ["x"]
        assert tracemalloc.get_traced_memory()[1] < 20 * len(host)
    finally:
        tracemalloc.stop()


def test_pattern_that_is_too_deep_is_an_error(say: ServerConsole) -> None:
    (answer,) = say("LOAD include", f"INCLUDE = {'*/' * 5000}")[1:]
    assert answer.startswith("ERROR: maximum recursion depth")


@pytest.mark.parametrize("items", ["1," * 50 + "x", ", " * 50 + "x", "1 , " * 50 + "x"])
def test_schedule_that_is_almost_valid_is_rejected_quickly(say: ServerConsole, items: str) -> None:
    say("CREATE SERVICE p", "SET role = reverse_proxy")
    with no_hanging(30):  # Exponential backtracking would take years.
        (answer,) = say(f"SET p.error_retry_schedule = {items}")
    assert answer.startswith("ERROR: Expecting seconds")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0,.25,.50,1", (0, 0.25, 0.5, 1)),
        (" 1. , 2.5,", (1, 2.5, 0)),
        ("", (0,)),
        (".", (0,)),
    ],
)
def test_schedule_is_seconds_separated_by_commas(
    say: ServerConsole, text: str, seconds: tuple[float, ...]
) -> None:
    assert schedule(Service(say.server, ""), "", text) == seconds


@pytest.mark.parametrize(
    ("rule", "ip", "fits"),
    [
        ("ip ::1", "0:0:0:0:0:0:0:1", True),
        ("ip 0::0:1", "::1", True),
        ("netmask fe80::/10", "fe80::1", True),
        ("ip 10.0.0.1", "10.0.0.2", False),
        ("netmask 10.0.0.0/8", "::ffff:10.0.0.1", True),
        ("netmask any", "::1", False),
        ("netmask any", "10.0.0.1", True),
        ("netmask any", "what an upstream says", True),
        ("netmask 10.0.0.0/8", "what an upstream says", False),
    ],
)
def test_rule_matches_an_address_however_it_is_written(
    say: ServerConsole, rule: str, ip: str, fits: bool
) -> None:
    say("LOAD accesscontrol", "CREATE SERVICE w", f"ACCESS deny {rule}")
    control = say.server.plugins["accesscontrol"]
    assert isinstance(control, AccessControl)
    assert control.action(say.server.services["w"], ip) == ("deny" if fits else "allow")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("10.1.2.3", "10.1.2.3/32"),
        ("10.1.2.3:255.0.0.0", "10.0.0.0/8"),
        ("10.1.0.0-10.1.255.255", "10.1.0.0/16"),
        ("10.1.2.3/255.255.0.0", "10.1.0.0/16"),
        ("fe80::1/10", "fe80::/10"),
        ("any", "0.0.0.0/0"),
    ],
)
def test_netmasks_have_many_forms(text: str, written: str) -> None:
    assert str(netmask(text)) == written
