"""The tests in several processes: each is run once, and the reports are as from one process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAST_FAILED = ".pytest_cache/v/cache/lastfailed"

OUTCOMES = """
import os
import pytest


def note(file, *what):
    with open(file, "a") as out:
        print(*what, file=out)


@pytest.fixture(scope="module")
def made():
    yield os.getpid()
    note("torn down", os.getpid())


@pytest.mark.parametrize("number", range(20))
def test_one_of_many(made, number, tmp_path):
    assert made == os.getpid()
    note("run", os.getpid(), __name__, number)
    note("folders", tmp_path)


def test_that_fails():
    print("said before")
    assert "one" == "another"


@pytest.fixture
def spoilt():
    yield
    raise RuntimeError("when it was over")


def test_that_is_spoilt(spoilt):
    pass


@pytest.mark.skip(reason="not now")
def test_that_is_skipped():
    pass


@pytest.mark.needs("a tool that nobody has")
def test_that_needs_something():
    pass


@pytest.mark.xfail(strict=True)
def test_that_is_known_to_fail():
    raise ValueError
"""


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Run pytest on the tests in a folder, with our hooks."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    for theirs in "DANGA_RAW_REQUIRE_ORACLES", "PYTEST_ADDOPTS":
        environment.pop(theirs, None)
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-v", "-rfEsx", "-p", "tests.conftest"]
        + ["-W", "ignore::pytest.PytestUnknownMarkWarning", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def told(folder: Path, *arguments: str) -> tuple[str, int]:
    with started(folder, *arguments) as process:
        return process.communicate()[0], process.returncode


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_several_processes_report_the_same_as_one(tmp_path: Path) -> None:
    said: list[list[str]] = []
    remembered: list[set[str]] = []
    for processes in (1, 3):
        folder = tmp_path / str(processes)
        folder.mkdir()
        for name in ("test_a.py", "test_b.py"):
            (folder / name).write_text(OUTCOMES)
        text, status = told(folder, "--processes", str(processes))
        assert status == 1
        plain = re.sub(r" +\[ *\d+%\]|=+|in [\d.]+s", "", text.replace(str(folder), ""))
        said.append(sorted(plain.splitlines()))
        remembered.append(set(json.loads((folder / LAST_FAILED).read_text())))
        run = lines(folder / "run")
        assert len({line.split()[0] for line in run}) == processes
        assert Counter(line.split(maxsplit=1)[1] for line in run) == {
            f"{module} {number}": 1 for module in ("test_a", "test_b") for number in range(20)
        }
        # A module's fixture is made once in each process, and torn down there.
        made = {(line.split()[0], line.split()[1]) for line in run}
        assert len(lines(folder / "torn down")) == len(made)
        assert len(set(lines(folder / "folders"))) == 40
    assert said[0] == said[1]
    assert remembered[0] == remembered[1] and len(remembered[0]) == 4
    assert "said before" in said[1]
    assert any("needs a tool that nobody has. On Debian:" in line for line in said[1])


def test_option_x_stops_at_the_first_failure(tmp_path: Path) -> None:
    failing = "def test_fails(): assert False\n"
    passing = "".join(f"def test_{n}(): pass\n" for n in range(1000))
    (tmp_path / "test_it.py").write_text(failing + passing)
    text, status = told(tmp_path, "--processes", "2", "-x")
    assert status == 1 and "stopping after 1 failures" in text
    assert text.count("PASSED") < 1000


def test_process_that_dies_is_reported_with_its_test(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import os, signal\n"
        "def test_before(): pass\n"
        "def test_deadly(): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    text, status = told(tmp_path, "--processes", "2")
    assert status == 2  # as after an interruption: not all have run
    assert "a process of the tests ended in test_it.py::test_deadly" in text


LEFT = """
class Left:
    def __del__(self):
        raise RuntimeError("left to the collector")


def test_the_last():
    left = Left()
    left.itself = left
