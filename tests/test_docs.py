"""The documents: every block of code runs, every link leads somewhere, every name is explained."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fnmatch import filter as filter_of
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import danga_raw
from danga_raw import Loop, Socket, Timer
from danga_raw._strace import CALLS
from danga_raw.trace import Trace
from tests.needs import need
from tests.strace import in_newest_words

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
WITH_CODE = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{p}.md" for p in ("manual", "porting", "recipes")),
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
PATIENCE = 60
"""Seconds after which a conversation counts as stuck; none takes even one."""


class Block(NamedTuple):
    """A fenced block of a page; the comment before it, `<!-- test: HOW -->`, tells how to test."""

    page: str
    line: int
    language: str
    how: str
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    comment = how = language = ""
    start, inside, lines = 0, False, list[str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if inside and line == "```":
            yield Block(page.name, start, language, how, "\n".join(lines) + "\n")
            inside, comment = False, ""
        elif inside:
            lines.append(line)
        elif line.startswith("```"):
            language, how, start, inside, lines = line[3:], comment, number, True, []
        elif match := re.fullmatch(r"<!-- test: (.*) -->", line):
            comment = match[1]
        elif line.strip():
            comment = ""


BLOCKS = [block for page in WITH_CODE for block in blocks_of(page)]


def where(block: Block) -> str:
    return f"{block.page}:{block.line} {block.how or 'unmarked'}"


def blocks(*languages: str, how: str = "") -> list[Block]:
    return [b for b in BLOCKS if b.language in languages and how in ("", b.how)]


# --- conversations with the servers of the pages -------------------------------------------------


@contextmanager
def serving(command: list[str]) -> Iterator[tuple[str, int]]:
    """The address of the server that `command` starts, which it prints with the port at the end."""
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            said = process.stdout.readline()
            assert said, process.stderr.read()
            yield "127.0.0.1", int(said.split()[-1])
            assert process.poll() is None, process.stderr.read()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
        assert process.stderr.read() == ""


def receive(client: socket.socket, count: int) -> bytes:
    """`count` bytes, or fewer if the peer closes before."""
    got = bytearray()
    while len(got) < count and (data := client.recv(count - len(got))):
        got += data
    return bytes(got)


def talk_echo(address: tuple[str, int]) -> None:
    """Two clients at once, more data than the kernel's buffers hold, and the end."""
    with (
        socket.create_connection(address, PATIENCE) as one,
        socket.create_connection(address, PATIENCE) as two,
    ):
        two.sendall(b"hello\n")
        assert receive(two, 6) == b"hello\n"
        payload = os.urandom(1 << 16) * 256
        sender = threading.Thread(target=one.sendall, args=(payload,))
        sender.start()
        assert receive(one, len(payload)) == payload
        sender.join()
        # Whoever ends the server next is to find all closed there.
        for each in one, two:
            each.shutdown(socket.SHUT_WR)
            assert each.recv(1) == b""


def talk_lines(address: tuple[str, int]) -> None:
    """Lines in upper case, however they are split, until one says quit."""
    with (
        socket.create_connection(address, PATIENCE) as one,
        socket.create_connection(address, PATIENCE) as two,
    ):
        one.sendall(b"fir")
        two.sendall(b"other\r\n")
        assert receive(two, 7) == b"OTHER\r\n"
        one.sendall(b"st\r\nsecond\r\nthi")
        assert receive(one, 15) == b"FIRST\r\nSECOND\r\n"
        one.sendall(b"rd\r\nquit\r\n")
        assert receive(one, 100) == b"THIRD\r\n"
        # Whoever ends the server next is to find all closed there.
        for each in one, two:
            each.shutdown(socket.SHUT_WR)
            assert each.recv(1) == b""


CONVERSATIONS: dict[str, Callable[[tuple[str, int]], None]] = {
    "echo": talk_echo,
    "lines": talk_lines,
}


def servers(language: str) -> list[Block]:
    return [block for block in blocks(language) if block.how in CONVERSATIONS]


# --- the blocks ----------------------------------------------------------------------------------


