"""A short soak; the long one is a command: python -m tests.perlbal.soak."""

from __future__ import annotations

import io

import pytest

from benchmarks.progress import Progress
from tests.perlbal import soak


def quiet() -> Progress:
    return Progress(io.StringIO())


def test_backends_come_and_go_and_every_answer_that_is_given_is_got() -> None:
    assert soak.soak(3000, 3, quiet()) == []


def test_an_answer_too_many_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    end = soak.Backend.end
    monkeypatch.setattr(soak.Backend, "end", lambda self: end(self) + 1)
    wrong = soak.soak(300, 1, quiet())
    assert len(wrong) == 1 and "answers given" in wrong[0]


def test_what_has_grown_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "MEMORY_TOLERANCE", -(1 << 40))
    (wrong,) = soak.soak(300, 2, quiet())
    assert "bytes more memory" in wrong
