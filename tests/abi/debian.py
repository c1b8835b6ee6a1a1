"""Debian's packages of any suite and machine, unpacked into a folder of their own.

Nothing is installed in the system, which needs no foreign architecture and no other suite for it.
It takes apt and dpkg-deb, and the network once: what is unpacked stays in the user's cache folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "danga_raw")
"""Where things stay that take time to get; whatever is missing there is got anew."""

STABLE = "bookworm"
"""The suite to take things from that need no newer one."""

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpack(packages: Sequence[str], root: Path, *, suite: str, architecture: str) -> Path:
    """`root`, with `packages` and all that they depend on unpacked in it, if they aren't yet.

    Raises `OSError` where they can't be had. Two processes may ask for the same at one time.
    """
    if root.exists():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    made = root.with_name(f".{root.name}-{os.getpid()}")
    shutil.rmtree(made, ignore_errors=True)
    try:
        _download(packages, made / "apt", suite, architecture)
        for package in sorted((made / "apt/cache/archives").glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, made], check=True)
        shutil.rmtree(made / "apt")
        for path in made.rglob("*"):
            # An absolute link would lead out of the unpacked root: ppc64el's loader is one.
            if path.is_symlink() and os.readlink(path).startswith("/"):
                inside = os.path.relpath(f"{made}{os.readlink(path)}", path.parent)
                path.unlink()
                path.symlink_to(inside)
        for name in ("bin", "lib", "lib64", "sbin"):
            # Since trixie these are links that no package has but the one that sets a system up.
            if (made / "usr" / name).exists() and not (made / name).exists():
                (made / name).symlink_to(f"usr/{name}")
        try:
            made.rename(root)
        except OSError:
            if not root.exists():  # Another process was faster, otherwise.
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return root


def _download(packages: Sequence[str], apt: Path, suite: str, architecture: str) -> None:
    for folder in ("state/lists/partial", "cache/archives/partial", "etc"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    # Only Debian's own main section: the system may have other sources, without these machines.
    (apt / "etc/sources.list").write_text(
        f"deb [signed-by={KEYRING}] http://deb.debian.org/debian {suite} main\n"
    )
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
    if shutil.which("apt-get") is None:
        raise OSError(f"{' '.join(packages)} of Debian {suite}: there is no apt-get here")
    command = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    for verb in (["update"], ["install", "--yes", "--download-only", *packages]):
        done = subprocess.run(command + verb, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip()
            raise OSError(f"apt-get {verb[0]} of Debian {suite} for {architecture}: {said}")
