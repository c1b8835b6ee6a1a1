"""Danga::Socket in Python, from the command line: an echo server, the ABI in use, and the audit."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TypeAlias, cast

from danga_raw import (
    Listener,
    Loop,
    Socket,
    __version__,
    _epoll,
    _kernel,
    _kqueue,
    _poll,
    _seccomp,
    _sockopt,
    log_exception,
)
from danga_raw._addresses import shown
from danga_raw._backends import backends
from danga_raw._seccomp import Json as Fact

Facts: TypeAlias = Mapping[str, Fact]


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status; 2, and a message on stderr, on failure."""
    parser = argparse.ArgumentParser(prog=_prog(), description=__doc__)
    parser.add_argument("--version", action="version", version=f"danga_raw {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("echo", help="send back whatever is received, until SIGTERM")
    command.add_argument("--host", default="127.0.0.1", help="where to listen (%(default)s)")
    command.add_argument("--port", type=_port, default=0, help="0, the default, takes a free one")
    command = commands.add_parser("info", help="the backend, and the ABI in use")
    command.add_argument("--json", action="store_true", help="as one JSON object")
    one = command.add_mutually_exclusive_group()
    one.add_argument("--abi", metavar="PLATFORM", help="only the layouts of that platform")
    one.add_argument(
        "--syscalls", action="store_true", help="every system call that danga_raw can make here"
    )
    one.add_argument("--seccomp", action="store_true", help="an OCI seccomp profile, as JSON")
    commands.add_parser("trace", help="run a program and print its calls")
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["trace"]:
        # Imported here, so that no fault of the trace can break the other commands.
        from danga_raw import _tracecli

        # The arguments after PROGRAM are the program's, and so is any exception.
        _tracecli.main(argv[1:], parser.prog)
        return 0
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        commands.choices[arguments.command].error(f"unknown argument {unknown[0]!r}")
    try:
        if arguments.command == "echo":
            echo(arguments.host, arguments.port)
        else:
            info(arguments.abi, arguments.syscalls, arguments.seccomp, arguments.json)
    except BrokenPipeError:
        # Nobody reads our output any more; the interpreter must not try to flush the rest.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError) as error:
        print(f"danga_raw: {error}", file=sys.stderr)
        return 2
    return 0


def _prog() -> str:
    """The command as it was typed: the name of the script, or of the module."""
    name = os.path.basename(sys.argv[0])
    return name if name == "danga-raw" else "python3 -m danga_raw"


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"a port is 0 to 65535, not {text!r}")
    return int(text)


# --- echo -----------------------------------------------------------------------------------------


class Echo(Socket):
    """One connection of the echo server. Reads no faster than the peer takes its echo."""

    __slots__ = ("server",)

    def __init__(self, sock: socket.socket, server: EchoServer) -> None:
        super().__init__(sock, server.loop)
        self.server: EchoServer = server

    def event_read(self) -> None:
        data = self.read(65536)
        if data is None:
            self.close("end")
        elif data:
            self.server.bytes += len(data)
            if not self.write(data):
                self.watch_read(False)

    def event_write(self) -> None:
        if self.write(None):
            self.watch_read(True)

    def event_err(self) -> None:
        self.close("error")

    def event_hup(self) -> None:
        self.event_read()  # There may be unread data from before the hang-up.


class EchoServer(Listener):
    """Accepts connections, and counts them and their bytes."""

    connections: int = 0
    bytes: int = 0

    def __init__(self, sock: socket.socket, loop: Loop) -> None:
        super().__init__(sock, self.serve, loop)

    def serve(self, connection: socket.socket, address: object) -> None:
        Echo(connection, self).watch_read(True)
        self.connections += 1


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on the first usable address of `host`, a name or an IPv4 or IPv6 address.
    Raises `OSError`, with the address that was asked for, if there is none."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    failure: OSError | UnicodeError = OSError("the name has no address")
    try:
        found = socket.getaddrinfo(
            bare or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        found, failure = [], error
    for family, _, _, _, address in found:
        try:
            listener = socket.socket(family)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen(1024)
                return listener
            except BaseException:
                listener.close()
                raise
        except OSError as error:
            failure = error
    reason = failure.strerror if isinstance(failure, OSError) else failure
    raise OSError(f"cannot listen on {shown(bare, port)}: {reason or failure}")


def echo(host: str, port: int) -> None:
    """Echo every connection until SIGINT or SIGTERM, then print one line of totals."""
    with Loop() as loop, listen(host, port) as listener:
        server = EchoServer(listener, loop)
        loop.on_exception = log_exception
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, loop.stop)
        # getnameinfo knows the scope of a link-local address; getsockname doesn't.
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        where = shown(*socket.getnameinfo(listener.getsockname(), numeric))
        print("listening on", where, flush=True)
        while True:
            try:
                loop.run()
                break
            except OSError as error:
                # Waiting failed, perhaps for lack of memory. Nothing has changed, so wait again.
                print(f"danga_raw: {error}", file=sys.stderr)
                time.sleep(0.2)
        for connection in list(loop.descriptor_map.values()):
            connection.close("shutdown")
        print(f"{server.connections} connections, {server.bytes} bytes echoed", flush=True)


