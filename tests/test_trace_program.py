"""`python3 -m danga_raw trace`: a program runs as it would by itself, and its calls are printed."""

from __future__ import annotations

import json
import os
import pty
import py_compile
import re
import shutil
import signal
import socket
import subprocess
import sys
import tty
import zipapp
from pathlib import Path

import pytest

from danga_raw._kernel import HERE, asked
from danga_raw._strace import FSTAT
from tests.needs import REQUIRED
from tests.strace import in_newest_words

ROOT = Path(__file__).parent.parent
TRACE = [sys.executable, "-m", "danga_raw", "trace"]

START = """
import os, signal, sys, socket
from danga_raw import Loop, Socket
near, far = socket.socketpair()
near.setblocking(False)
loop = Loop("epoll")
obj = Socket(near, loop)
fd, epfd = near.fileno(), loop._registry.open().fileno()
def wrote(text):
    obj.write(text)
wrote(b"begin")
"""
"""A program that makes three calls; a test adds its end."""

PID = r"^\[pid +\d+\] "
"""The prefix of a line if there is more than one thread."""
WRITE = r'write\(\d+, "(.*)", \d+\) += \d+'
"""A line of a write. Descriptor numbers vary, as ctypes's libffi may keep one open."""

Ended = subprocess.CompletedProcess[str]


def run(argv: list[str], **more: str) -> Ended:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DANGA_RAW_")}
    environment |= {"PYTHONPATH": str(ROOT), **more}
    return subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def called(text: str) -> list[str]:
    """The calls in these lines."""
    return [re.sub(PID, "", line).partition("(")[0] for line in text.splitlines()]


def written(text: str) -> list[str]:
    """The texts of the writes in these lines, each complete."""
    lines = [re.fullmatch(WRITE, re.sub(PID, "", line)) for line in text.splitlines()]
    return [match[1] if match else "?" for match in lines]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(START)
    return path


# --- as python PROGRAM ARG ----------------------------------------------------------------------

