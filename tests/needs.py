"""The tools that tests need. Without its tool a test is skipped with a message; in CI it fails."""

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests import container, seccomp

ROOT = Path(__file__).parents[1]

DEBIAN_PACKAGES = {
    "perl": "perl",
    "danga": "libdanga-socket-perl",
    "strace": "strace",
    "curl": "curl",
    "openssl": "openssl",
    "ab": "apache2-utils",
    "wrk": "wrk",
    "valgrind": "valgrind",
    "gcc": "gcc",
    "perlbal": "perlbal libperlbal-perl libnet-netmask-perl libbsd-resource-perl",
    "nginx": "nginx",
    "seccomp": "linux-libc-dev",
    "chroot": "util-linux",
}
"""Tool name -> the Debian package that contains it."""

REQUIRED = os.environ.get("DANGA_RAW_REQUIRE_ORACLES") == "1"
"""Set in CI, where a missing tool is a failure: a comparison that didn't run proves nothing."""

missing: set[str] = set()
"""The tools that tests needed and did not find in this run; the last lines of output name them."""


@cache
def present(tool: str) -> bool:
    """True if `tool` can be used here."""
    if tool == "danga":
        if shutil.which("perl") is None:
            return False
        probe = ["perl", "-MDanga::Socket", "-e", "1"]
        return subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0
    if tool == "strace":
        # strace may be installed, but ptrace forbidden.
        if shutil.which("strace") is None:
            return False
        trial = subprocess.run(
            ["strace", "-o", os.devnull, "true"], capture_output=True, check=False
        )
        return trial.returncode == 0
    if tool == "chroot":
        try:
            command = [*container.changed_root(Path("/")), "true"]
        except OSError:
            return False
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    if tool == "seccomp":
        if os.uname().machine != "x86_64" or sys.maxsize < 1 << 32 or seccomp.header() is None:
            return False
        code = "from tests.seccomp import *; install(INTERPRETER); os._exit(0)"
        return subprocess.call([sys.executable, "-c", code], cwd=ROOT) == 0
    return shutil.which(tool) is not None


def need(*tools: str) -> None:
    """Skip the running test unless all of `tools` are here; fail it where CI requires them."""
    for tool in tools:
        if not present(tool):
            missing.add(tool)
            if REQUIRED:
                pytest.fail(f"{tool} is required here and is missing", pytrace=False)
            pytest.skip(f"needs {tool}")


def how_to_get() -> list[str]:
    """The last lines of output, which say how to install what was missing."""
    if not missing:
        return []
    packages = " ".join(sorted(DEBIAN_PACKAGES.get(tool, tool) for tool in missing))
    return [
        f"Skipped what needs {', '.join(sorted(missing))}. On Debian:",
        f"    apt-get install {packages}",
    ]