# --- info -----------------------------------------------------------------------------------------


def info(platform: str | None, syscalls: bool, seccomp: bool, as_json: bool) -> None:
    """Print the backend and the ABI, or the layouts of a platform, or the possible system calls, or
    a seccomp profile that allows them."""
    if seccomp:
        show(_seccomp.profile(), True)
    elif syscalls and as_json:
        show(surface(), True)
    elif syscalls:
        print(*table(surface()), sep="\n", flush=True)
    else:
        show(information() if platform is None else layouts(platform), as_json)


def surface() -> Facts:
    """The system calls that the package can make here, for `info --syscalls`."""
    entries = _kernel.surface(_kernel.HERE, backends())
    return {
        "libc": str(_kernel.HERE),
        "machine": _kernel.HERE.machine,
        "known": _kernel.known(_kernel.HERE),
        "syscalls": [cast("Facts", entry._asdict()) for entry in entries],
    }


def table(facts: Facts) -> Iterator[str]:
    """The same as text."""
    where = f"{facts['libc']} on {facts['machine']}"
    if facts["known"]:
        yield f"# the system calls of {where}"
    else:
        yield f"# {where}: its system calls are unknown; these are the C functions' names"
    yield f"{'C function':16}{'system call':16}{'arguments':>9}  when"
    for row in cast("list[Mapping[str, Fact]]", facts["syscalls"]):
        yield f"{row['function']:16}{row['call']:16}{row['arguments']:>9}  {row['when']}"


def layout(struct: type[ctypes.Structure]) -> Facts:
    """The size of a struct, and the offset and size of each field, in bytes."""
    fields: dict[str, Fact] = {}
    for name, *_ in struct._fields_:
        field = getattr(struct, name)
        fields[name] = {"offset": field.offset, "size": field.size}
    return {"size": ctypes.sizeof(struct), "fields": fields}


def _constants(module: object, *prefixes: str) -> Mapping[str, int]:
    return {
        name: value
        for name, value in vars(module).items()
        if name.startswith(prefixes) and isinstance(value, int)
    }


def layouts(system: str) -> Facts:
    """The structs and constants of a platform, "linux" or one with kqueue, in the data model of the
    running program. Raises `ValueError` for an unknown one."""
    cork = _sockopt.CORK_OPTIONS.get(system)
    options: dict[str, Fact] = {"IPPROTO_TCP": _sockopt.IPPROTO_TCP}
    if cork is not None:
        name, number = cork
        options[name] = number
    poll: dict[str, Fact] = {"struct pollfd": layout(_poll.pollfd), **_constants(_poll, "POLL")}
    if system == "linux":
        struct = layout(_epoll.epoll_event)
        constants = _constants(_epoll, "EPOLL")
        return {"epoll": {"struct epoll_event": struct, **constants}, "poll": poll, "tcp": options}
    known = {"linux", *_kqueue.ABIS}
    if system not in known:
        names = ", ".join(sorted(known))
        raise ValueError(f"no layouts for the platform {system!r}; known are {names}")
    abi = _kqueue.abi(system)
    kqueue: dict[str, Fact] = {
        "struct kevent": layout(_kqueue.kevent_type(system)),
        "EVFILT_READ": abi.evfilt_read,
        "EVFILT_WRITE": abi.evfilt_write,
        **_constants(_kqueue, "EV_"),
        "nchanges and nevents": "size_t" if abi.counts_are_size_t else "int",
    }
    return {"kqueue": kqueue, "poll": poll, "tcp": options}


def information() -> Facts:
    """Version, backend, libc, kernel, Python, and the ABI in use on each backend, for `info`."""
    uname = os.uname()
    loop = Loop()
    in_force: dict[str, Fact] = {}
    if "DANGA_RAW_LIBKQUEUE" in os.environ:
        in_force["kqueue"] = layouts("libkqueue")["kqueue"]
    if system := "linux" if "epoll" in backends() else _kqueue.system_platform():
        in_force |= layouts(system)
    return {
        "version": __version__,
        "backend": loop.backend,
        "backends": backends(),
        "libc": str(_kernel.HERE),
        "kernel": f"{uname.sysname} {uname.release} {uname.machine}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "pointer": f"{8 * ctypes.sizeof(ctypes.c_void_p)} bits, {sys.byteorder}-endian",
        "abi": in_force,
    }


def show(facts: Facts, as_json: bool) -> None:
    """Print `facts` as JSON, or one on each line."""
    text = json.dumps(facts, indent=2) if as_json else "\n".join(_lines(facts))
    print(text, flush=True)


def _lines(facts: Facts) -> Iterator[str]:
    for name, value in facts.items():
        if isinstance(value, list):
            yield f"{name}: {', '.join(map(str, value))}"
        elif not isinstance(value, Mapping):
            yield f"{name}: {value}"
        elif any(isinstance(part, Mapping) for part in value.values()):
            yield f"{name}:"
            yield from (f"  {line}" for line in _lines(value))
        else:
            yield f"{name}: " + ", ".join(f"{key} {part}" for key, part in value.items())


if __name__ == "__main__":
    sys.exit(main())
