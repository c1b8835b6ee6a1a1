"""The steps of a conversation, one line each."""

from __future__ import annotations

import re
import socket
import struct
import time
from dataclasses import replace
from typing import Literal

from tests.perlbal.backends import Answer
from tests.perlbal.conversation import Client, LiveConversation, Lost, Step, write
from tests.perlbal.servers import PATIENCE, ended

# --- bytes ----------------------------------------------------------------------------------------


def request(method: str, path: str, *fields: str, version: str = "1.1", body: bytes = b"") -> bytes:
    """A request; for HTTP/1.1 a missing Host field is added in front."""
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
    """A backend's answer, verbatim: it has a length only if the fields do."""
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
    """Any bytes in place of an answer."""
    return Answer(data)


def closing(answer: Answer) -> Answer:
    return replace(answer, then="close")


def resetting(answer: Answer) -> Answer:
    return replace(answer, then="reset")


def early(answer: Answer) -> Answer:
    """Sent before the body of the request has arrived."""
    return replace(answer, early=True)


def held(gate: str, answer: Answer) -> Answer:
    """Sent when the gate is opened."""
    return replace(answer, gate=gate)


def in_two(gate: str, answer: Answer, at: int) -> Answer:
    """The first bytes are sent at once, the others when the gate is opened."""
    return replace(answer, gate=gate, data=answer.data[:at], rest=answer.data[at:])


# --- clients --------------------------------------------------------------------------------------


def connect(by: str = "client", to: str = "", source: str = "127.0.0.1", buffer: int = 0) -> Step:
    """Open a connection under this name. The default service doesn't need it."""

    def step(talk: LiveConversation) -> None:
        if by in talk.clients:
            talk.clients[by].end()
        talk.clients[by] = Client(talk, by, to, source, buffer)

    return step


def send(*pieces: bytes, by: str = "client") -> Step:
    """Send each piece by itself, after the server has received the one before."""

    def step(talk: LiveConversation) -> None:
        for number, piece in enumerate(pieces):
            if number:
                talk.barrier()
            talk.client(by).send(piece)

    return step


def hear(by: str = "client", times: int = 1) -> Step:
    def step(talk: LiveConversation) -> None:
        for _ in range(times):
            talk.client(by).hear()

    return step


def hear_or_wait(seconds: float = 0.3, by: str = "client") -> Step:
    """Read one answer if it comes in time; otherwise note that there was none."""

    def step(talk: LiveConversation) -> None:
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

    def step(talk: LiveConversation) -> None:
        if to and by not in talk.clients:
            connect(by, to)(talk)
        send(*pieces, by=by)(talk)
        talk.client(by).hear()

    return step


def silence(by: str = "client") -> Step:
    """Note whether anything has arrived, once the server has handled everything before."""

    def step(talk: LiveConversation) -> None:
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
    def step(talk: LiveConversation) -> None:
        client = talk.clients.pop(by)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()

    return step


def shut(by: str = "client") -> Step:
    """Half-close: send nothing more."""
    return lambda talk: talk.client(by).socket.shutdown(socket.SHUT_WR)


# --- backends -------------------------------------------------------------------------------------


def serve(*answers: Answer, at: str = "a") -> Step:
    """Set the answers to the next requests; later requests are answered with OK.

    In an answer, @name@ stands for an address, and @folder@ for the folder."""

    def step(talk: LiveConversation) -> None:
        for answer in answers:
            data = answer.data.replace(b"@folder@", str(talk.deployment.folder).encode())
            for name, port in talk.server.ports.items():
                data = data.replace(f"@{name}@".encode(), f"127.0.0.1:{port}".encode())
            talk.backend(at).script.answers.append(replace(answer, data=data))

    return step


def verify(*answers: Answer, at: str = "a") -> Step:
    """Set the answers to the next OPTIONS requests."""
    return lambda talk: talk.backend(at).script.verifications.extend(answers)


def opens(gate: str, at: str = "a") -> Step:
    return lambda talk: talk.backend(at).gate(gate).set()


def asked(times: int = 1, at: str = "a") -> Step:
    """Wait until the backend has received this many requests in all."""

    def step(talk: LiveConversation) -> None:
        if not talk.backend(at).wait(lambda script: len(script.got) >= times):
            talk.note(f"backend {at}", f"<not asked {times} times>")

    return step