def test_every_block_says_how_it_is_tested() -> None:
    for block in BLOCKS:
        known = {"runs", "stops on SIGTERM", "calls of echo", "table", *CONVERSATIONS}
        assert block.language in ("python", "perl", "text"), where(block)
        # tests/test_recipes.py tests the recipes.
        assert block.how in known or block.how.startswith("recipe "), where(block)


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="needs mypy")
def test_python_blocks_are_typed_throughout(tmp_path: Path) -> None:
    programs = []
    for block in blocks("python"):
        if "import asynchat" not in block.text:  # which today's type checkers don't know
            programs.append(tmp_path / f"{block.page.removesuffix('.md')}_{block.line}.py")
            programs[-1].write_text(block.text)
    options = ["--strict", "--config-file=", f"--cache-dir={tmp_path}"]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, programs)],
        env={**ENVIRONMENT, "MYPYPATH": f"{ROOT / 'typestubs'}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("block", blocks("python", how="runs"), ids=where)
@pytest.mark.parametrize("backend", ["epoll", "poll"])
def test_python_block_runs_to_its_end(block: Block, backend: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", block.text],
        env={**ENVIRONMENT, "DANGA_RAW_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("block", blocks("python", how="stops on SIGTERM"), ids=where)
def test_python_block_stops_on_sigterm(block: Block) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", block.text], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopped\n"
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("block", servers("python"), ids=where)
def test_python_block_serves(block: Block) -> None:
    if "import asynchat" in block.text and importlib.util.find_spec("asynchat") is None:
        pytest.skip("this Python has no asyncore any more")
    with serving([sys.executable, "-W", "ignore", "-c", block.text]) as address:
        CONVERSATIONS[block.how](address)


@pytest.mark.parametrize("block", blocks("perl"), ids=where)
def test_perl_block_compiles(block: Block, tmp_path: Path) -> None:
    need("danga")
    program = tmp_path / "block.pl"
    program.write_text(block.text)
    run = subprocess.run(["perl", "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, f"{program} syntax OK\n")


@pytest.mark.parametrize("block", servers("perl"), ids=where)
def test_perl_block_serves(block: Block) -> None:
    need("danga")
    with serving(["perl", "-e", block.text]) as address:
        CONVERSATIONS[block.how](address)


def test_porting_page_has_both_servers_to_compare() -> None:
    lines = [block for block in BLOCKS if (block.page, block.how) == ("porting.md", "lines")]
    both = [(block.language, "asynchat" in block.text) for block in lines]
    assert sorted(both) == [("perl", False), ("python", False), ("python", False), ("python", True)]


def test_chat_on_the_porting_page_obeys_a_terminator_changed_by_a_message() -> None:
    """As asynchat does: smtpd and medusa change it when the rest has already been received."""
    (block,) = (b for b in blocks("python", how="lines") if "class Chat" in b.text)
    names: dict[str, Any] = {}
    exec(block.text.partition("class Upper")[0], names)
    heard: list[bytes] = []

    def found_message(chat: Any, message: bytes) -> None:
        heard.append(message)
        chat.terminator = int(message) if isinstance(chat.terminator, bytes) else b"\r\n"

    here, there = socket.socketpair()
    here.setblocking(False)
    loop = names["default_loop"]()
    loop.set_post_loop_callback(lambda descriptor_map, other_fds: bool(descriptor_map))
    type("Sized", (names["Chat"],), {"found_message": found_message})(here)
    there.sendall(b"5\r\nab\r\nc0\r\n3\r\nxyz1\r\n")
    there.shutdown(socket.SHUT_WR)
    loop.run()
    loop.reset()
    there.close()
    assert heard == [b"5", b"ab\r\nc", b"0", b"", b"3", b"xyz", b"1"]


# --- README --------------------------------------------------------------------------------------


def test_readme_server_has_as_many_lines_as_its_heading_says() -> None:
    (server,) = (b for b in BLOCKS if b.page == "README.md" and b.how == "echo")
    said = re.search(r"^## A server in (\d+) lines$", (ROOT / "README.md").read_text(), re.M)
    assert said and server.text.count("\n") == int(said[1])


def test_readme_server_survives_more_clients_than_it_has_descriptors(tmp_path: Path) -> None:
    (server,) = (b for b in BLOCKS if b.page == "README.md" and b.how == "echo")
    program = tmp_path / "server.py"
    program.write_text(server.text)
    limited = f"ulimit -n 24; exec {sys.executable} {program}"
    with serving(["sh", "-c", limited]) as address, ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(address, PATIENCE)) for _ in range(100)
        ]
        for client in clients:
            client.sendall(b"hello\n")
        for client in clients:
            assert receive(client, 6) == b"hello\n"
            client.close()


def test_readme_server_survives_a_client_that_resets(tmp_path: Path) -> None:
    (server,) = (b for b in BLOCKS if b.page == "README.md" and b.how == "echo")
    with serving([sys.executable, "-c", server.text]) as address:
        for _ in range(20):
            with socket.create_connection(address, PATIENCE) as client:
                client.sendall(bytes(100_000))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        talk_echo(address)


@pytest.mark.parametrize("tracer", ["strace", "danga_raw trace"])
def test_readme_shows_the_calls_of_its_server(tracer: str, tmp_path: Path) -> None:
    (server,) = (b for b in BLOCKS if b.page == "README.md" and b.how == "echo")
    (calls,) = (b for b in BLOCKS if b.how == "calls of echo")
    log = tmp_path / "calls"
    program = tmp_path / "server.py"
    program.write_text(server.text)
    names = f"trace=epoll_ctl,{CALLS['epoll_wait'][0]},read,write"
    options = ["-o", str(log), "-e", names]
    if tracer == "strace":
        need("strace")
        command = ["strace", "-I", "2", *options, sys.executable, str(program)]
    else:
        command = [sys.executable, "-m", "danga_raw", "trace", *options, str(program)]
    environment = {**ENVIRONMENT, "DANGA_RAW_BACKEND": "epoll"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline().split()[-1])
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(b"hello\n")
            assert receive(client, 6) == b"hello\n"
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE)
    seen = "".join(map(in_newest_words, log.read_text().splitlines(keepends=True)))
    # The first is the listener's.
    _, made, *_ = re.finditer(
        r"^epoll_ctl\((\d+), EPOLL_CTL_ADD, (\d+), \{events=EPOLLERR", seen, re.M
    )
    # The trace has its own file open, so the program's descriptors come after it.
    number = {"4": made[1], "5": made[2], "0x5": f"{int(made[2]):#x}"}
    expected = re.sub(r"\b(?:[45]|0x5)\b", lambda match: number[match[0]], calls.text)
    # The page shows the calls of glibc on x86-64.
    expected = expected.replace("epoll_wait(", f"{CALLS['epoll_wait'][0]}(")
    if CALLS["epoll_wait"][0] == "epoll_pwait":
        expected = expected.replace("1000, -1)", "1000, -1, NULL, 8)")
    assert expected in seen


# --- links and names -----------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    found: set[str] = set()
    for line in re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S).splitlines():
        if match := re.match(r"#+ (.*)", line):
            anchor = re.sub(r"[^\w\- ]", "", match[1].lower()).replace(" ", "-")
            names = itertools.chain([anchor], (f"{anchor}-{n}" for n in itertools.count(1)))
            found.add(next(name for name in names if name not in found))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}"


