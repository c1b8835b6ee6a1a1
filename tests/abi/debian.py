"""Debian's packages of any suite and machine, each unpacked into its own folder.

Nothing is installed in the system, and it needs no foreign architecture and no other suite. This
needs apt and dpkg-deb, and the network once: unpacked packages stay in the user's cache folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "danga_raw")
"""The cache of what takes long to download or build; anything missing is made again."""

STABLE = "bookworm"
"""The suite used unless a newer one is needed."""

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def run(command: Sequence[str], cwd: Path | None = None) -> str:
    """The standard output of `command`. If it fails, raises `OSError` with its last output."""
    if shutil.which(command[0]) is None:
        raise OSError(f"there is no {command[0]} here")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise OSError(f"{' '.join(command)}: " + "\n".join(said[-20:]))
    return done.stdout


def archive() -> str:
    """The address of the Debian archive that this machine's apt uses."""
    form = "$(ORIGIN)/$(LABEL)/$(COMPONENT) $(REPO_URI)"
    for line in run(["apt-get", "indextargets", "--format", form]).splitlines():
        what, _, address = line.partition(" ")
        if what == "Debian/Debian/main":
            return address
    raise OSError("apt knows no archive of Debian here: apt-get update")


@contextmanager
def apt_get(suite: str, architecture: str) -> Iterator[list[str]]:
    """The start of an apt-get command that knows only one suite for one machine.

    To this apt-get no package is installed, so it fetches a package with all its dependencies.
    """
    with tempfile.TemporaryDirectory() as folder:
        apt = Path(folder)
        for each in ("state/lists/partial", "cache/archives/partial", "etc"):
            (apt / each).mkdir(parents=True)
        (apt / "status").touch()
        # Only Debian's own main section: the system's other sources may lack these machines.
        where = f"[signed-by={KEYRING}] {archive()} {suite} main"
        (apt / "etc/sources.list").write_text(f"deb {where}\ndeb-src {where}\n")
        options = {
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Dir::State": f"{apt}/state",
            "Dir::State::status": f"{apt}/status",
            "Dir::Cache": f"{apt}/cache",
            "Dir::Etc::SourceList": f"{apt}/etc/sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
        }
        command = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
        run([*command, "update"])
        yield command


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A temporary folder, which becomes `folder` once it is complete.

    Two processes may make the same folder at the same time; the second one's is dropped.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    try:
        yield made
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def unpack(packages: Sequence[str], root: Path, *, suite: str, architecture: str) -> Path:
    """Unpack `packages` and their dependencies in `root`, unless that is done; returns `root`.

    Raises `OSError` if they can't be downloaded.
    """
    if root.exists():
        return root
    with whole(root) as made, apt_get(suite, architecture) as command:
        store = made / "archives"
        (store / "partial").mkdir(parents=True)
        command = [*command, f"-oDir::Cache::Archives={store}"]
        run([*command, "install", "--yes", "--download-only", *packages])
        for package in sorted(store.glob("*.deb")):
            run(["dpkg-deb", "-x", str(package), str(made)])
        shutil.rmtree(store)
        for name in ("bin", "lib", "lib64", "sbin"):
            # Since trixie these are links, which only the package that sets up a system contains.
            if (made / "usr" / name).exists() and not (made / name).exists():
                (made / name).symlink_to(f"usr/{name}")
        for path in made.rglob("*"):
            # An absolute link, such as ppc64el's loader, would lead out of the unpacked root.
            if path.is_symlink() and os.readlink(path).startswith("/"):
                inside = os.path.relpath(f"{made}{os.readlink(path)}", path.parent)
                path.unlink()
                path.symlink_to(inside)
    return root


def source(package: str, folder: Path, *, suite: str) -> Path:
    """The folder under `folder` with the upstream source of `package`.

    It is without Debian's changes, which are for Debian's own layout.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with apt_get(suite, "amd64") as command:
        run([*command, "source", "--download-only", "--tar-only", package], cwd=folder)
    (tarball,) = folder.glob(f"{package}_*.orig.tar.*z")
    run(["tar", "-xf", str(tarball)], cwd=folder)
    tarball.unlink()
    (unpacked,) = folder.iterdir()
    return unpacked