def not_asked(times: int, at: str = "a") -> Step:
    """Note how many requests the backend has received, once the server has handled everything
    before. `times` is the expected number, for the reader."""

    def step(talk: LiveConversation) -> None:
        talk.barrier()
        talk.note(f"backend {at}, so far", str(len(talk.backend(at).script.got)))

    return step


def connections(count: int, at: str = "a") -> Step:
    """Wait until the backend has had this many connections in all."""

    def step(talk: LiveConversation) -> None:
        talk.backend(at).wait(lambda script: len(script.connections) >= count)
        talk.barrier()
        talk.note(f"backend {at}, connections", str(len(talk.backend(at).script.connections)))

    return step


def dropped(count: int = 1, at: str = "a") -> Step:
    """Wait until this many of the backend's connections have ended."""

    def step(talk: LiveConversation) -> None:
        if not talk.backend(at).wait(lambda script: script.ended >= count):
            talk.note(f"backend {at}, ended", str(talk.backend(at).script.ended))

    return step


def begun(times: int = 1, at: str = "a") -> Step:
    """Wait until the backend has sent the first parts of this many answers, and the server has
    received them."""

    def step(talk: LiveConversation) -> None:
        talk.backend(at).wait(lambda script: script.begun >= times)
        talk.barrier()

    return step


def answered(times: int, at: str = "a") -> Step:
    """Wait until the backend has sent this many answers."""

    def step(talk: LiveConversation) -> None:
        talk.backend(at).wait(lambda script: script.given >= times)
        talk.barrier()

    return step


# --- the rest -------------------------------------------------------------------------------------


def manage(*lines: str, order: Literal["kept", "any"] = "kept", blur: str = "") -> Step:
    """Send lines to the management port. `order` is "any" if the original's order is that of a
    hash. `blur` is a regular expression for what differs each time."""

    def step(talk: LiveConversation) -> None:
        for line in lines:
            line = line.format(
                folder=talk.deployment.folder,
                **{name: f"127.0.0.1:{port}" for name, port in talk.server.ports.items()},
            )
            answer = talk.management().ask(line)
            # Before the lines are sorted, because ports differ.
            answer = talk.deployment.plain(answer)
            if order == "any":
                answer = "\r\n".join(sorted(answer.split("\r\n")))
            if blur:
                answer = re.sub(blur, "~", answer)
            talk.note("manager", f"{line}\n{answer}")

    return step


def sockets(talk: LiveConversation) -> None:
    """Note the list of connections, without what differs each time."""
    answer = talk.deployment.plain(talk.management().ask("SOCKS"))
    each_time = r"^ *\d+ +\d+s |\([RW]*\)|(?<=localport=)\d+|(?<=client=)\d+|(?<=\d:)\d+"
    rows = (re.sub(each_time, "~", line) for line in answer.split("\r\n"))
    talk.note("manager", "SOCKS\n" + "\r\n".join(sorted(rows)))


def quietly(*lines: str) -> Step:
    """Send lines to the management port, and leave their answers out of the transcript."""

    def step(talk: LiveConversation) -> None:
        for line in lines:
            talk.management().ask(line.format(folder=talk.deployment.folder))

    return step


def shows(name: str) -> Step:
    """Note the content of a file in the folder."""

    def step(talk: LiveConversation) -> None:
        file = talk.deployment.folder / name
        if file.is_dir():
            text = f"a folder: {sorted(each.name for each in file.iterdir())}"
        else:
            text = repr(file.read_bytes()[:2000]) if file.exists() else "is not there"
        talk.note("files", f"{name} {text}")

    return step


def file(name: str, content: bytes) -> Step:
    return lambda talk: write(talk.deployment.folder / name, content)


def pause(seconds: float) -> Step:
    """Wait, where only time can bring about the next state."""
    return lambda talk: time.sleep(seconds)


def settled() -> Step:
    return lambda talk: talk.barrier()


def exits(within: float = PATIENCE) -> Step:
    """Wait until the server's process ends by itself, and note its status."""

    def step(talk: LiveConversation) -> None:
        if ended(talk.server.process, within):
            talk.note("server", f"exit {talk.server.process.returncode}")
        else:
            talk.note("server", "<still there>")

    return step


def signalled(number: int) -> Step:
    return lambda talk: talk.server.process.send_signal(number)