"""


@pytest.mark.parametrize("processes", ["1", "2"])
def test_error_after_the_last_test_is_a_failure(tmp_path: Path, processes: str) -> None:
    (tmp_path / "test_it.py").write_text(LEFT)
    text, status = told(tmp_path, "--processes", processes, "-W", "error")
    assert status != 0 and "left to the collector" in text


WAITING = """
import os, signal, pytest

@pytest.fixture(scope="module")
def made():
    yield
    open(f"ended {os.getpid()}", "w")

@pytest.mark.parametrize("number", range(9))
def test_that_waits(made, number):
    # Not by pause(2), which a signal just before it does not end.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    alive = os.open("alive", os.O_WRONLY)
    os.write(alive, b"waits\\n")
    os.read(reader, 1)
"""


def test_interrupt_ends_all_processes_and_each_cleans_up(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(WAITING)
    os.mkfifo(tmp_path / "alive")
    with started(tmp_path, "--processes", "2") as process:
        with (tmp_path / "alive").open() as alive:
            assert (alive.readline(), alive.readline()) == ("waits\n", "waits\n")
            os.killpg(process.pid, signal.SIGINT)
            assert alive.read() == ""  # nobody holds it any more
        text = process.communicate()[0]
    assert process.returncode == 2 and "KeyboardInterrupt" in text
    assert len(list(tmp_path.glob("ended *"))) == 2


# --- tests/run.sh ---------------------------------------------------------------------------------

PYTHON = """#!/bin/sh
# Stands for the environment's: says what it is asked for, and ends as it is told to.
echo "$@" >>"$VENV/asked"
case "$2" in
    mypy) echo "types looked at"; exec sh -c "$MYPY" ;;
    pytest) echo "tests run"; exec sh -c "$PYTEST" ;;
esac
"""


def run_sh(
    folder: Path, *arguments: str, mypy: str = "exit 0", pytest: str = "exit 0"
) -> subprocess.Popen[str]:
    (folder / "bin").mkdir()
    (folder / "bin" / "python").write_text(PYTHON)
    (folder / "bin" / "python").chmod(0o755)
    (folder / "made").touch()
    return subprocess.Popen(
        ["sh", str(ROOT / "tests" / "run.sh"), *arguments],
        env={**os.environ, "VENV": str(folder), "MYPY": mypy, "PYTEST": pytest},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("mypy", "pytest", "status"),
    [
        ("exit 0", "exit 0", 0),
        ("exit 2", "exit 0", 1),
        ("exit 0", "exit 3", 3),
        ("exit 1", "exit 2", 2),
    ],
)
def test_output_of_all_tests_is_printed_before_that_of_the_type_check(
    tmp_path: Path, mypy: str, pytest: str, status: int
) -> None:
    with run_sh(tmp_path, mypy=mypy, pytest=pytest) as process:
        assert process.communicate()[0] == "tests run\ntypes looked at\n"
    assert process.returncode == status
    assert sorted(lines(tmp_path / "asked")) == ["-m mypy", "-m pytest --processes 3"]


def test_selected_tests_run_in_one_process_after_the_type_check(tmp_path: Path) -> None:
    with run_sh(tmp_path, "--all", "tests/test_x.py", "-k", "y z", pytest="exit 5") as process:
        assert process.communicate()[0] == "types looked at\ntests run\n"
    assert process.returncode == 5
    assert lines(tmp_path / "asked") == ["-m mypy", "-m pytest tests/test_x.py -k y z"]


def test_interrupt_ends_the_tests_and_the_type_check(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "alive")
    forever = "exec 3>$VENV/alive; echo waits >&3; exec sleep 1000"
    with run_sh(tmp_path, mypy=forever, pytest=forever) as process:
        with (tmp_path / "alive").open() as alive:
            assert (alive.readline(), alive.readline()) == ("waits\n", "waits\n")
            os.killpg(process.pid, signal.SIGINT)
            assert alive.read() == ""  # neither holds it any more
    assert process.returncode == 130
