"""docs/abi.md: writes the headers' answers as tables for people, and reads them back."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from tests.abi.probe import STRUCTS, Answer
from tests.abi.targets import TARGETS

Answers = Mapping[str, Answer]
"""Target triple -> its headers' answers."""

TYPES = (
    "short",
    "unsigned short",
    "int",
    "unsigned int",
    "long",
    "unsigned long",
    "int64_t",
    "uint32_t",
    "uint64_t",
    "intptr_t",
    "uintptr_t",
    "void *",
    "size_t",
    "time_t",
    "nfds_t",
    "socklen_t",
)
"""The C types in the package's declarations. The probe asks for their size and alignment."""

ABSENT = "–"


class Column(NamedTuple):
    """A column of a table: one fact, or a few related ones."""

    heading: str
    write: Callable[[Answer], str]
    read: Callable[[str], Iterable[tuple[str, int]]]


def _number(value: int) -> str:
    return str(value) if abs(value) < 0x100 else hex(value)


def _constant(name: str) -> Column:
    def write(answer: Answer) -> str:
        return _number(answer.facts[name]) if name in answer.facts else ABSENT

    return Column(name, write, lambda cell: [(name, int(cell, 0))])


def _parts(facts: Mapping[str, int], what: str, first: str, second: str, mark: str) -> str:
    if f"{first}({what})" not in facts:
        return ABSENT
    sign = "i" if facts.get(f"signed({what})") else ""
    return f"{facts[f'{first}({what})']}{mark}{facts[f'{second}({what})']}{sign}"


def _pair(heading: str, what: str, first: str, second: str, mark: str, unsigned: bool) -> Column:
    def read(cell: str) -> Iterator[tuple[str, int]]:
        one, two = cell.rstrip("i").split(mark)
        yield f"{first}({what})", int(one)
        yield f"{second}({what})", int(two)
        if unsigned:
            yield f"signed({what})", int(cell.endswith("i"))

    return Column(heading, lambda answer: _parts(answer.facts, what, first, second, mark), read)


def _type(c_type: str) -> Column:
    integer = not c_type.endswith("*")
    return _pair(c_type, c_type, "sizeof", "alignof", "/", integer)


def _struct(name: str) -> list[Column]:
    size = _constant(f"sizeof({name})")._replace(heading="size")
    plain = {"epoll_event.data", "kevent.udata", "kevent.ext"}
    fields = [(field, f"{name}.{field}") for field in STRUCTS[name]]
    return [size] + [
        _pair(field, full, "offsetof", "sizeof", ":", full not in plain) for field, full in fields
    ]


def _choice(heading: str, question: str, *choices: str) -> Column:
    names = {choice: f"{question} {choice}" for choice in choices}

    def write(answer: Answer) -> str:
        return next((c for c, name in names.items() if answer.facts.get(name)), ABSENT)

    def read(cell: str) -> list[tuple[str, int]]:
        return [(name, int(c == cell)) for c, name in names.items()]

    return Column(heading, write, read)


BYTE_ORDER = Column(
    "byte order",
    lambda answer: "big" if answer.facts["big-endian"] else "little",
    lambda cell: [("big-endian", int(cell == "big"))],
)
SYMBOL = Column("symbol", lambda answer: answer.symbol or ABSENT, lambda cell: [])

TABLES: Mapping[str, list[Column]] = {
    "Data models": [BYTE_ORDER, *map(_type, TYPES)],
    "struct epoll_event": _struct("epoll_event"),
    "epoll constants": [
        _constant(name)
        for name in (
            "EPOLL_CLOEXEC EPOLL_CTL_ADD EPOLL_CTL_DEL EPOLL_CTL_MOD "
            "EPOLLIN EPOLLOUT EPOLLERR EPOLLHUP"
        ).split()
    ],
    "struct pollfd": [
        *_struct("pollfd"),
        _choice("nfds_t", "nfds_t is", "unsigned int", "unsigned long"),
        *map(_constant, ("POLLIN", "POLLOUT", "POLLERR", "POLLHUP", "POLLNVAL")),
    ],
    "struct kevent": [
        *_struct("kevent"),
        _choice("counts", "kevent counts are", "int", "size_t"),
        SYMBOL,
    ],
    "kqueue constants": [
        _constant(name)
        for name in (
            "EVFILT_READ EVFILT_WRITE EV_ADD EV_DELETE EV_ENABLE EV_DISABLE EV_ONESHOT EV_EOF "
            "EV_ERROR"
        ).split()
    ],
    "struct timespec": _struct("timespec"),
    "Socket and descriptor constants": [
        _constant(name)
        for name in (
            "IPPROTO_TCP TCP_CORK TCP_NOPUSH SOL_SOCKET F_SETFD FD_CLOEXEC O_CLOEXEC "
            "CLOCK_MONOTONIC"
        ).split()
    ],
}

