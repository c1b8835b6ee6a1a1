"""What holds for the source as such: which room knows which, and what a type checker sees."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "danga_raw"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))

FLOORS = [
    {"_interrupt", "_libc", "_log", "_mistakes", "_structs", "_typing"},
    {"_addresses", "_connecting", "_epoll", "_kqueue", "_poll", "_sockopt", "_waker"},
    {"_registry", "timers"},
    {"loop"},
    {"socket"},
    {"listener"},
    {"types"},
    {"_clibrary"},
    {"_kernel"},
    {"_seccomp", "_strace"},
    {"trace", "_program", "_tracecli"},
    {"__init__"},
    {"__main__"},
]
"""The rooms of the package; a room knows those of its own floor and below."""


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def for_checkers_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def running(node: ast.AST) -> Iterator[ast.AST]:
    """What of a module there is at run time, inside its functions too. Annotations may name what is
    above, and type checkers see it imported."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and for_checkers_only(child):
            for other in child.orelse:
                yield from running(other)
        else:
            yield from running(child)


def imports(module: str) -> set[str]:
    """What a module imports at run time."""
    found: set[str] = set()
    for node in running(tree(module)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def rooms(module: str) -> set[str]:
    """The rooms of the package that a room knows."""
    names = [name.split(".") for name in imports(module)]
    found = {parts[1] if parts[1:] else "__init__" for parts in names if parts[0] == "danga_raw"}
    return found - {"__init__"} if module == "__init__" else found  # `from danga_raw import types`


def floor(module: str) -> int:
    return next((n for n, floor in enumerate(FLOORS) if module in floor), len(FLOORS))


def test_every_room_has_its_floor() -> None:
    assert set(MODULES) == set().union(*FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_knows_none_above_it(module: str) -> None:
    for room in rooms(module):
        assert floor(room) <= floor(module), f"{module} imports {room}"


def test_the_rooms_stand_in_no_circle() -> None:
    def reach(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        for other in rooms(module):
            reach(other, (*way, module))

    for module in MODULES:
        reach(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_only_the_standard_library_is_imported(module: str) -> None:
    known = sys.stdlib_module_names | {"danga_raw", "libc"}
    assert {name.split(".")[0] for name in imports(module)} <= known


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_any_and_no_checker_is_told_to_look_away(module: str) -> None:
    source = (PACKAGE / f"{module}.py").read_text()
    assert "type: ignore" not in source
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    assert "Any" not in names


@pytest.mark.parametrize("module", MODULES)
def test_every_function_says_its_types(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [a for a in (node.args.vararg, node.args.kwarg) if a]
            unsaid = [a.arg for a in arguments if not a.annotation and a.arg not in ("self", "cls")]
            assert not unsaid, f"{node.name}: {unsaid}"
            assert node.returns is not None, node.name


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_is_documented(module: str) -> None:
    body = tree(module)
    assert ast.get_docstring(body)
    for node in body.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if module != "_kqueue" and node.name != "callable_or_none":
                assert ast.get_docstring(node), node.name


# --- what a user's checker sees -------------------------------------------------------------------

USER = '''
from collections.abc import Mapping
from danga_raw import Loop, Socket, Timer, default_loop
from typing_extensions import assert_type
import socket

class Client(Socket):
    __slots__ = ("name",)
    def __init__(self, sock: socket.socket, name: str) -> None:
        super().__init__(sock)
        self.name = name
    def event_read(self) -> None:
        data = self.read(10)
        assert_type(data, bytes | None)
        if data is None:
            self.close("end")
        else:
            assert_type(self.write(data), bool)
            self.write(bytearray(data))
            self.write(memoryview(data))
            self.write(lambda: self.close())
            self.write(None)

a, b = socket.socketpair()
client = Client(a, "x")
assert_type(client.fd, int | None)
assert_type(client.closed, bool)
assert_type(client.peer_addr_string(), str | None)
assert_type(client.loop, Loop)
assert_type(Socket.AddTimer(1, client.close), Timer)
assert_type(Socket.WatchedSockets(), int)
assert_type(Socket.ProfilingData(), Mapping[str, tuple[float, float, int]])
Socket.SetPostLoopCallback(lambda sockets, others: len(sockets) > 0)
client.SetPostLoopCallback(None)
Socket.OtherFds({0: lambda state: print(state + 1)})
loop = default_loop()
loop.on_exception = lambda obj, error: print(obj, error.args)
'''

WRONG = '''
from danga_raw import Loop, Socket
obj = Socket(5)
obj.write("text")
obj.read("1")
obj.push_back_read("x")
Loop().add_timer("1", print)
Loop().add_timer(1, 5)
Loop().set_loop_timeout(1.5)
Loop(5)
Socket.AddOtherFds({"x": print})
Socket.SetPostLoopCallback(5)
obj.SetPostLoopCallback(5)
obj.set_writer_func(lambda: 5)
obj.nonsense
'''


def check(tmp_path: Path, code: str) -> tuple[str, int]:
    api = pytest.importorskip("mypy.api")
    (tmp_path / "user.py").write_text(code)
    out, err, status = api.run(
        ["--strict", "--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary",
         "--cache-dir", str(ROOT / ".mypy_cache"), str(tmp_path / "user.py")]
    )  # fmt: skip
    assert err == ""
    return str(out), int(status)


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_users_program_checks_strictly(tmp_path: Path, at_root: None) -> None:
    assert check(tmp_path, USER) == ("", 0)


def test_each_misuse_is_seen_by_the_checker(tmp_path: Path, at_root: None) -> None:
    out, status = check(tmp_path, WRONG)
    lines = {int(found) for found in re.findall(r"user\.py:(\d+): error", out)}
    assert lines == set(range(3, len(WRONG.splitlines()) + 1)), out
