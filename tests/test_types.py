"""Properties of the source: which module imports which, and what a type checker sees."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from io import FileIO
from pathlib import Path
from typing import get_args, get_origin

import pytest

from danga_raw import Listener, Loop, Socket, Timer
from danga_raw.trace import Call, Trace

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "danga_raw"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))

LAYERS = [
    {"_interrupt", "_libc", "_log", "_mistakes", "_poller", "_structs", "_typing"},
    {
        "_addresses",
        "_backends",
        "_connecting",
        "_epoll",
        "_handle",
        "_kqueue",
        "_poll",
        "_sockopt",
        "_waker",
    },
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
"""The modules of the package by layer; a module may import those of its own layer and below."""


def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def for_checkers_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def running(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module that exist at run time, including those in functions. Annotations may
    name modules of higher floors, which are imported only for type checkers."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and for_checkers_only(child):
            for other in child.orelse:
                yield from running(other)
        else:
            yield from running(child)


@cache
def imports(module: str) -> set[str]:
    """The modules that a module imports at run time."""
    found: set[str] = set()
    for node in running(tree(module)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def imported_modules(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    names = [name.split(".") for name in imports(module)]
    found = {parts[1] if parts[1:] else "__init__" for parts in names if parts[0] == "danga_raw"}
    return found - {"__init__"} if module == "__init__" else found  # `from danga_raw import types`


def layer(module: str) -> int:
    return next((n for n, layer in enumerate(LAYERS) if module in layer), len(LAYERS))


def test_every_module_has_a_layer() -> None:
    assert set(MODULES) == set().union(*LAYERS)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_nothing_from_a_higher_layer(module: str) -> None:
    for submodule in imported_modules(module):
        assert layer(submodule) <= layer(module), f"{module} imports {submodule}"


def test_modules_have_no_import_cycle() -> None:
    seen: set[str] = set()

    def reach(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in seen:
            for other in imported_modules(module):
                reach(other, (*way, module))
            seen.add(module)

    for module in MODULES:
        reach(module, ())


@pytest.mark.parametrize("module", MODULES)
def test_only_the_standard_library_is_imported(module: str) -> None:
    known = sys.stdlib_module_names | {"danga_raw", "libc"}
    assert {name.split(".")[0] for name in imports(module)} <= known


@pytest.mark.parametrize("module", MODULES)
def test_no_module_uses_any_or_type_ignore(module: str) -> None:
    source = (PACKAGE / f"{module}.py").read_text()
    assert "type: ignore" not in source
    names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    assert "Any" not in names


@pytest.mark.parametrize("module", MODULES)
def test_every_function_is_fully_annotated(module: str) -> None:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += [a for a in (node.args.vararg, node.args.kwarg) if a]
            unsaid = [a.arg for a in arguments if not a.annotation and a.arg not in ("self", "cls")]
            assert not unsaid, f"{node.name}: {unsaid}"
            assert node.returns is not None, node.name


@pytest.mark.parametrize("module", MODULES)
def test_public_names_are_documented(module: str) -> None:
    body = tree(module)
    assert ast.get_docstring(body)
    for node in body.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            if module != "_kqueue":
                assert ast.get_docstring(node), node.name


# --- what a user's checker sees -------------------------------------------------------------------

USER = """
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
"""

WRONG = """
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
"""


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


def test_program_of_a_user_passes_strict_checking(tmp_path: Path, at_root: None) -> None:
    assert check(tmp_path, USER) == ("", 0)


def test_type_checker_reports_each_misuse(tmp_path: Path, at_root: None) -> None:
    out, status = check(tmp_path, WRONG)
    lines = {int(found) for found in re.findall(r"user\.py:(\d+): error", out)}
    assert lines == set(range(3, len(WRONG.splitlines()) + 1)), out


STRICT = """
from collections.abc import Callable, Mapping
from io import FileIO
from danga_raw import Listener, Loop, Socket, default_loop, log_exception
from typing_extensions import assert_type
import socket

class Echo(Socket):
    def event_read(self) -> None:
        data = self.read(4096)
        if data is None:
            self.close("end")
        else:
            self.write(data)

