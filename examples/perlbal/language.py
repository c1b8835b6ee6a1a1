"""The language of the configuration file and the management port, a line at a time.

Its commands are in commands.py, and those of plugins in plugins.py.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import struct
from collections.abc import Callable
from string import ascii_lowercase, ascii_uppercase
from typing import TYPE_CHECKING, Final, NamedTuple

from examples.perlbal.parameters import LanguageError, named

if TYPE_CHECKING:
    from examples.perlbal.server import Server
    from examples.perlbal.services import Service

    Out = Callable[[str], object]

MAX_FILE: Final = 10_000_000
"""Characters of a configuration file."""

Answer = list[str] | str | None
"""What a command answers: a list, a line (or nothing, if it is empty), or OK."""

_LOWER: Final = str.maketrans(ascii_uppercase, ascii_lowercase)


class Context:
    """What commands leave to those behind them: one for each file and connection."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        """Whether success is told."""
        self.last_created = ""
        """The service or pool that SET means when it names none."""


class Call(NamedTuple):
    """One command that is being carried out."""

    server: Server
    word: str
    out: Out
    context: Context

    def service(self, name: str) -> Service:
        return named(self.server.services, name, f"service '{name}' does not exist")

    def service_in_context(self) -> Service:
        name = self.context.last_created
        if not name:
            raise LanguageError(
                "No service name in context from CREATE SERVICE <name> or USE <service_name>"
            )
        return named(self.server.services, name, f"Non-existent service '{name}'")


class Command(NamedTuple):
    run: Callable[..., Answer]
    """Carries it out: with the call, and the groups of the pattern, "" for each that isn't there.
    May raise `LanguageError`."""
    pattern: str = ""
    """Fits what stands behind its first word, which is in lower case up to the first "="."""
    usage: str = ""
    """What is told where the pattern doesn't fit."""


LEFT_OUT: Final = {
    **dict.fromkeys(
        ("xs", "leaks", "gladiator", "varsize", "obj", "track"), "there is no Perl here"
    ),
    "prof": "use a profiler of Python's",
    "crash": "it is not done on purpose",
    "state": "states aren't recorded",
}
"""Perlbal's commands that aren't here, and why."""


class Language:
    def __init__(self, server: Server) -> None:
        self.server = server

    def load_file(self, name: str, out: Out) -> None:
        """Carry out the commands of a file. Raises `LanguageError` at the first that fails."""
        try:
            kind = stat.S_IFMT(os.stat(name).st_mode)
            if self.server.running and kind in (stat.S_IFIFO, stat.S_IFCHR):
                # Everybody would wait for who writes to it.
                raise LanguageError(f"Error opening config file ({name}): Not a file")
            # A line ends with LF: CR is a space like others, and all else is a part of a name.
            with open(name, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
                text = file.read(MAX_FILE + 1)
        except OSError as error:
            raise LanguageError(f"Error opening config file ({name}): {error.strerror}") from None
        if len(text) > MAX_FILE:
            raise LanguageError(f"{name} is longer than {MAX_FILE} characters")
        context = Context(verbose=False)
        for number, line in enumerate(text.split("\n"), 1):
            if not self.run(line, out, context):
                raise LanguageError(f"{name}, line {number}: {line.strip()}")

    def run(self, line: str, out: Out, context: Context) -> bool:
        """Carry out one line, and answer by `out`. False if it failed."""
        try:
            text = _plain(line)
            answer = self._carry_out(text, out, context) if text.strip(" ") else ""
        except (LanguageError, OSError, ValueError, RecursionError) as error:
            # What the system, or Python, wouldn't do with a value is an answer like another.
            out(f"ERROR: {error}")
            return False
        if isinstance(answer, list):
            answer = "\n".join([*answer, "."])
        elif answer is None and context.verbose:
            answer = "OK"
        for each in answer.split("\n") if answer else ():
            out(each)
        return True

    def _carry_out(self, text: str, out: Out, context: Context) -> Answer:
        found = re.match(r"\w+", text, re.ASCII)
        if found is None:
            raise LanguageError("invalid command")
        word, rest = found[0], text[found.end() :]
        command = self.server.commands.get(word)
        if command is None:
            if word in LEFT_OUT:
                raise LanguageError(f"{text} is not supported here: {LEFT_OUT[word]}")
            raise LanguageError(f"unknown command: {word}")
        found = re.fullmatch(command.pattern, rest, re.ASCII)
        if found is None:
            if command.usage or command.pattern:
                raise LanguageError(command.usage or f"Invalid syntax to '{word}' command")
            raise LanguageError(f"The '{word}' command takes no arguments")
        groups = (group or "" for group in found.groups())
        return command.run(Call(self.server, word, out, context), *groups)


def _plain(line: str) -> str:
    """A line without its comment, with its variables replaced, and in lower case up to "="."""
    # Spaces of Unicode are no spaces: a file's name may have them.
    text = re.sub(r"\s+", " ", line.partition("#")[0], flags=re.ASCII).strip(" ")
    text = re.sub(r"\$\{([^{}]+)\}", _variable, text)
    text = re.sub(r"\$(\w+)", lambda found: os.environ.get(found[1], ""), text, flags=re.ASCII)
    left, equals, right = text.partition("=")
    return left.translate(_LOWER) + equals + right


def _variable(found: re.Match[str]) -> str:
    kind, colon, value = found[1].partition(":")
    if not colon or not value:
        raise LanguageError(f"Unknown config variable: {found[1]}")
    if kind != "ip":
        raise LanguageError(f"Unknown config variable type: {kind}")
    if not re.fullmatch(r"[\w.@-]+", value, re.ASCII):
        raise LanguageError("Bogus-looking iface name")
    return _interface_address(value)


def _interface_address(name: str) -> str:
    """The IPv4 address of a network interface, by ioctl(SIOCGIFADDR), which is Linux's."""
    try:
        from fcntl import ioctl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = ioctl(sock.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))
        return socket.inet_ntoa(answer[20:24])
    except OSError:
        raise LanguageError(f"Can't find IP of interface '{name}'") from None