NOTES: Mapping[str, str] = {
    "Data models": """\
Size and alignment inside a struct, in bytes; `i` marks a signed type. The layouts that the package
declares are computed from these and its own lists of fields.""",
    "struct epoll_event": "Each field as offset:size; `i` marks a signed number.",
    "struct kevent": """\
`counts` is the type of `nchanges` and `nevents`; `symbol` is the linker's name for `kevent`. NetBSD
gives the function a new symbol whenever the struct changes.""",
    "Socket and descriptor constants": """\
NetBSD's header has TCP_NOPUSH under `#ifdef notyet`, and its kernel refuses the number. Linux's
number for TCP_CORK is TCP_KEEPIDLE on NetBSD.""",
}

PREFACE = """\
# The ABI, as the platforms' own headers have it

Every layout and number below was read off the C headers of its platform: `python -m tests.abi`
compiles a probe of `sizeof`, `offsetof` and constants for each target and reads the answers from the
object files. Nothing here is typed by hand. `python -m tests.abi --check` repeats this and compares
the answers with this page and with the package's declarations; the ordinary tests compare this page
with the package, without a compiler. A dash means that a platform's headers don't define the item.

Three ABIs are missing, because zig doesn't include their headers: DragonFly's, libkqueue's, and
NetBSD's before version 10.
"""


def _headers(answer: Answer, triple: str) -> str:
    facts = answer.facts
    if "__GLIBC__" in facts:
        return f"glibc {facts['__GLIBC__']}.{facts['__GLIBC_MINOR__']}"
    if "LINUX_VERSION_CODE" in facts:
        return "musl"
    if "__FreeBSD_version" in facts:
        return f"FreeBSD {facts['__FreeBSD_version']}"
    if "__NetBSD_Version__" in facts:
        version = facts["__NetBSD_Version__"]
        return f"NetBSD {version // 10**8}.{version // 10**6 % 100}"
    if "OpenBSD" in facts:
        return f"OpenBSD {facts['OpenBSD']}"
    if "__MAC_OS_X_VERSION_MAX_ALLOWED" in facts:
        version = facts["__MAC_OS_X_VERSION_MAX_ALLOWED"]
        return f"macOS {version // 10000}.{version // 100 % 100}"
    raise ValueError(f"{triple}: which headers are these?")


def _grid(heading: str, columns: list[str], rows: Iterable[tuple[str, tuple[str, ...]]]) -> str:
    """A Markdown table with one row for each group of targets that have the same cells."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for triple, cells in rows:
        groups.setdefault(cells, []).append(triple)
    lines = [f"| {' | '.join([heading, *columns])} |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {' | '.join([', '.join(triples), *cells])} |" for cells, triples in groups.items()
    ]
    return "\n".join(lines)


def render(answers: Answers, zig: str) -> str:
    """The page."""
    found = {triple: answer for triple, answer in answers.items() if not answer.missing}
    linux = {answer.facts.get("LINUX_VERSION_CODE", 0) for answer in found.values()} - {0}
    kernel = ", ".join(f"{code >> 16}.{code >> 8 & 255}" for code in sorted(linux))
    parts = [
        PREFACE,
        f"Made with zig {zig} from PyPI (`ziglang=={zig}`), whose Linux headers are {kernel}, "
        f"for {len(found)} targets:\n",
        _grid("targets", ["headers"], ((t, (_headers(a, t),)) for t, a in found.items())),
    ]
    if lacking := {t: (a.missing,) for t, a in answers.items() if a.missing}:
        parts.append("\nThis zig can't compile for the following targets:\n")
        parts.append(_grid("targets", ["what zig says"], lacking.items()))
    for title, columns in TABLES.items():
        parts.append(f"\n## {title}\n")
        if title in NOTES:
            parts.append(NOTES[title] + "\n")
        cells = {t: tuple(column.write(a) for column in columns) for t, a in found.items()}
        told = {t: row for t, row in cells.items() if row[0] != ABSENT}
        parts.append(_grid("targets", [column.heading for column in columns], told.items()))
    return "\n".join(parts) + "\n"


def parse(page: str) -> Answers:
    """The answers in `page`, without those that only name the headers' version."""
    facts: dict[str, dict[str, int]] = {}
    symbols: dict[str, str] = {}
    sections = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n)*)", page, re.MULTILINE))
    for title, columns in TABLES.items():
        rows = [line for line in sections[title].splitlines() if line.startswith("| ")]
        heading, *rest = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
        if heading[1:] != [column.heading for column in columns]:
            raise ValueError(f"{title}: columns {heading}")
        for triples, *cells in rest:
            for triple in triples.split(", "):
                for column, cell in zip(columns, cells, strict=True):
                    if column is SYMBOL:
                        symbols[triple] = cell
                    elif cell != ABSENT:
                        facts.setdefault(triple, {}).update(column.read(cell))
    known = [target.triple for target in TARGETS]
    if strangers := facts.keys() - set(known):
        raise ValueError(f"targets that are not asked for: {sorted(strangers)}")
    return {t: Answer(facts[t], symbols.get(t, "")) for t in known if t in facts}
