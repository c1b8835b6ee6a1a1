"""Configurations that must not start, and their error messages."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.perlbal.servers import START

WEB = """
CREATE SERVICE web
  SET role = web_server
"""
PROXY = """
CREATE POOL one
CREATE SERVICE proxy
  SET role = reverse_proxy
"""


@dataclass(frozen=True)
class Refusal:
    """A configuration that is refused."""

    name: str
    configuration: str


REFUSALS = [
    Refusal("an unknown command", "NONSENSE\n"),
    Refusal("an error behind a good line", "CREATE POOL one\nNONSENSE\nCREATE POOL two\n"),
    Refusal("no command at all", "= 1\n"),
    Refusal("a role that is none", "CREATE SERVICE x\nSET role = nothing\n"),
    Refusal("a doubled service", "CREATE SERVICE x\nCREATE SERVICE X\n"),
    Refusal("a service with a pool's name", "CREATE POOL x\nCREATE SERVICE x\n"),
    Refusal("no context", "SET role = web_server\n"),
    Refusal("an unknown parameter", WEB + "SET nonsense = 1\n"),
    Refusal("another role's parameter", WEB + "SET pool = one\n"),
    Refusal("a folder that is not there", WEB + "SET docroot = /nowhere/at/all\n"),
    Refusal("a bad boolean", WEB + "SET persist_client = maybe\n"),
    Refusal("a bad number", WEB + "SET idle_timeout = 1s\n"),
    Refusal("a bad size", WEB + "SET max_put_size = 1kb\n"),
    Refusal("a bad address", WEB + "SET listen = here:80\n"),
    Refusal("a pool that is not there", PROXY + "SET pool = two\n"),
    Refusal("a bad backend", PROXY + "POOL one ADD nowhere\n"),
    Refusal("a backend for no pool", PROXY + "POOL two ADD 127.0.0.1:80\n"),
    Refusal("a bad netmask", PROXY + "SET trusted_upstream_proxies = 1.2.3.4/x\n"),
    Refusal("a chance above 100", PROXY + "SET queue_relief_chance = 101\n"),
    Refusal("ENABLE of nothing", "ENABLE nothing\n"),
    Refusal("ENABLE twice", WEB + "ENABLE web\nENABLE web\n"),
    Refusal("USE of nothing", "USE nothing\n"),
    Refusal("HEADER without a value", PROXY + "HEADER proxy INSERT X\n"),
    Refusal("an unknown server option", "SERVER nonsense = 1\n"),
    Refusal("a plugin's command without it", WEB + "VHOST * = web\n"),
    Refusal("VHOST of no selector", "LOAD vhosts\n" + WEB + "VHOST web * = web\n"),
    Refusal("INCLUDE of nothing", "LOAD include\nINCLUDE = /nowhere/at/all.conf\n"),
    Refusal("ACCESS without a context", "LOAD AccessControl\nACCESS policy deny\n"),
    Refusal("REDIRECT of what is none", "LOAD redirect\nREDIRECT PATH /a /b\n"),
]


def refused(command: Sequence[str], configuration: str, folder: Path) -> tuple[bool, list[str]]:
    """Whether the server exited at once with a status other than 0, and what it printed."""
    folder.mkdir()
    file = folder / "perlbal.conf"
    file.write_text(configuration)
    done = subprocess.run(
        [*command, str(file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=START,
        check=False,
        text=True,
        env={**os.environ, "NOSUCH": ""},
    )
    said = [line for line in done.stdout.splitlines() if line.lower().startswith("error")]
    return done.returncode != 0, sorted(said)
