"""The steps of a conversation, one line each."""

from __future__ import annotations

import re
import socket
import struct
import time
from dataclasses import replace
from typing import Literal

from tests.perlbal.backends import Answer
from tests.perlbal.conversation import Client, Lost, Step, Talk, write
from tests.perlbal.servers import PATIENCE, ended

# --- bytes ----------------------------------------------------------------------------------------


def request(method: str, path: str, *fields: str, version: str = "1.1", body: bytes = b"") -> bytes:
    """A request; Host is put in front where 1.1 asks for one and none is given."""
    lines = [f"{method} {path} HTTP/{version}"]
    if version == "1.1" and not any(each.lower().startswith("host:") for each in fields):
        lines.append("Host: here")
    return "\r\n".join([*lines, *fields, "", ""]).encode("latin-1") + body


def get(path: str = "/", *fields: str, version: str = "1.1") -> bytes:
    return request("GET", path, *fields, version=version)


def post(path: str, body: bytes, *fields: str, version: str = "1.1") -> bytes:
    length = f"Content-Length: {len(body)}"
    return request("POST", path, *fields, length, version=version, body=body)


def put(path: str, body: bytes, *fields: str) -> bytes:
    return request("PUT", path, *fields, f"Content-Length: {len(body)}", body=body)


def reply(status: str, *fields: str, body: bytes = b"", version: str = "1.1") -> Answer:
    """A backend's answer, verbatim: no length unless it is among the fields."""
    return Answer(
        "\r\n".join([f"HTTP/{version} {status}", *fields, "", ""]).encode("latin-1") + body
    )


def good(
    body: bytes | str = b"ok", *fields: str, status: str = "200 OK", version: str = "1.1"
) -> Answer:
    """A backend's answer with its length."""
    body = body.encode() if isinstance(body, str) else body
    return reply(status, *fields, f"Content-Length: {len(body)}", body=body, version=version)


def raw(data: bytes) -> Answer:
    """Bytes that need not be an answer at all."""
    return Answer(data)


def closing(answer: Answer) -> Answer:
    return replace(answer, then="close")


def resetting(answer: Answer) -> Answer:
    return replace(answer, then="reset")


def early(answer: Answer) -> Answer:
    """Given before the body of the request is there."""
    return replace(answer, early=True)


def held(gate: str, answer: Answer) -> Answer:
    """Given when the gate is opened."""
    return replace(answer, gate=gate)


def in_two(gate: str, answer: Answer, at: int) -> Answer:
    """The first bytes at once, the others when the gate is opened."""
    return replace(answer, gate=gate, data=answer.data[:at], rest=answer.data[at:])


# --- clients --------------------------------------------------------------------------------------


def connect(by: str = "client", to: str = "", source: str = "127.0.0.1", buffer: int = 0) -> Step:
    """A new connection under this name; it is not needed for the first service's."""

    def step(talk: Talk) -> None:
        if by in talk.clients:
            talk.clients[by].end()
        talk.clients[by] = Client(talk, by, to, source, buffer)

    return step


def send(*pieces: bytes, by: str = "client") -> Step:
    """Send, each piece by itself: the server has had the one before when the next comes."""

    def step(talk: Talk) -> None:
        for number, piece in enumerate(pieces):
            if number:
                talk.barrier()
            talk.client(by).send(piece)

    return step


def hear(by: str = "client", times: int = 1) -> Step:
    def step(talk: Talk) -> None:
        for _ in range(times):
            talk.client(by).hear()

    return step


def hear_or_wait(seconds: float = 0.3, by: str = "client") -> Step:
    """One answer if it comes at once; else it is noted that there was none."""

    def step(talk: Talk) -> None:
        client = talk.client(by)
        client.socket.settimeout(seconds)
        try:
            client.hear()
        except Lost:
            client.note(f"<nothing for {seconds} s>")
        client.socket.settimeout(PATIENCE)

    return step


def ask(*pieces: bytes, by: str = "client", to: str = "") -> Step:
    """Send, and read one answer."""

    def step(talk: Talk) -> None:
        if to and by not in talk.clients:
            connect(by, to)(talk)
        send(*pieces, by=by)(talk)
        talk.client(by).hear()

    return step


def silence(by: str = "client") -> Step:
    """Nothing has come, once the server has dealt with all before."""

    def step(talk: Talk) -> None:
        talk.barrier()
        client = talk.client(by)
        client.socket.setblocking(False)
        try:
            data = client.socket.recv(1 << 16)
            client.note(f"<not silent> {data.decode('latin-1')}")
        except BlockingIOError:
            client.note("<silent>")
        except ConnectionResetError:
            client.note("<not silent> ")
        client.socket.settimeout(PATIENCE)

    return step


def leave(by: str = "client") -> Step:
    """Close, without reading what may have arrived."""
    return lambda talk: talk.clients.pop(by).socket.close()


def reset(by: str = "client") -> Step:
    def step(talk: Talk) -> None:
        client = talk.clients.pop(by)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()

    return step


def shut(by: str = "client") -> Step:
    """Nothing more will be sent."""
    return lambda talk: talk.client(by).socket.shutdown(socket.SHUT_WR)


# --- backends -------------------------------------------------------------------------------------


