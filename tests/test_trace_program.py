"""`python3 -m danga_raw trace`: a program runs as it would by itself, and its calls are printed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from danga_raw._strace import FSTAT
from tests.first_free import FIRST

ROOT = Path(__file__).parent.parent
TRACE = [sys.executable, "-m", "danga_raw", "trace"]

START = """
import os, signal, sys, socket
from danga_raw import Loop, Socket
near, far = socket.socketpair()
near.setblocking(False)
loop = Loop("epoll")
obj = Socket(near, loop)
fd, epfd = near.fileno(), loop.poller().fileno()
def wrote(text):
    obj.write(text)
wrote(b"begin")
"""
"""A program that makes three calls, to which a test adds how it ends."""

Ended = subprocess.CompletedProcess[str]


def run(argv: list[str], **more: str) -> Ended:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DANGA_RAW_")}
    environment |= {"PYTHONPATH": str(ROOT), **more}
    return subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


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
    "an exception of the package": "obj.read(0)",
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
def test_a_program_ends_as_it_would_and_no_line_is_lost(
    ending: str, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.write_text(START + ENDINGS[ending] + "\n")
    out = program.parent / "calls"
    monkeypatch.chdir(program.parent)
    alone = run([sys.executable, program.name])
    traced = run([*TRACE, "-o", "calls", program.name])
    assert (traced.returncode, traced.stdout) == (alone.returncode, alone.stdout)
    errors = traced.stderr.splitlines()
    if ending.startswith("a hook"):  # Python tells who raised in the hook.
        ours = [at for at, line in enumerate(errors) if "_tracecli.py" in line]
        del errors[ours[0] : errors.index(next(e for e in errors[ours[0] + 1 :] if "File" in e))]
    assert errors == alone.stderr.splitlines()
    writes = 2 if ending in ("atexit", "a thread") else 1
    start = ["epoll_crea", "epoll_ctl("]
    more = start if ending == "all descriptors closed" else []
    assert [line[:10] for line in out.read_text().splitlines()] == [
        *start, *[f'write({FIRST}, "'] * writes, *more
    ]  # fmt: skip


def test_a_syntax_error_is_the_programs(program: Path) -> None:
    program.write_text("def f(:\n    pass\n")
    alone, traced = run([sys.executable, str(program)]), run([*TRACE, str(program)])
    assert (traced.returncode, traced.stderr) == (alone.returncode, alone.stderr)


def test_a_program_sees_what_it_would(program: Path) -> None:
    (program.parent / "beside.py").write_text("here = __file__")
    program.write_text(
        "from __future__ import barry_as_FLUFL\nimport sys, os, beside\n"
        "print(sys.argv, sys.path[0], beside.here, __name__, __file__, __package__, __spec__)\n"
        "print(sys.modules['__main__'].__dict__ is globals(), type(__loader__), __doc__)\n"
        "print(sorted(map(int, os.listdir('/dev/fd')))[:4], os.get_inheritable(0))\n"
        "print(f'{1:{2}}', (lambda x: int)(1), __builtins__, globals().get('__annotations__'))\n"
    )
    link = program.parent / "elsewhere"
    link.mkdir()
    (link / "linked.py").symlink_to(program)
    for path in (program, link / "linked.py"):
        argv = [str(path), "--", "-c", "--json", "-o", "x", "--", "-t"]
        alone, traced = run([sys.executable, *argv]), run([*TRACE, *argv])
        assert alone.stderr == ""
        assert (traced.stdout, traced.stderr) == (alone.stdout, "")


def test_the_programs_descriptors_have_the_numbers_they_would_have(program: Path) -> None:
    program.write_text(START + "print(fd, epfd, os.open('/', os.O_RDONLY))")
    alone = run([sys.executable, str(program)])
    assert run([*TRACE, str(program)]).stdout == alone.stdout
    assert run([*TRACE, "-o", str(program.parent / "x"), str(program)]).stdout == alone.stdout


def test_what_the_program_does_to_standard_error_is_no_matter(program: Path) -> None:
    program.write_text(START + "os.close(2)\nwrote(b'more')\nos._exit(0)")
    assert run([*TRACE, str(program)]).stderr.count("write(") == 2


# --- the options --------------------------------------------------------------------------------


def test_lines_go_to_standard_error_or_into_a_file(program: Path) -> None:
    out = program.parent / "calls"
    out.write_text("what was there before " * 100)
    to_stderr, to_file = run([*TRACE, str(program)]), run([*TRACE, "-o", str(out), str(program)])
    lines = to_stderr.stderr
    assert lines == out.read_text()
    assert to_file.stderr == ""
    assert lines.splitlines()[2] == f'write({FIRST}, "begin", 5)'.ljust(40) + "= 5"


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
def test_e_picks_calls(expression: str, names: set[str], program: Path) -> None:
    done = run([*TRACE, "-e", expression, str(program)])
    assert {line.partition("(")[0] for line in done.stderr.splitlines()} == names


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    "expression", ["write,epoll_ctl", "trace=write", "t=close", "!write", "none", "!none", "fstat"]
)
def test_strace_takes_the_same_expressions(expression: str) -> None:
    subprocess.run(["strace", "-qq", "-o", os.devnull, "-e", expression, "true"], check=True)


def test_e_knows_fstat_by_both_its_names(program: Path) -> None:
    program.write_text("import danga_raw\ndanga_raw.Loop('poll').add_other_fds({0: print})\n")
    for name in ("fstat", FSTAT):
        assert run([*TRACE, "-e", name, str(program)]).stderr.startswith(f"{FSTAT}(0, ")
    assert run([*TRACE, "-e", "!fstat", str(program)]).stderr == ""


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("option", "form"),
    [("-t", r"\d\d:\d\d:\d\d "), ("-tt", r"\d\d:\d\d:\d\d\.\d{6} "), ("-ttt", r"\d{10}\.\d{6} ")],
)
def test_t_stamps_lines_as_strace_does(option: str, form: str, program: Path) -> None:
    out = program.parent / "calls"
    strace = ["strace", "-qq", option, "-o", str(out), "-e", "trace=epoll_ctl,write"]
    done = run([*strace, *TRACE, option, "-e", "epoll_ctl,write", str(program)])
    stamp = re.compile(rf"^{form}")
    theirs = [line for line in out.read_text().splitlines() if re.match(rf"{form}\w+\(\d,", line)]
    ours = done.stderr.splitlines()
    assert all(stamp.match(line) for line in [*ours, *theirs])
    assert [stamp.sub("", line) for line in ours] == [stamp.sub("", line) for line in theirs]


@pytest.mark.needs("strace")
def test_c_counts_in_straces_columns(program: Path) -> None:
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


def test_c_counts_to_the_end_of_the_interpreter(program: Path) -> None:
    program.write_text("import atexit\n" + START + "atexit.register(wrote, b'x')\nsys.exit(1)")
    done = run([*TRACE, "-c", "-e", "write", str(program)])
    assert (done.returncode, done.stderr.splitlines()[-1].split()) == (1, ["2", "total"])
    program.write_text("pass")
    assert run([*TRACE, "-c", str(program)]).stderr == ""


def test_json_is_one_object_a_line(program: Path) -> None:
    program.write_text(START + "obj.read(5)\n")
    done = run([*TRACE, "--json", "-e", "write,read", str(program)])
    write, read = map(json.loads, done.stderr.splitlines())
    assert write.pop("time") <= read.pop("time")
    fd = str(FIRST)
    assert write == {"name": "write", "args": [fd, '"begin"', "5"], "result": 5, "errno": None}
    assert read == {"name": "read", "args": [fd, "0x...", "5"], "result": -1, "errno": "EAGAIN"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.py"], "danga_raw trace: nowhere.py: No such file or directory"),
        (["/"], "danga_raw trace: /: Is a directory"),
        ([""], "danga_raw trace: : No such file or directory"),
        (["-o", "|cat", __file__], "danga_raw trace: -o takes a file, not a command: '|cat'"),
        (["-e", "fork", "p"], "danga_raw trace: invalid system call 'fork'"),
        (["-e", "read,,write", "p"], "danga_raw trace: invalid system call ''"),
        (["-e", "inject=read:error=EIO", "p"], "danga_raw trace: invalid expression 'inject=read"),
        (["-o", "/nowhere/calls", __file__], "danga_raw trace: /nowhere/calls: No such file"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments: list[str], message: str) -> None:
    done = run([*TRACE, *arguments])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


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


def test_a_signal_that_ends_the_wait_for_ever(program: Path) -> None:
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


def test_a_file_that_takes_no_more_ends_the_trace_not_the_program(program: Path) -> None:
    program.write_text(START + "wrote(b'more')\nprint(obj.closed)\nsys.exit(5)\n")
    done = run([*TRACE, "-o", "/dev/full", str(program)])
    assert (done.returncode, done.stdout) == (5, "False\n")
    assert done.stderr == "danga_raw trace: /dev/full: No space left on device\n"


def test_the_programs_own_files_are_not_written_into(program: Path) -> None:
    program.write_text(
        START + "os.closerange(fd + 1, 4096)\n"
        "while os.open('mine', os.O_RDWR | os.O_CREAT) < 1023: pass\n"
        "os.closerange(fd + 1, 1000)\nloop = Loop('epoll')\nobj = Socket(near, loop)\n"
        "wrote(b'more')\n"
        "print(os.path.getsize('mine'))\n"
    )
    done = run(["sh", "-c", f"cd {program.parent}; ulimit -n 1024; exec \"$@\"", "sh",
                *TRACE, "-o", "calls", str(program)])  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    assert (program.parent / "calls").read_text().count("\n") == 7


def test_without_standard_error_the_program_runs_all_the_same(program: Path) -> None:
    program.write_text(START + "print('out')\nsys.exit(4)\n")
    done = run(["sh", "-c", 'exec "$@" 2>&-', "sh", *TRACE, str(program)])
    assert (done.returncode, done.stdout) == (4, "out\n")


def test_what_a_signals_handler_raises_is_the_programs(program: Path) -> None:
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
    assert f'write({FIRST}, "the end", 7)' in out.read_text().splitlines()[-1]


@pytest.mark.needs("strace")
def test_what_a_signals_handler_calls_is_traced_though_a_line_is_being_written(
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
    assert sorted(own.read_text().splitlines()) == sorted(theirs.read_text().splitlines())


def test_an_address_of_another_family_is_no_matter(program: Path) -> None:
    program.write_text(
        START + "obj = Socket(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), loop)\n"
        "print(obj.local_addr_string())\n"
    )
    done = run([*TRACE, "-e", "getsockname", str(program)])
    assert (done.returncode, done.stdout) == (0, "None\n")
    assert re.fullmatch(r"getsockname\(\d, 0x\.\.\., \[\d+\]\) += 0\n", done.stderr)


def test_large_rests_are_traced_at_a_bounded_price(program: Path) -> None:
    program.write_text(
        START + "import tracemalloc\nobj.write(bytes(20 << 20))\ntracemalloc.start()\n"
        "while obj.write_buf_size:\n    far.recv(1 << 20)\n    obj.write(None)\n"
        "print(tracemalloc.get_traced_memory()[1] < 4 << 20)\n"
    )
    done = run([*TRACE, "-c", str(program)])
    assert done.stdout == "True\n"