def public(owner: type) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]


MANUAL = (ROOT / "docs" / "manual.md").read_text()


@pytest.mark.parametrize("name", danga_raw.__all__)
def test_manual_has_a_heading_for_every_public_name(name: str) -> None:
    assert re.search(rf"^## {name}$", MANUAL, re.M)


@pytest.mark.parametrize("owner", [Socket, Loop, Timer, Trace], ids=lambda owner: owner.__name__)
def test_manual_names_every_method(owner: type) -> None:
    said = r"[`.]{}\b"
    missing = [name for name in public(owner) if not re.search(said.format(name), MANUAL)]
    assert missing == []


def test_manual_names_every_type() -> None:
    defined = ast.parse((ROOT / "danga_raw" / "types.py").read_text()).body
    names = {node.name for node in defined if isinstance(node, ast.ClassDef)}
    aliases = [node.target for node in defined if isinstance(node, ast.AnnAssign)]
    names |= {alias.id for alias in aliases if isinstance(alias, ast.Name)}
    assert [name for name in names if f"`{name}`" not in MANUAL] == []


def test_map_of_the_tests_is_complete() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`(?:tests/)?([\w*]+\.py)`", page))
    there = {path.name for path in (ROOT / "tests").glob("*.py")} - {"__init__.py"}
    assert {name for name in there if not any(fnmatch(name, each) for each in named)} == set()
    assert all(filter_of(there, each) for each in named if each.startswith("test_"))


def test_manual_names_every_environment_variable() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "danga_raw").glob("*.py"))
    for variable in set(re.findall(r"\bDANGA_RAW_[A-Z]+\b", sources)):
        assert f"| `{variable}` |" in MANUAL


def test_methods_named_in_the_manual_exist() -> None:
    for owner, names in {
        Socket: re.findall(r"Socket\.(\w+)\(", MANUAL),
        Loop: re.findall(r"\bloop\.(\w+)\(", MANUAL),
    }.items():
        assert names
        assert [name for name in names if not hasattr(owner, name)] == []
