"""Compare the committed table of ABIs with the package, and the package with this machine."""

import ctypes
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from danga_raw import _epoll, _kqueue, _poll, _structs
from tests.abi import model, probe, table
from tests.abi.probe import Answer
from tests.abi.targets import TARGETS
from tests.needs import need

PAGE = Path(__file__).parents[1] / "docs" / "abi.md"
ANSWERS = table.parse(PAGE.read_text())
BY_TRIPLE = {target.triple: target for target in TARGETS}
HERE = sys.platform.rstrip("0123456789")


@pytest.mark.parametrize("triple", ANSWERS)
def test_declarations_of_the_package_match_the_headers(triple: str) -> None:
    assert model.differences(BY_TRIPLE[triple], ANSWERS[triple]) == []


def test_table_covers_every_platform_the_package_binds() -> None:
    assert len(ANSWERS) >= 35
    assert {BY_TRIPLE[triple].platform for triple in ANSWERS} == {
        "linux",
        "darwin",
        "freebsd",
        "netbsd",
        "openbsd",
    }


def test_table_lists_each_target_or_says_why_not() -> None:
    page = PAGE.read_text()
    assert [target.triple for target in TARGETS if target.triple not in page] == []


@pytest.mark.parametrize("triple", ["x86_64-linux-gnu", "x86-freebsd-none", "arm-openbsd-eabi"])
def test_every_deviation_from_the_headers_is_reported(triple: str) -> None:
    target, answer = BY_TRIPLE[triple], ANSWERS[triple]
    declared = model.declared(target, answer.facts)
    # The facts about C types are the basis of the layouts, and are not compared themselves.
    compared = [name for name in declared if name in answer.facts and name != "sizeof(socklen_t)"]
    assert len(compared) > 30
    for name in compared:
        other = Answer({**answer.facts, name: answer.facts[name] + 1}, answer.symbol)
        (line,) = model.differences(target, other)
        assert name in line
    (line,) = model.differences(target, Answer(answer.facts, "kevent49")) or [""]
    assert ("kevent49" in line) == (target.platform != "linux")


def test_number_missing_from_the_headers_is_reported() -> None:
    target, answer = BY_TRIPLE["x86_64-freebsd-none"], ANSWERS["x86_64-freebsd-none"]
    facts = {name: value for name, value in answer.facts.items() if name != "TCP_NOPUSH"}
    (line,) = model.differences(target, Answer(facts, answer.symbol))
    assert "TCP_NOPUSH is absent in the headers" in line


@pytest.mark.parametrize(
    "pack, places, size",
    [(0, [0, 8, 16, 24], 56), (1, [0, 1, 9, 11], 43), (2, [0, 2, 10, 12], 44)],
)
def test_layouts_are_computed_as_by_a_compiler(pack: int, places: list[int], size: int) -> None:
    types = {"sizeof(char)": 1, "alignof(char)": 1, "sizeof(uint64_t)": 8, "alignof(uint64_t)": 8}
    types |= {"sizeof(short)": 2, "alignof(short)": 2}
    fields = (("a", "char"), ("b", "uint64_t"), ("c", "short"), ("d", "uint64_t[4]"))
    facts = model.layout("s", fields, pack, types)
    assert [facts[f"offsetof(s.{name})"] for name in "abcd"] == places
    assert facts["sizeof(s)"] == size


# --- this machine --------------------------------------------------------------------------------


def data_model() -> dict[str, int]:
    """Sizes and alignments of the C types here, which ctypes has from the compiler of Python."""
    facts: dict[str, int] = {"big-endian": int(sys.byteorder == "big")}
    for name in table.TYPES:
        if name in _structs.C_TYPES:
            alone = _structs.structure("alone", (("v", name),))
            facts[f"sizeof({name})"] = ctypes.sizeof(alone)
            facts[f"alignof({name})"] = ctypes.alignment(alone)
    return facts


def layout_here(
    name: str, struct: type[ctypes.Structure], fields: _structs.Fields
) -> dict[str, int]:
    facts = {f"sizeof({name})": ctypes.sizeof(struct)}
    for field, _ in fields:
        facts[f"offsetof({name}.{field})"] = getattr(struct, field).offset
        facts[f"sizeof({name}.{field})"] = getattr(struct, field).size
    return facts


