"""Debian packages, unpacked beside the system and not installed in it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class Unavailable(OSError):
    """The archive doesn't have the package."""


def unpack(
    root: Path, *packages: str, architecture: str, suite: str, dependencies: bool = True
) -> None:
    """Unpack `packages` of `suite` (and what they depend on) under `root`, if that isn't done.

    Raises `Unavailable`, and `OSError` where apt fails otherwise.
    """
    if (root / "complete").exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    apt = root / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial", "etc"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    # Only Debian's own main section: the system may have other sources, without these packages.
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
    command = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in options.items())]
    get = ["install", "--yes", "--download-only"] if dependencies else ["download"]
    for verb in (["update"], [*get, *packages]):
        done = subprocess.run(
            command + verb,
            cwd=apt / "cache/archives",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            kind = Unavailable if "Unable to locate package" in done.stderr else OSError
            raise kind(f"apt-get {verb[0]} for {architecture}: {done.stderr.strip()}")
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    shutil.rmtree(apt)
    (root / "complete").touch()


def architecture() -> str:
    """This machine's, as Debian calls it. Raises `OSError`."""
    return subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    ).stdout.strip()