class Client(Socket):
    def __init__(self, sock: socket.socket, name: str, loop: Loop | None = None) -> None:
        super().__init__(sock, loop)
        self.name = name
    def event_connect(self, error: OSError | None) -> None:
        if error is not None:
            print(error.strerror)

class Pipe(Socket[FileIO]):
    def event_read(self) -> None:
        assert_type(self.sock, FileIO | None)

def after(sockets: Mapping[int, Socket], others: Mapping[int, Callable[[int], object]]) -> bool:
    for fd, obj in sockets.items():
        assert_type(obj, Socket)
        assert_type(obj.peer_ip_string(), str | None)
        assert_type(obj.write_buf_size, int)
        obj.close("done")
    for callback in others.values():
        callback(1)
    return len(sockets) > 0

def accepted(connection: socket.socket, address: object) -> None:
    Echo(connection).watch_read(True)

def told(obj: Socket | None, error: Exception) -> None:
    if obj is not None:
        print(obj.peer_ip, error)

Socket.SetPostLoopCallback(after)
a, b = socket.socketpair()
echo = Echo(a)
echo.SetPostLoopCallback(after)
assert_type(echo.sock, socket.socket | None)
assert_type(echo.steal_socket(), socket.socket | None)
assert_type(Socket(b).steal_socket(), socket.socket | None)
pipe = Pipe(FileIO("/dev/stdin"))
assert_type(pipe.sock, FileIO | None)
assert_type(pipe.steal_socket(), FileIO | None)
other: Socket[FileIO] = Socket(FileIO("/dev/stdin"))
client = Client.connect(("127.0.0.1", 80), "bob", timeout=5)
assert_type(client, Client)
assert_type(client.name, str)
assert_type(Echo.connect("/tmp/door"), Echo)
listener = Listener(socket.create_server(("127.0.0.1", 0)), accepted)
assert_type(listener.sock, socket.socket | None)
loop = default_loop()
loop.set_post_loop_callback(after)
loop.on_exception = log_exception
loop.on_exception = told
loop.on_exception = None
loop.call_soon(loop.stop)
loop.call_soon_threadsafe(loop.stop)
loop.add_signal_handler(15, loop.stop)
assert_type(loop.remove_signal_handler(15), bool)
assert_type(Socket.DescriptorMap(), Mapping[int, Socket])
for each in loop.descriptor_map.values():
    assert_type(each.peer_ip_string(), str | None)
"""

STRICTLY_WRONG = """
from danga_raw import Listener, Loop, Socket
import socket
a, b = socket.socketpair()
Listener(a, lambda connection: None)
Listener(5, lambda connection, address: None)
Socket(a, "epoll")
Loop().call_soon(5)
Loop().add_signal_handler("TERM", print)
Socket.connect(80)
Socket.connect(("127.0.0.1", "80"))
Socket.connect("/tmp/door", timeout="5")
Loop().on_exception = lambda obj: None
text: str = Socket(a).steal_socket()
"""


def test_strict_program_of_a_user_needs_no_cast(tmp_path: Path, at_root: None) -> None:
    assert check(tmp_path, STRICT) == ("", 0)


def test_type_checker_reports_each_misuse_in_a_strict_program(
    tmp_path: Path, at_root: None
) -> None:
    out, _ = check(tmp_path, STRICTLY_WRONG)
    lines = {int(found) for found in re.findall(r"user\.py:(\d+): error", out)}
    assert lines == set(range(5, len(STRICTLY_WRONG.splitlines()) + 1)), out


def test_program_written_for_strict_checkers_runs() -> None:
    """`mypy` and `pyright` check it with the rest."""
    command = [sys.executable, "-W", "error", "-m", "tests.strict_program"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    said = "b'HELLO\\n' [b'logged'] rb {'127.0.0.1'}\n"
    assert (result.stdout, result.stderr) == (said, "")


EVERYTHING = """
from io import FileIO
from danga_raw import Listener, Loop, Socket, Timer, default_loop, log_exception
from danga_raw.trace import Call, Trace
def look(socket: Socket, pipe: Socket[FileIO], listener: Listener, loop: Loop, timer: Timer,
         trace: Trace, call: Call) -> None:
