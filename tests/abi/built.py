"""Pythons that Debian doesn't have, built from its source packages into the user's cache folder.

A build takes some ten minutes on one core. It is kept until its folder is deleted.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.abi import debian

SUITE = "trixie"
PYTHON = "python3.13"


class Build(NamedTuple):
    """How a Python is built."""

    compiler: str
    needs: str
    """The Debian packages with the compiler."""
    options: tuple[str, ...]
    """Options for Python's configure."""


BUILDS = {
    "musl": Build("musl-gcc", "musl-tools linux-libc-dev", ()),
    "free-threaded": Build("gcc", "gcc libc6-dev", ("--disable-gil",)),
}


def python(name: str) -> Path:
    """The interpreter of that build, after building it if it isn't there."""
    compiler, needs, options = BUILDS[name]
    prefix = debian.CACHE / f"{PYTHON}-{name}"
    if not prefix.exists():
        autotools = "autoconf automake libtool libltdl-dev"
        for tool, packages in {compiler: needs, "make": "make", "autoreconf": autotools}.items():
            if shutil.which(tool) is None:
                raise OSError(f"{tool} is missing: apt-get install {packages}")
        with tempfile.TemporaryDirectory() as scratch, debian.whole(prefix) as stage:
            if compiler == "musl-gcc":
                compiler = str(_musl_gcc(Path(scratch)))
            # musl's compiler doesn't find the system's libraries, so ctypes needs its own libffi;
            # the other build uses the same.
            ffi = debian.source("libffi", Path(scratch, "libffi"), suite=SUITE)
            debian.run(["autoreconf", "-i"], cwd=ffi)
            lean = ["--disable-static", "--disable-docs", "--disable-multi-os-directory"]
            _install(ffi, lean, {"CC": compiler}, prefix, stage)
            lib = f"{stage}{prefix}/lib"
            variables = {
                "CC": compiler,
                "PKG_CONFIG": "false",
                "LIBFFI_CFLAGS": f"-I{stage}{prefix}/include",
                "LIBFFI_LIBS": f"-L{lib} -lffi",
                "LDFLAGS": f"-Wl,-rpath,{prefix}/lib -Wl,--strip-all",
                "OPT": "-DNDEBUG -O2",
                # The build loads each module once as a check.
                "LD_LIBRARY_PATH": lib,
            }
            source = debian.source(PYTHON, Path(scratch, PYTHON), suite=SUITE)
            lean = ["--without-ensurepip", "--disable-test-modules"]
            _install(source, [*options, *lean], variables, prefix, stage)
            for path in Path(f"{stage}{prefix}").iterdir():
                path.rename(stage / path.name)
            shutil.rmtree(stage / prefix.parts[1])
    return prefix / "bin/python3"


def _musl_gcc(folder: Path) -> Path:
    """A musl-gcc that finds the kernel's headers, which are the same for every C library, and that
    reports musl as its target: the real one lets gcc answer, which Python's configure rejects as a
    contradiction."""
    headers = folder / "kernel"
    headers.mkdir()
    for name in ("linux", "asm-generic"):
        (headers / name).symlink_to(f"/usr/include/{name}")
    (machine,) = Path("/usr/include").glob("*/asm")
    (headers / "asm").symlink_to(machine)
    compiler = folder / "musl-gcc"
    compiler.write_text(
        "#!/bin/sh\n"
        f'[ "$*" = --print-multiarch ] && exec echo {os.uname().machine}-linux-musl\n'
        f'exec {shutil.which("musl-gcc")} -idirafter {headers} "$@"\n'
    )
    compiler.chmod(0o755)
    return compiler


def _install(
    source: Path, options: Sequence[str], variables: Mapping[str, str], prefix: Path, stage: Path
) -> None:
    """Build `source` for `prefix`, and install it there with `stage` as the root."""
    nice = ["nice", "env", *(f"{name}={value}" for name, value in variables.items())]
    jobs = os.environ.get("MAKEFLAGS") or f"-j{os.cpu_count() or 1}"
    debian.run([*nice, "./configure", "-q", f"--prefix={prefix}", *options], cwd=source)
    debian.run([*nice, "make", "-s", jobs], cwd=source)
    debian.run([*nice, "make", "-s", "install", f"DESTDIR={stage}"], cwd=source)