def targets_like_this() -> list[str]:
    """The targets with this platform and data model: those of this machine, if there are any.

    For a 32-bit Python, uname may name the kernel's 64-bit machine, whose data model is another.
    """
    mine = data_model().items()
    ours = [t for t in ANSWERS if BY_TRIPLE[t].platform == HERE]
    alike = [t for t in ours if mine <= ANSWERS[t].facts.items()]
    same = [t for t in alike if BY_TRIPLE[t].machine == os.uname().machine]
    return same or alike


def test_this_machine_is_in_the_table() -> None:
    assert targets_like_this()


def test_pollfd_is_laid_out_as_the_headers_say() -> None:
    mine = layout_here("pollfd", _poll.pollfd, _poll.POLLFD).items()
    assert targets_like_this()
    for triple in targets_like_this():
        assert mine <= ANSWERS[triple].facts.items()
        assert ANSWERS[triple].facts["sizeof(nfds_t)"] == ctypes.sizeof(_poll.nfds_t)


@pytest.mark.skipif(HERE != "linux", reason="epoll is Linux's")
def test_epoll_event_is_laid_out_as_the_headers_say() -> None:
    mine = layout_here("epoll_event", _epoll.epoll_event, _epoll.EPOLL_EVENT).items()
    assert any(mine <= ANSWERS[triple].facts.items() for triple in targets_like_this())


@pytest.mark.skipif(HERE != "linux", reason="epoll is Linux's")
def test_kernel_fills_epoll_events_where_the_package_reads_them() -> None:
    # A wrong stride or offset would show from the second event on.
    pipes = [os.pipe() for _ in range(5)]
    poller = _epoll.Epoll()
    poller.open()
    try:
        for reader, writer in pipes:
            os.write(writer, b"x")
            poller.register(reader, _epoll.EPOLLIN)
        ready = sorted(poller.wait(0))
        assert ready == sorted((reader, _epoll.EPOLLIN) for reader, _ in pipes)
    finally:
        poller.close()
        for reader, writer in pipes:
            os.close(reader)
            os.close(writer)


def test_installed_headers_agree_with_the_table(tmp_path: Path) -> None:
    need("gcc")
    code, image = tmp_path / "probe.c", tmp_path / "probe.o"
    code.write_text(probe.source(table.TYPES))
    command = ["gcc", "-w", "-std=gnu11", "-c", str(code), "-o", str(image)]
    subprocess.run(command, check=True)
    mine = probe.read(image.read_bytes(), table.TYPES).facts.items()
    assert any(ANSWERS[triple].facts.items() <= mine for triple in targets_like_this())


def test_object_file_without_the_whole_probe_is_rejected() -> None:
    _, asked = probe.questions(["int"])
    whole = probe.START + 9 * len(asked) * b"\0" + probe.END
    assert probe.read(b"ELF" + whole + b"\0kevent\0", ["int"]) == Answer({}, "kevent")
    for image in (b"", whole[:-1], whole[1:], whole + whole, whole.replace(b"\0", b"", 1)):
        with pytest.raises(ValueError, match="not in the object file"):
            probe.read(image, ["int"])
    with pytest.raises(ValueError, match="which of"):
        probe.read(whole + b"\0kevent\0__kevent50\0", ["int"])


def constants(module: Any, prefix: str) -> dict[str, int]:
    return {n: v for n, v in vars(module).items() if n.startswith(prefix) and isinstance(v, int)}


@pytest.mark.parametrize(
    "module, prefix",
    [(_epoll, "EPOLL"), (_poll, "POLL"), (_kqueue, "EV_"), (_kqueue, "EVFILT_")],
)
def test_constants_match_those_that_python_was_compiled_with(module: Any, prefix: str) -> None:
    python = {name.replace("KQ_", ""): v for name, v in constants(select, "").items()}
    mine = constants(module, prefix)
    known = mine.keys() & python.keys()
    assert {name: mine[name] for name in known} == {name: python[name] for name in known}


def test_epoll_and_poll_constants_were_available_for_comparison() -> None:
    assert len(constants(_poll, "POLL").keys() & constants(select, "").keys()) >= 5
    if HERE == "linux":
        assert len(constants(_epoll, "EPOLL").keys() & constants(select, "").keys()) >= 5


@pytest.mark.parametrize("platform", sorted(_kqueue.ABIS))
def test_kevent_of_every_platform_is_laid_out_as_its_fields_say(platform: str) -> None:
    fields = _kqueue.abi(platform).fields
    types = data_model()
    expected = model.layout("kevent", fields, 0, types)
    for name, value in layout_here("kevent", _kqueue.kevent_type(platform), fields).items():
        assert expected[name] == value