"""


def test_nothing_is_any_without_the_stub_of_libc_installed(tmp_path: Path) -> None:
    """A user's type checker doesn't see the stub, which is not installed."""
    api = pytest.importorskip("mypy.api")
    shutil.copytree(PACKAGE, tmp_path / "danga_raw")
    code = EVERYTHING
    for name, kind in zip(
        ("socket", "pipe", "listener", "loop", "timer", "trace", "call"),
        (Socket, Socket, Listener, Loop, Timer, Trace, Call),
    ):
        for member in dir(kind):
            if not member.startswith("_") and not hasattr(tuple, member):
                code += f"    reveal_type({name}.{member})\n"
    (tmp_path / "user.py").write_text(code)
    options = ["--strict", "--config-file", os.devnull, "--follow-imports", "silent"]
    out, _, _ = api.run([*options, "--cache-dir", os.devnull, str(tmp_path / "user.py")])
    told = [line for line in out.splitlines() if "Revealed type" in line]
    assert len(told) > 100 and ": error:" not in out
    assert [line for line in told if re.search(r"\bAny\b", line)] == []


# --- what annotations are at run time -------------------------------------------------------------

HINTS = """
import importlib, inspect, sys, typing
import danga_raw
got = []
for submodule in ("listener", "loop", "socket", "timers", "trace", "types"):
    module = importlib.import_module(f"danga_raw.{submodule}")
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        things = {name: value}
        if inspect.isclass(value):
            for inner, member in vars(value).items():
                if isinstance(member, property):
                    things[f"{name}.{inner}"] = member.fget
                    things[f"{name}.{inner}="] = member.fset
                elif isinstance(member, (classmethod, staticmethod)):
                    things[f"{name}.{inner}"] = member.__func__
                elif inspect.isfunction(member):
                    things[f"{name}.{inner}"] = member
        for each, thing in things.items():
            if inspect.isclass(thing) or inspect.isfunction(thing):
                public = each.rpartition(".")[2]
                if public.startswith("_") and not public.endswith("__"):
                    continue
                hints = typing.get_type_hints(thing)
                if inspect.isfunction(thing):
                    unsaid = set(inspect.signature(thing).parameters) - set(hints) - {"self", "cls"}
                    assert not unsaid, (submodule, each, unsaid)
                    assert "return" in hints, (submodule, each)
                got.append(each)
for each in danga_raw.__all__:
    typing.get_type_hints(getattr(danga_raw, each))
for each in ("Socket.connect", "Socket.write", "Loop.on_exception", "Loop.on_exception=",
             "Socket.AddTimer", "Socket.peer_ip", "Listener.__init__", "Timer.cancel", "Trace"):
    assert each in got, each
from danga_raw import Loop, Socket
hints = typing.get_type_hints(Socket.__init__)
assert hints["loop"] in (Loop | None, typing.Optional[Loop]), hints
assert typing.get_type_hints(Socket.peer_ip_string)["return"] == (str | None)
print(len(got))
"""


def test_type_hints_of_everything_public_can_be_resolved() -> None:
    """In a separate process, in which nothing has imported `typing` before."""
    command = [sys.executable, "-W", "error", "-c", HINTS]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 100


def test_socket_class_can_be_subscripted_at_run_time() -> None:
    class Pipe(Socket[FileIO]):
        def event_read(self) -> None:
            got.append(self.read(10))
            self.loop.stop()

    got: list[bytes | None] = []
    there, here = os.pipe()
    with Loop() as loop, FileIO(here, "wb") as end:
        os.set_blocking(there, False)
        pipe = Pipe(FileIO(there), loop)
        assert isinstance(pipe, Socket) and Pipe.__mro__[1] is Socket
        pipe.watch_read(True)
        end.write(b"hello")
        loop.run()
        assert got == [b"hello"]
        handle = pipe.steal_socket()
        assert isinstance(handle, FileIO)
        handle.close()
    assert get_origin(Socket[FileIO]) is Socket and get_args(Socket[FileIO]) == (FileIO,)