ENDINGS = {
    "its end": "print('done')",
    "a status": "sys.exit(3)",
    "no status": "sys.exit()",
    "a text": "sys.exit('it was too much')",
    "an exception": "def inner():\n    raise ValueError('no')\ninner()",
    "an OSError": "open('/nowhere')",
    "an exception with a cause": "try:\n    1/0\nexcept Exception as e:\n    raise KeyError from e",
    "an exception of the package": "obj.write('text')",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "a relative path": "os.chdir('/')\nprint(os.path.isabs(__file__), os.path.exists(__file__))\n1/0",
    "a hook that raises": "def hook(*a): raise ValueError\nsys.excepthook = hook\n1/0",
    "a hook that writes in vain": "def hook(*a): raise BrokenPipeError\nsys.excepthook = hook\n1/0",
    "a look at the last error": (
        "import atexit\natexit.register(lambda: print(sys.last_type))\n1/0"
    ),
    "all descriptors closed": (
        "a = os.dup(fd)\nos.closerange(fd + 1, 4096)\nloop = Loop('epoll')\nobj = Socket(near, loop)"
    ),
    "its own hook": "sys.excepthook = lambda *a: print(a[0], a[2].tb_lineno)\n1/0",
    "os._exit": "os._exit(7)",
    "SIGTERM": "os.kill(os.getpid(), signal.SIGTERM)",
    "SIGINT": "os.kill(os.getpid(), signal.SIGINT)",
    "SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "SIGINT as C has it": "signal.signal(2, signal.SIG_DFL)\nos.kill(os.getpid(), 2)",
    "atexit": "import atexit\natexit.register(wrote, b'begin')",
    "a thread": "import threading\nthreading.Thread(target=wrote, args=(b'begin',)).start()",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_program_ends_as_it_would_untraced_and_no_line_is_lost(
    ending: str, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write_text(START + ENDINGS[ending] + "\n")
    out = program.parent / "calls"
    monkeypatch.chdir(program.parent)
    alone = run([sys.executable, program.name])
    traced = run([*TRACE, "-o", "calls", program.name])
    assert (traced.returncode, traced.stdout) == (alone.returncode, alone.stdout)
    errors = traced.stderr.splitlines()
    if ending.startswith("a hook"):  # Python names the hook that raised.
        ours = [at for at, line in enumerate(errors) if "_program.py" in line]
        del errors[ours[0] : errors.index(next(e for e in errors[ours[0] + 1 :] if "File" in e))]
    assert errors == alone.stderr.splitlines()
    writes = 2 if ending in ("atexit", "a thread") else 1
    start = ["epoll_create1", "epoll_ctl"]
    more = start if ending == "all descriptors closed" else []
    assert called(out.read_text()) == [*start, *["write"] * writes, *more]


def test_syntax_error_is_reported_as_without_a_trace(program: Path) -> None:
    program.write_text("def f(:\n    pass\n")
    alone, traced = run([sys.executable, str(program)]), run([*TRACE, str(program)])
    assert (traced.returncode, traced.stderr) == (alone.returncode, alone.stderr)


ABOUT = """
import atexit, inspect, os, pickle, re, sys, threading, typing
number: int = 1
class Kept:
    def __eq__(self, other): return type(other) is type(self)
def show(names):
    for name in names:
        value = globals().get(name, "has none")
        print(name, re.sub(" at 0x[0-9a-f]+", "", repr(value)))
SYSTEMS = ("__annotations__", "__cached__", "__doc__", "__file__", "__loader__", "__name__",
           "__package__", "__spec__")
show(("__builtins__", *SYSTEMS))
main = sys.modules["__main__"]
print([name for name in globals() if name.startswith("__")])
print(sys.argv, sys.path, sys.flags, sys.warnoptions, sorted(os.environ), os.getcwd())
print(main.__dict__ is globals(), typing.get_type_hints(main), (lambda x: int)(1))
print(pickle.loads(pickle.dumps(Kept())) == Kept(), Kept, Kept.__module__, f"{1:{2}}")
print(inspect.getmodule(Kept) is main, inspect.getfile(show), show.__code__.co_filename)
try:
    print(inspect.getsource(show))
except OSError as error:
    print(error)
try:
    import beside
    print(beside.here)
except ImportError as error:
    print(error)
print(sorted(map(int, os.listdir("/dev/fd")))[:4], os.get_inheritable(0), sys.stdin.read())
threading.Thread(target=lambda: (threading.main_thread().join(), show(["__name__"]))).start()
atexit.register(show, SYSTEMS)
atexit.register(lambda: print(getattr(sys, "last_type", None)))
def inner(): 1/0
if sys.argv[-1] == "raises":
    inner()
elif sys.argv[-1] != "ends":
    sys.exit(sys.argv[-1])
"""
"""A program that prints everything that it can see of the way it is run."""

WAYS = ["file.py", "./file.py", "../here/file.py", "link.py", "folder", "./folder/", "zip.pyz"]
WAYS += ["compiled.pyc", "compiled", "-m file", "-m package", "-m package.inner", "-", "/dev/stdin"]
FAILING_WAYS = ["nowhere", "empty", "-m nowhere", "-m package.nowhere", "-m empty", "bad.pyc"]


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the program in all forms that python3 can run."""
    here = tmp_path_factory.mktemp("ways") / "here"
    for folder in ("elsewhere", "folder", "package", "empty"):
        (here / folder).mkdir(parents=True)
    for path in ("file.py", "folder/__main__.py", "package/__main__.py", "package/inner.py"):
        (here / path).write_text(ABOUT)
        (here / path).with_name("beside.py").write_text("here = __file__")
    (here / "package/__init__.py").write_text("import sys; print(sys.argv[0])")
    (here / "elsewhere/file.py").write_text(ABOUT)
    (here / "link.py").symlink_to("elsewhere/file.py")
    zipapp.create_archive(here / "folder", here / "zip.pyz")
    py_compile.compile(str(here / "file.py"), str(here / "compiled.pyc"))
    shutil.copy(here / "compiled.pyc", here / "compiled")
    (here / "bad.pyc").write_bytes(b"no magic number")
    return here


ISOLATED = f"""
import sys
sys.path.append({str(ROOT)!r})
from danga_raw._tracecli import main
sys.path.pop()
main(sys.argv[1:], "danga-raw")
"""
"""Our command line under -I, where no environment variable leads to the package."""

OPTIONS: dict[str, tuple[list[str], list[str]]] = {
    "": ([], ["-m", "danga_raw", "trace"]),
    "-I": (["-I"], ["-I", "-c", ISOLATED]),
    "-OW": (["-OWerror::UserWarning"], ["-OWerror::UserWarning", "-m", "danga_raw", "trace"]),
}


RUNS = [
    (way, options) for options in OPTIONS for way in [*WAYS, *FAILING_WAYS]
    if not options or way in ("file.py", "folder", "zip.pyz", "-m file", "-m package", "-")
]  # fmt: skip


@pytest.mark.parametrize(("way", "options"), RUNS if REQUIRED else RUNS[::3])
def test_program_sees_the_same_surroundings_as_without_a_trace(
    way: str, options: str, ways: Path
) -> None:
    plain, trace = OPTIONS[options]
    for end in ("ends", "raises", "in so many words") if options == "" else ("raises",):
        alone, traced = (
            subprocess.run(
                [sys.executable, *before, *way.split(), "--", "-o", "x", "-m", "-", end],
                env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
                cwd=ways,
                input=ABOUT,
                capture_output=True,
                text=True,
                check=False,
            )
            for before in (plain, [*trace, "-o", os.devnull])
        )
        found = way not in FAILING_WAYS and (options, way[:3]) not in [("-I", "-m ")]
        assert (alone.returncode == 0) == (end == "ends" and found)
        assert traced.stdout == alone.stdout
        said = alone.stderr
        if way == "nowhere":
            said = "danga_raw trace: nowhere: No such file or directory\n"
        assert (traced.stderr, traced.returncode) == (said, alone.returncode)


def test_program_gets_the_same_descriptor_numbers_as_without_a_trace(program: Path) -> None:
    program.write_text(START + "print(fd, epfd, os.open('/', os.O_RDONLY))")
    alone = run([sys.executable, str(program)])
    assert run([*TRACE, str(program)]).stdout == alone.stdout
    assert run([*TRACE, "-o", str(program.parent / "x"), str(program)]).stdout == alone.stdout


def test_trace_survives_the_program_closing_standard_error(program: Path) -> None:
    program.write_text(START + "os.close(2)\nwrote(b'more')\nos._exit(0)")
    assert run([*TRACE, str(program)]).stderr.count("write(") == 2


# --- the options --------------------------------------------------------------------------------


def test_lines_go_to_standard_error_or_to_a_file(program: Path) -> None:
    out = program.parent / "calls"
    out.write_text("what was there before " * 100)
    to_stderr, to_file = run([*TRACE, str(program)]), run([*TRACE, "-o", str(out), str(program)])
    lines = to_stderr.stderr
    assert lines == out.read_text()
    assert to_file.stderr == ""
    assert re.fullmatch(r'write\(\d, "begin", 5\) {16,}= 5', lines.splitlines()[2])
    assert lines.splitlines()[2].index("=") == 40


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("write", {"write"}),
        ("trace=write,epoll_ctl", {"write", "epoll_ctl"}),
        ("t=write", {"write"}),
        ("!write", {"epoll_create1", "epoll_ctl"}),
        ("trace=!write,epoll_ctl", {"epoll_create1"}),
        ("trace=all", {"write", "epoll_ctl", "epoll_create1"}),
        ("kevent", set()),
        ("none", set()),
        ("trace=!none", {"write", "epoll_ctl", "epoll_create1"}),
    ],
)
def test_option_e_selects_calls(expression: str, names: set[str], program: Path) -> None:
    done = run([*TRACE, "-e", expression, str(program)])
    assert set(called(done.stderr)) == names


@pytest.mark.parametrize(
    ("expressions", "names"),
    [
        (["write", "trace=epoll_ctl"], {"write", "epoll_ctl"}),
        (["write", "none"], {"write"}),
        (["all", "!write"], {"epoll_create1", "epoll_ctl"}),
        (["!write", "!epoll_ctl"], {"epoll_create1"}),
        (["write,epoll_ctl", "!write", "epoll_create1"], {"epoll_ctl", "epoll_create1"}),
    ],
)
def test_second_option_e_adds_or_removes_calls(
    expressions: list[str], names: set[str], program: Path
) -> None:
    options = [option for expression in expressions for option in ("-e", expression)]
    done = run([*TRACE, *options, str(program)])
    assert set(called(done.stderr)) == names


@pytest.mark.parametrize(
    "options",
    ["-co FILE", "-coFILE", "-cewrite -oFILE", "-tto FILE", "-o FILE -tce write"],
)
def test_short_options_can_be_combined(options: str, program: Path) -> None:
    out = program.parent / "calls"
    words = options.replace("FILE", str(out)).split()
    for way in (["--", str(program)], ["-mprogram"]):
        done = run([*TRACE, *words, *way, "-c", "-o", "x"], PYTHONPATH=f"{ROOT}:{program.parent}")
        assert (done.returncode, done.stderr) == (0, "")
        text = out.read_text()
        if "c" in options:
            assert text.splitlines()[0].split() == ["calls", "errors", "syscall"]
            assert ("epoll_ctl" in text) == ("e" not in options)
        else:
            assert re.match(r"\d\d:\d\d:\d\d\.\d{6} epoll_create1", text)
        out.unlink()
    done = run([*TRACE, "-com", "FILE"], PYTHONPATH=str(ROOT))
    assert done.stderr.startswith("danga_raw trace: FILE: No such file")


def test_trace_runs_the_other_commands_and_itself(program: Path) -> None:
    info = [sys.executable, "-m", "danga_raw", "info", "--json"]
    assert run([*TRACE, *info[1:]]).stdout == run(info).stdout
    once, twice = run([*TRACE, str(program)]), run([*TRACE, *TRACE[1:], str(program)])
    assert sorted(twice.stderr.splitlines()) == sorted(2 * once.stderr.splitlines())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DANGA_RAW_BACKEND": "epoll"}
    with subprocess.Popen(
        [*TRACE, "-e", "read,write", "-m", "danga_raw", "echo"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        port = int(server.stdout.readline().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
        server.terminate()
        said, lines = server.communicate()
    assert (said, server.returncode) == ("1 connections, 5 bytes echoed\n", 0)
    assert [line.partition("(")[0] for line in lines.splitlines()[:2]] == ["read", "write"]
    assert '"hello"' in lines.splitlines()[0]


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    "expression", ["write,epoll_ctl", "trace=write", "t=close", "!write", "none", "!none", "fstat"]
)
def test_strace_accepts_the_same_expressions(expression: str) -> None:
    subprocess.run(["strace", "-qq", "-o", os.devnull, "-e", expression, "true"], check=True)


def test_option_e_knows_fstat_by_both_its_names(program: Path) -> None:
    program.write_text("import danga_raw\ndanga_raw.Loop('poll').add_other_fds({0: print})\n")
    for name in ("fstat", FSTAT):
        assert run([*TRACE, "-e", name, str(program)]).stderr.startswith(f"{FSTAT}(0, ")
    assert run([*TRACE, "-e", "!fstat", str(program)]).stderr == ""


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("option", "form"),
    [("-t", r"\d\d:\d\d:\d\d "), ("-tt", r"\d\d:\d\d:\d\d\.\d{6} "), ("-ttt", r"\d{10}\.\d{6} ")],
)
def test_option_t_stamps_lines_as_strace_does(option: str, form: str, program: Path) -> None:
    out = program.parent / "calls"
    strace = ["strace", "-qq", option, "-o", str(out), "-e", "trace=epoll_ctl,write"]
    done = run([*strace, *TRACE, option, "-e", "epoll_ctl,write", str(program)])
    stamp = re.compile(rf"^{form}")
    text = in_newest_words(out.read_text())
    theirs = [line for line in text.splitlines() if re.match(rf"{form}\w+\(\d,", line)]
    ours = done.stderr.splitlines()
    assert all(stamp.match(line) for line in [*ours, *theirs])
    assert [stamp.sub("", line) for line in ours] == [stamp.sub("", line) for line in theirs]


@pytest.mark.needs("strace")
def test_option_c_counts_in_straces_columns(program: Path) -> None:
    program.write_text(START + "for _ in range(3): obj.read(5)\nobj.close()\nloop.close()\n")
    out = program.parent / "calls"
    columns = ["-S", "calls", "-U", "calls,errors,name", "-e", "trace=epoll_create1,epoll_ctl"]
    done = run(["strace", "-c", *columns, "-o", str(out), *TRACE, "-c", str(program)])
    theirs, ours = out.read_text().splitlines(), done.stderr.splitlines()
    assert ours[:2] == theirs[:2]
    assert (ours[-2], ours[-1].split()) == (theirs[-2], ["9", "3", "total"])
    rows = [line.split() for line in ours[2:-2]]
    assert rows[0] == ["3", "3", "read"]
    counts = {row[-1]: row[0] for row in rows}
    assert counts == {
        "read": "3", "epoll_ctl": "2", "close": "2", "epoll_create1": "1", "write": "1"
    }  # fmt: skip
    assert f"{'2':>9} {'':>9} epoll_ctl" in theirs
    assert f"{'2':>9} {'':>9} epoll_ctl" in ours


def test_option_c_counts_until_the_interpreter_ends(program: Path) -> None:
    program.write_text("import atexit\n" + START + "atexit.register(wrote, b'x')\nsys.exit(1)")
    done = run([*TRACE, "-c", "-e", "write", str(program)])
    assert (done.returncode, done.stderr.splitlines()[-1].split()) == (1, ["2", "total"])
    program.write_text("pass")
    assert run([*TRACE, "-c", str(program)]).stderr == ""


def test_option_json_prints_one_object_per_line(program: Path) -> None:
    program.write_text(START + "obj.read(5)\n")
    done = run([*TRACE, "--json", "-e", "write,read", str(program)])
    write, read = map(json.loads, done.stderr.splitlines())
    assert write.pop("time") <= read.pop("time")
    fd = write["args"][0]
    assert write == {"name": "write", "args": [fd, '"begin"', "5"], "result": 5, "errno": None}
    assert read == {"name": "read", "args": [fd, "0x...", "5"], "result": -1, "errno": "EAGAIN"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "danga_raw trace: nowhere.py: No such file or directory"),
        ([""], "danga_raw trace: : No such file or directory"),
        (["-o", "|cat", __file__], "danga_raw trace: -o takes a file, not a command: '|cat'"),
        (["-e", "fork", "p"], "danga_raw trace: invalid system call 'fork'; known are acc"),
        (["-e", "read,,write", "p"], "danga_raw trace: invalid system call ''"),
        (["-e", "inject=read:error=EIO", "p"], "danga_raw trace: invalid expression 'inject=read"),
        (["-o", "/nowhere/calls", __file__], "danga_raw trace: /nowhere/calls: No such file"),
    ],
)
def test_usage_error_is_reported_in_one_line(arguments: list[str], message: str) -> None:
    done = run([*TRACE, *arguments])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


# --- threads ------------------------------------------------------------------------------------

THREADS = """
import os, signal, socket, sys, threading, time
from danga_raw import Loop, Socket
class Pair:
    def __init__(self):
        near, self.far = socket.socketpair()
        near.setblocking(False)
        self.obj = Socket(near, Loop("epoll"))
    def write(self, text):
        self.obj.write(text)
        self.far.recv(100)
"""
"""What a thread needs to make its own calls."""


@pytest.mark.needs("strace")
def test_threads_are_distinguished_as_by_strace(program: Path) -> None:
    program.write_text(
        START + "import threading\nturn, done = threading.Event(), threading.Event()\n"
        "def other():\n    wrote(b'other')\n    turn.set()\n    done.wait()\n    wrote(b'ends')\n"
        "thread = threading.Thread(target=other)\nthread.start()\nturn.wait()\nwrote(b'first')\n"
        "done.set()\nthread.join()\nwhile len(os.listdir('/proc/self/task')) > 1: pass\n"
        "wrote(b'alone')\n"
    )
    for more in ([], ["-tt"]):
        own = program.parent / "own"
        strace = ["strace", "-f", *more, "-qq", "-e", "trace=write", "-e", "signal=none"]
        done = run([*strace, *TRACE, *more, "-o", str(own), "-e", "write", str(program)])
        line = re.compile(r'(\[pid +\d+\] )?([\d:.]+ )?write\(\d, "(begin|other|first|ends|alone)')
        theirs = [text for text in done.stderr.splitlines() if line.match(text)]
        ours = own.read_text().splitlines()
        assert [line.startswith("[pid ") for line in ours] == [False, True, True, True, False]
        ours, theirs = ([re.sub(r"[\d:.]{15}", "", x) for x in y] for y in (ours, theirs))
        assert ours == theirs
    pids = [json.loads(line).get("pid") for line in
            run([*TRACE, "--json", "-e", "write", str(program)]).stderr.splitlines()]  # fmt: skip
    assert pids[0] is pids[4] is None
    assert pids[1] == pids[3] != pids[2] is not None


@pytest.mark.parametrize("output", ["a file", "a pipe"])
def test_each_thread_prints_its_own_calls_before_it_continues(output: str, program: Path) -> None:
    out = program.parent / "calls"
    program.write_text(
        THREADS + "sys.setswitchinterval(1e-6)\nlate = 0\n"
        "def work(number):\n    global late\n    pair = Pair()\n"
        "    file = os.open(sys.argv[1], os.O_RDONLY)\n"
        "    for count in range(100):\n        text = b'%d of %d' % (count, number)\n"
        "        pair.write(text)\n"
        "        printed = os.pread(file, 1 << 20, 0)\n"
        "        late += sys.argv[2] == 'a file' and b'\"%s\"' % text not in printed\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]\n"
        "for thread in threads: thread.start()\nfor thread in threads: thread.join()\n"
        "print(late)\n"
    )
    to = ["-o", str(out)] if output == "a file" else []
    done = run([*TRACE, *to, "-e", "write", str(program), str(out if to else program), output])
    assert done.stdout == "0\n"
    lines = out.read_text() if to else done.stderr
    wanted = sorted(f"{count} of {number}" for number in range(4) for count in range(100))
    assert sorted(written(lines)) == wanted
    assert all(re.match(PID, line) for line in lines.splitlines())


def test_terminal_with_short_writes_gets_whole_lines(program: Path) -> None:
    program.write_text(
        THREADS + "os.set_blocking(2, False)\n"
        "def work():\n    pair = Pair()\n    for _ in range(300): pair.write(b'of a thread')\n"
        "threads = [threading.Thread(target=work) for _ in range(3)]\n"
        "for thread in threads: thread.start()\nfor thread in threads: thread.join()\n"
    )
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*TRACE, "-e", "write", str(program)]
    with subprocess.Popen(command, env=environment, stderr=theirs) as process:
        os.close(theirs)
        text = b""
        try:
            while piece := os.read(ours, 100):
                text += piece
        except OSError:
            pass  # EIO: the other end is closed.
        assert process.wait() == 0
    os.close(ours)
    assert written(text.decode()) == 900 * ["of a thread"]


@pytest.mark.parametrize("ending", ["os._exit(0)", "os.kill(os.getpid(), 15)", "sys.exit()", "1/0"])
def test_nothing_is_lost_when_a_process_with_busy_threads_ends(ending: str, program: Path) -> None:
    program.write_text(
        THREADS + "def work():\n    pair = Pair()\n    while True: pair.write(b'more')\n"
        "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        "Pair().write(b'the last')\n" + ending
    )
    out = program.parent / "calls"
    for _ in range(3):
        run([*TRACE, "-o", str(out), "-e", "write", str(program)])
        text = out.read_text()
        assert '"the last"' in text and text.endswith("\n")


DURING_A_LINE = """
real, count = os.fstat, 0
def fstat(fd):
    global count
    count += 1
    if count == 1:
        handler()
    return real(fd)
def amid(call):
    os.fstat = fstat
    call()
    os.fstat = real
"""
"""A signal's handler that runs at the worst moment: while a line is printed."""


def test_signal_handler_that_forks_in_the_middle_of_a_line_prints_it_once(program: Path) -> None:
    for end in ("os._exit(0)", "sys.exit()", "None"):
        program.write_text(
            START + DURING_A_LINE + "def handler():\n    pid = os.fork()\n"
            f"    if pid == 0: {end}\n    else: os.waitpid(pid, 0)\n"
            "amid(lambda: obj.write(b'printed'))\nobj.write(b'behind')\n"
        )
        for more in ([], ["-c"]):
            done = run([*TRACE, *more, "-e", "write", str(program)])
            assert done.returncode == 0
            if more:
                assert done.stderr.splitlines()[2].split() == ["3", "write"]
                assert done.stderr.count("syscall") == 1
            else:
                assert written(done.stderr) == ["begin", "printed", "behind"]


@pytest.mark.parametrize(
    ("raises", "named"),
    [
        ("raise ValueError", "ValueError"),
        ("open('/nowhere')", "FileNotFoundError"),
        ("os.close(99)", "OSError"),
    ],
)
def test_signal_handler_in_the_middle_of_a_line_does_not_damage_it(
    raises: str, named: str, program: Path
) -> None:
    program.write_text(
        START + DURING_A_LINE + f"def handler():\n    obj.write(b'handler')\n    {raises}\n"
        "try:\n    amid(lambda: obj.watch_write(True))\nexcept Exception as error:\n"
        "    print(type(error).__name__, obj.closed)\n"
    )
    done = run([*TRACE, "-e", "!epoll_create1", str(program)])
    assert (done.returncode, done.stdout) == (0, f"{named} False\n")
    # The package may undo the watch afterwards.
    assert called(done.stderr)[:4] == ["epoll_ctl", "write", "write", "epoll_ctl"]


def test_thread_that_forks_prints_no_line_of_other_threads_twice(program: Path) -> None:
    program.write_text(
        THREADS + "sys.setswitchinterval(1e-6)\non = True\n"
        "def work():\n    pair, count = Pair(), 0\n"
        "    while on:\n        pair.write(b'%d' % count)\n        count += 1\n"
        "thread = threading.Thread(target=work)\nthread.start()\n"
        "for _ in range(20):\n    pid = os.fork()\n    if pid == 0: sys.exit(0)\n"
        "    os.waitpid(pid, 0)\non = False\nthread.join()\n"
    )
    out = program.parent / "calls"
    done = run([sys.executable, "-W", "ignore", *TRACE[1:], "-o", str(out), str(program)])
    assert (done.returncode, done.stderr) == (0, "")
    numbers = re.findall(r'write\(\d+, "(\d+)"', out.read_text())
    assert numbers == [str(number) for number in range(len(numbers))]


# --- an exec ------------------------------------------------------------------------------------

EXECS_ITSELF = """
import os, sys, danga_raw
loop = danga_raw.Loop("epoll")
loop.set_loop_timeout(0)
loop.set_post_loop_callback(lambda sockets, others: False)
loop.run()
if "EXECS_ITSELF" not in os.environ:
    os.environ["EXECS_ITSELF"] = "1"
    {}
"""
"""A program that makes two calls and then, in its first life, something else."""

EXECS = {
    "execv": "os.execv(sys.executable, sys.orig_argv)",
    "execve": "os.execve(sys.executable, sys.orig_argv, dict(os.environ))",
    "execvp": "os.execvp(sys.executable, [os.fsencode(word) for word in sys.orig_argv])",
    "a thread": "import threading\n    threading.Thread(target=os.execv, args=(sys.executable,"
    " sys.orig_argv)).start()",
    "an exec that failed": "try: os.execv('/nowhere', sys.orig_argv)\n    except OSError: pass\n"
    "    os.execv(sys.executable, sys.orig_argv)",
    "descriptors closed": "os.closerange(3, 4096); os.execv(sys.executable, sys.orig_argv)",
}


@pytest.mark.parametrize("how", EXECS)
def test_program_that_execs_itself_continues_in_the_same_file(how: str, program: Path) -> None:
    program.write_text(EXECS_ITSELF.format(EXECS[how]))
    out = program.parent / "calls"
    for options in (["-o", str(out)], [f"-to{out}"]):
        out.write_text("what was there before\n" * 10)
        done = run([*TRACE, *options, str(program)])
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.split()[-3].split("(")[0] for line in out.read_text().splitlines()]
        assert "before" not in out.read_text()
        assert len(lines) == 4, lines


def test_child_that_runs_the_same_command_keeps_its_parents_lines(program: Path) -> None:
    for start in ("subprocess.run(sys.orig_argv)",
                  "if os.fork(): os.wait()\n    else: os.execv(sys.executable, sys.orig_argv)"):  # fmt: skip
        program.write_text("import subprocess\n" + EXECS_ITSELF.format(start))
        out = program.parent / "calls"
        out.write_text("what was there before\n")
        done = run([*TRACE, "-o", str(out), str(program)])
        assert (done.returncode, done.stderr) == (0, "")
        assert called(out.read_text()) == 2 * ["epoll_create1", asked("epoll_wait", HERE).name]


def test_option_c_counts_each_exec_separately(program: Path) -> None:
    program.write_text(EXECS_ITSELF.format(EXECS["execv"]))
    done = run([*TRACE, "-c", str(program)])
    assert done.stderr.count("syscall") == 2
    assert done.stderr.count(asked("epoll_wait", HERE).name) == 2


def test_nothing_is_inherited_by_another_program_or_left_by_a_failed_exec(program: Path) -> None:
    shown = 'import os; print(sorted(map(int, os.listdir("/dev/fd"))))'
    program.write_text(
        "import os, sys, danga_raw\ntry:\n    os.execv('/nowhere', sys.orig_argv)\n"
        "except OSError:\n    pass\ndanga_raw.Loop('poll')\n"
        f"command = [sys.executable, '-c', '{shown}']\n"
        "os.spawnv(os.P_WAIT, sys.executable, command)\nos.execv(sys.executable, command)\n"
    )
    alone = run([sys.executable, str(program)])
    traced = run([*TRACE, "-o", str(program.parent / "calls"), str(program)])
    assert traced.stdout.count("\n") == 2
    assert (traced.stdout, traced.stderr) == (alone.stdout, "")


# --- children, signals --------------------------------------------------------------------------


def test_only_the_process_itself_is_traced(program: Path) -> None:
    program.write_text(
        START + "pid = os.fork()\nwrote(b'child' if pid == 0 else b'parent')\n"
        "if pid == 0: os._exit(0)\nos.waitpid(pid, 0)\nprint(far.recv(100))\n"
    )
    done = run([*TRACE, "-e", "write", str(program)])
    assert "child" not in done.stderr
    assert "parent" in done.stderr
    assert "child" in done.stdout
    program.write_text(program.read_text().replace("os._exit(0)", "sys.exit(0)"))
    table = run([*TRACE, "-c", "-e", "write", str(program)]).stderr
    assert table.count("syscall") == 1 and table.splitlines()[-1].split() == ["2", "total"]


def test_signal_that_ends_an_infinite_wait_loses_no_line(program: Path) -> None:
    program.write_text(START + "print('waiting', flush=True)\nloop.run()\n")
    out = program.parent / "calls"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [*TRACE, "-o", str(out), str(program)], env=environment, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
    assert out.read_text().count("\n") == 3
    assert out.read_text().endswith("= 5\n")


def test_full_output_file_ends_the_trace_but_not_the_program(program: Path) -> None:
    program.write_text(START + "wrote(b'more')\nprint(obj.closed)\nsys.exit(5)\n")
    done = run([*TRACE, "-o", "/dev/full", str(program)])
    assert (done.returncode, done.stdout) == (5, "False\n")
    assert done.stderr == "danga_raw trace: /dev/full: No space left on device\n"


def test_files_of_the_program_are_never_written_to(program: Path) -> None:
    program.write_text(
        START + "kept = loop, obj\nos.closerange(fd + 1, 4096)\n"
        "while os.open('mine', os.O_RDWR | os.O_CREAT) < 1023: pass\n"
        "os.closerange(fd + 1, 1000)\nloop = Loop('epoll')\nobj = Socket(near, loop)\nwrote(b'more')\n"
        "print(os.path.getsize('mine'))\n"
    )
    done = run(["sh", "-c", f"cd {program.parent}; ulimit -n 1024; exec \"$@\"", "sh",
                *TRACE, "-o", "calls", str(program)])  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    assert (program.parent / "calls").read_text().count("\n") == 7


def test_program_runs_without_standard_error(program: Path) -> None:
    program.write_text(START + "print('out')\nsys.exit(4)\n")
    done = run(["sh", "-c", 'exec "$@" 2>&-', "sh", *TRACE, str(program)])
    assert (done.returncode, done.stdout) == (4, "out\n")


def test_exception_of_a_signal_handler_reaches_the_program(program: Path) -> None:
    program.write_text(
        START + "class Late(TimeoutError): pass\ndef late(*a): raise Late\n"
        "signal.signal(signal.SIGALRM, late)\nlates = 0\nfor _ in range(50):\n"
        "    try:\n        signal.setitimer(signal.ITIMER_REAL, .003)\n        on = False\n"
        "        while True:\n            on = not on\n            obj.watch_write(on)\n"
        "    except Late:\n        lates += 1\n"
        "print(lates)\nwrote(b'the end')\n"
    )
    out = program.parent / "calls"
    done = run([*TRACE, "-o", str(out), str(program)])
    assert (done.returncode, done.stdout, done.stderr) == (0, "50\n", "")
    assert written(out.read_text().splitlines()[-1]) == ["the end"]


@pytest.mark.needs("strace")
def test_calls_of_a_signal_handler_are_traced_while_a_line_is_written(
    program: Path,
) -> None:
    program.write_text(
        START + "other, _ = socket.socketpair()\nother.setblocking(False)\n"
        "second = Socket(other, loop)\ncount = 0\n"
        # Each alarm sets the next: a timer could be faster than strace is on a busy machine.
        "def handler(*a):\n    global count\n    count += 1\n    second.watch_read(count % 2 == 1)\n"
        "    if count < 300: signal.setitimer(signal.ITIMER_REAL, .0005)\n"
        "signal.signal(signal.SIGALRM, handler)\nhandler()\n"
        "while count < 300:\n    obj.watch_write(True)\n    obj.watch_write(False)\n"
    )
    own, theirs = program.parent / "own", program.parent / "theirs"
    strace = ["strace", "-qq", "-e", "trace=epoll_ctl", "-e", "signal=none", "-o", str(theirs)]
    assert run([*strace, *TRACE, "-o", str(own), "-e", "epoll_ctl", str(program)]).returncode == 0
    told = in_newest_words(theirs.read_text())
    assert sorted(own.read_text().splitlines()) == sorted(told.splitlines())


def test_address_of_an_unknown_family_does_not_break_the_trace(program: Path) -> None:
    program.write_text(
        START + "link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\n"
        "link.setblocking(False)\nobj = Socket(link, loop)\n"
        "print(obj.local_addr_string())\n"
    )
    done = run([*TRACE, "-e", "getsockname", str(program)])
    assert (done.returncode, done.stdout) == (0, "None\n")
    assert re.fullmatch(r"getsockname\(\d, 0x\.\.\., \[\d+\]\) += 0\n", done.stderr)


def test_large_remainders_are_traced_at_a_bounded_cost(program: Path) -> None:
    program.write_text(
        START + "import tracemalloc\nobj.write(bytes(20 << 20))\ntracemalloc.start()\n"
        "while obj.write_buf_size:\n    far.recv(1 << 20)\n    obj.write(None)\n"
        "print(tracemalloc.get_traced_memory()[1] < 4 << 20)\n"
    )
    done = run([*TRACE, "-c", str(program)])
    assert done.stdout == "True\n"
