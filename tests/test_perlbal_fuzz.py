"""Bad input to our Perlbal, from all four sides, and proof that these tests can fail."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.perlbal.backends import BackendHTTP
from examples.perlbal.management import ClientManage
from tests.needs import REQUIRED
from tests.perlbal import fuzz
from tests.perlbal.fuzz import KINDS, Fuzz, fuzzing
from tests.perlbal.simulated import Broken, World
from tests.perlbal.steps import get
from tests.simkernel.world import BACKENDS, Backend

WORLDS = 8
HERE = BACKENDS if sys.maxsize > 2**32 else BACKENDS[:2]
"""The simulated kqueue has the structure layouts of 64-bit machines."""
CASES = {"clients": 300, "backends": 200, "managers": 300, "files": 15}
PART = 1 if REQUIRED else 2


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzz]:
    with fuzzing(20, tmp_path_factory.mktemp("fuzz") / "f") as opened:
        yield opened


@pytest.mark.parametrize("kind", KINDS)
def test_no_input_ends_the_server_or_harms_another_client(target: Fuzz, kind: str) -> None:
    target.run(kind, range(CASES[kind] // PART))
    assert target.settled() == []


def test_case_is_the_same_each_time() -> None:
    for number in range(50):
        one, other = (random.Random(f"1 clients {number}") for _ in range(2))
        data = fuzz.input_of(fuzz.REQUESTS, one)
        assert data == fuzz.input_of(fuzz.REQUESTS, other)
        assert b"".join(fuzz.pieces(data, one)) == data


def test_witness_reports_when_it_is_harmed(target: Fuzz) -> None:
    target.testify()
    target.management.ask(
        "POOL apart REMOVE 127.0.0.1:%d" % target.deployment.backends["witness"].port
    )
    target.witness.sendall(get("/") + get("/"))
    with pytest.raises(AssertionError):
        target.testify()


def test_end_of_the_server_is_reported(tmp_path: Path) -> None:
    with fuzzing(1, tmp_path / "f") as opened:
        opened.server.process.kill()
        opened.server.process.wait()
        with pytest.raises((AssertionError, OSError)):
            opened.run("clients", range(1))


# --- on the simulated kernel ----------------------------------------------------------------------


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("seed", range(WORLDS))
def test_no_kernel_and_no_input_ends_the_server_or_harms_another_client(
    seed: int, backend: Backend
) -> None:
    World(seed, backend).run()


def complaint_about(seed: int) -> str:
    """The faults found in a world."""
    try:
        World(seed, "epoll").run()
    except Broken as error:
        return str(error)
    return "nothing"


def raise_in_a_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    def event_read(self: ClientManage) -> None:
        raise KeyError("a slip")

    monkeypatch.setattr(ClientManage, "event_read", event_read)


def never_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BackendHTTP, "event_connect", lambda self, error: None)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (raise_in_a_handler, "KeyError: 'a slip'"),
        (never_connect, "hung up on after 0 answers"),
    ],
)
def test_fault_of_the_server_is_detected(
    spoil: Callable[[pytest.MonkeyPatch], None], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chance decides which world first shows the fault, and how.
    spoil(monkeypatch)
    assert any(complaint in complaint_about(seed) for seed in range(WORLDS))
