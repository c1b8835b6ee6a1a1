"""A test that hangs ends by itself, whatever it waits for, and the other tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HANGING = """
import subprocess, sys, threading


def test_a_lock():
    threading.Lock().__enter__(), (lock := threading.Lock()).acquire(), lock.acquire()


def test_a_program_that_is_waited_for_again_by_the_cleaning_up():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            process.wait()
        finally:
            process.wait()


def test_the_next_one():
    pass
"""


def test_hanging_test_ends_by_itself_and_the_next_one_runs(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HANGING)
    root = Path(__file__).parents[1]
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(tmp_path)]
        + [str(tmp_path)],
        cwd=root,
        env=os.environ | {"DANGA_RAW_PATIENCE": "0.2", "PYTEST_ADDOPTS": "-p no:cacheprovider"},
        capture_output=True,
        text=True,
    ).stdout
    assert "2 failed, 1 passed" in said and "Hangs" in said