def serve(*answers: Answer, at: str = "a") -> Step:
    """The answers to the next requests; what comes behind them is answered with OK.

    In them @name@ is an address, and @folder@ the folder."""

    def step(talk: Talk) -> None:
        for answer in answers:
            data = answer.data.replace(b"@folder@", str(talk.house.folder).encode())
            for name, port in talk.server.ports.items():
                data = data.replace(f"@{name}@".encode(), f"127.0.0.1:{port}".encode())
            talk.backend(at).script.answers.append(replace(answer, data=data))

    return step


def verify(*answers: Answer, at: str = "a") -> Step:
    """The answers to the next OPTIONS."""
    return lambda talk: talk.backend(at).script.verifications.extend(answers)


def opens(gate: str, at: str = "a") -> Step:
    return lambda talk: talk.backend(at).gate(gate).set()


def asked(times: int = 1, at: str = "a") -> Step:
    """The backend has received this many requests in all."""

    def step(talk: Talk) -> None:
        if not talk.backend(at).wait(lambda script: len(script.got) >= times):
            talk.note(f"backend {at}", f"<not asked {times} times>")

    return step


def not_asked(times: int, at: str = "a") -> Step:
    """The backend has not been asked more often, once the server has dealt with all before."""

    def step(talk: Talk) -> None:
        talk.barrier()
        talk.note(f"backend {at}, so far", str(len(talk.backend(at).script.got)))

    return step


def connections(count: int, at: str = "a") -> Step:
    """So many connections have been made to the backend in all."""

    def step(talk: Talk) -> None:
        talk.backend(at).wait(lambda script: len(script.connections) >= count)
        talk.barrier()
        talk.note(f"backend {at}, connections", str(len(talk.backend(at).script.connections)))

    return step


def dropped(count: int = 1, at: str = "a") -> Step:
    """So many of the backend's connections have ended."""

    def step(talk: Talk) -> None:
        if not talk.backend(at).wait(lambda script: script.ended >= count):
            talk.note(f"backend {at}, ended", str(talk.backend(at).script.ended))

    return step


def begun(times: int = 1, at: str = "a") -> Step:
    """The backend has sent the first parts of this many answers, and the server has them."""

    def step(talk: Talk) -> None:
        talk.backend(at).wait(lambda script: script.begun >= times)
        talk.barrier()

    return step


def answered(times: int, at: str = "a") -> Step:
    """The backend has sent this many answers, and stays."""

    def step(talk: Talk) -> None:
        talk.backend(at).wait(lambda script: script.given >= times)
        talk.barrier()

    return step


# --- the rest -------------------------------------------------------------------------------------


def manage(*lines: str, order: Literal["kept", "any"] = "kept", blur: str = "") -> Step:
    """Lines to the management port. `order`: where the original's is a hash's. `blur`: what is
    different each time, as a regular expression."""

    def step(talk: Talk) -> None:
        for line in lines:
            line = line.format(
                folder=talk.house.folder,
                **{name: f"127.0.0.1:{port}" for name, port in talk.server.ports.items()},
            )
            answer = talk.management().ask(line)
            # Before it is compared in any order, since ports differ.
            answer = talk.house.plain(answer)
            if order == "any":
                answer = "\r\n".join(sorted(answer.split("\r\n")))
            if blur:
                answer = re.sub(blur, "~", answer)
            talk.note("manager", f"{line}\n{answer}")

    return step


def sockets(talk: Talk) -> None:
    """The list of connections, without what is different each time."""
    answer = talk.house.plain(talk.management().ask("SOCKS"))
    each_time = r"^ *\d+ +\d+s |\([RW]*\)|(?<=localport=)\d+|(?<=client=)\d+|(?<=\d:)\d+"
    rows = (re.sub(each_time, "~", line) for line in answer.split("\r\n"))
    talk.note("manager", "SOCKS\n" + "\r\n".join(sorted(rows)))


def quietly(*lines: str) -> Step:
    """Lines to the management port whose answers are not what this is about."""

    def step(talk: Talk) -> None:
        for line in lines:
            talk.management().ask(line.format(folder=talk.house.folder))

    return step


def shows(name: str) -> Step:
    """What is in a file of the folder."""

    def step(talk: Talk) -> None:
        file = talk.house.folder / name
        if file.is_dir():
            text = f"a folder: {sorted(each.name for each in file.iterdir())}"
        else:
            text = repr(file.read_bytes()[:2000]) if file.exists() else "is not there"
        talk.note("files", f"{name} {text}")

    return step


def file(name: str, content: bytes) -> Step:
    return lambda talk: write(talk.house.folder / name, content)


def pause(seconds: float) -> Step:
    """Let time pass, where nothing but time will do it."""
    return lambda talk: time.sleep(seconds)


def settled() -> Step:
    return lambda talk: talk.barrier()


def exits(within: float = PATIENCE) -> Step:
    """The server's process ends by itself; its status."""

    def step(talk: Talk) -> None:
        if ended(talk.server.process, within):
            talk.note("server", f"exit {talk.server.process.returncode}")
        else:
            talk.note("server", "<still there>")

    return step


def signalled(number: int) -> Step:
    return lambda talk: talk.server.process.send_signal(number)
