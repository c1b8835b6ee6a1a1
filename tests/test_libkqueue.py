"""libkqueue on Linux: a real kqueue, if not a kernel's.

Debian's (2.3.1, in experimental) can't have both filters of a descriptor enabled, and is refused
when it is loaded. The package still runs on it as far as it goes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from danga_raw._clibrary import GLIBC
from danga_raw._kernel import HERE
from tests import needs
from tests.abi import debian

PACKAGE = "libkqueue0t64"

pytestmark = pytest.mark.skipif(HERE.libc != GLIBC, reason="Debian's libkqueue is for glibc")


@pytest.fixture(scope="module")
def library() -> str:
    """The path of Debian's libkqueue, which is unpacked into the cache folder when first needed."""
    root = debian.CACHE / PACKAGE
    try:
        if not root.exists():
            architecture = debian.run(["dpkg", "--print-architecture"]).strip()
            # Without its dependencies, which experimental lacks: it needs only the C library.
            with debian.whole(root) as made, debian.apt_get("experimental", architecture) as apt:
                debian.run([*apt, "download", PACKAGE], cwd=made)
                debian.run(["dpkg-deb", "-x", str(next(made.glob("*.deb"))), str(made)])
    except OSError as error:
        if needs.REQUIRED and "Unable to locate package" not in str(error):
            raise
        pytest.skip(f"needs Debian's {PACKAGE}: {error}")
    return str(next(root.glob("usr/lib/*/libkqueue.so.0")))


def test_library_that_cannot_watch_both_filters_is_rejected_in_one_line(library: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "danga_raw", "echo"],
        env={**os.environ, "DANGA_RAW_LIBKQUEUE": library},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "2.7.0" in line
    assert library in line and "File exists" in line


def test_package_works_on_the_library_as_far_as_it_goes(library: str) -> None:
    # A separate process: the library closes a kqueue's descriptors at some later time.
    cases = Path(__file__).with_name("on_libkqueue.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(cases)],
        env={**os.environ, "LIBKQUEUE": library},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
