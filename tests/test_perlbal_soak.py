"""A short soak; the long one is a command: python -m tests.perlbal.soak."""

from __future__ import annotations

import io

import pytest

from benchmarks.progress import Progress
from tests.perlbal import soak


def quiet() -> Progress:
    return Progress(io.StringIO())


def test_every_answer_given_is_received_while_backends_come_and_go() -> None:
    assert soak.soak(3000, 3, quiet()) == []


def test_surplus_answer_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    end = soak.Backend.end
    monkeypatch.setattr(soak.Backend, "end", lambda self: end(self) + 1)
    wrong = soak.soak(300, 1, quiet())
    assert len(wrong) == 1 and "answers given" in wrong[0]


def test_memory_growth_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "MEMORY_TOLERANCE", -(1 << 40))
    (wrong,) = soak.soak(300, 2, quiet())
    assert "bytes more memory" in wrong
