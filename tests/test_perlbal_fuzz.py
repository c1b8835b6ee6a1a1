"""Bad input to our Perlbal, from all four sides; and proof that what is asked of it can fail."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.perlbal import fuzz
from tests.perlbal.fuzz import KINDS, Fuzz, fuzzing
from tests.perlbal.steps import get

CASES = {"clients": 300, "backends": 200, "managers": 300, "files": 15}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzz]:
    with fuzzing(20, tmp_path_factory.mktemp("fuzz") / "f") as opened:
        yield opened


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_is_sent_ends_the_server_or_harms_another(target: Fuzz, kind: str) -> None:
    target.run(kind, range(CASES[kind]))
    assert target.settled() == []


def test_a_case_is_the_same_each_time() -> None:
    for number in range(50):
        one, other = (random.Random(f"1 clients {number}") for _ in range(2))
        data = fuzz.input_of(fuzz.REQUESTS, one)
        assert data == fuzz.input_of(fuzz.REQUESTS, other)
        assert b"".join(fuzz.pieces(data, one)) == data


def test_the_witness_tells_when_he_is_harmed(target: Fuzz) -> None:
    target.testify()
    target.management.ask("POOL apart REMOVE 127.0.0.1:%d" % target.house.backends["witness"].port)
    target.witness.sendall(get("/") + get("/"))
    with pytest.raises(AssertionError):
        target.testify()


def test_an_end_is_told(tmp_path: Path) -> None:
    with fuzzing(1, tmp_path / "f") as opened:
        opened.server.process.kill()
        opened.server.process.wait()
        with pytest.raises((AssertionError, OSError)):
            opened.run("clients", range(1))
