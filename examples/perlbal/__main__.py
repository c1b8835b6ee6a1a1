#!/usr/bin/env python3
"""Perlbal, a reverse proxy and web server, on danga_raw: python3 examples/perlbal FILE."""

from __future__ import annotations

import argparse
import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from danga_raw import Loop
from examples.perlbal.commands import VERSION
from examples.perlbal.parameters import LanguageError
from examples.perlbal.server import Server, write_line


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="perlbal",
        description="A reverse proxy, load balancer and web server that speaks Perlbal's language.",
        epilog="See docs/perlbal.md for the language, and perlbal.conf beside this program for a"
        " configuration to begin with.",
    )
    parser.add_argument("file", nargs="?", help="the configuration")
    parser.add_argument("-c", "--config", metavar="FILE", help="the same, as Perlbal has it")
    parser.add_argument("--version", action="version", version=f"Perlbal version {VERSION}")
    options = parser.parse_args()
    name = options.file or options.config
    if not name:
        parser.error("which configuration? give a FILE")
    with Loop() as loop:
        return run(Server(loop), name)


def print_line(line: str) -> None:
    """Print an answer to a command in the file."""
    write_line(line, 2 if line.startswith("ERROR") else 1)


def run(server: Server, name: str) -> int:
    """Run the configuration and serve. Returns the exit status."""
    server.install_signal_handlers()
    try:
        server.language.load_file(name, print_line)
    except LanguageError as error:
        write_line(f"{error}\nError starting up.")
        return 1
    if not any(service.listener for service in server.services.values()):
        write_line("No service listens.  Nothing to do.  Stopping.")
        return 1
    print_line("Running.")
    server.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
