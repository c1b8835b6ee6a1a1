"""The package's declarations, computed for another machine's data model."""

import ctypes
import importlib.util
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from unittest.mock import patch

from danga_raw import _epoll, _kqueue, _libc, _poll, _sockopt
from danga_raw._structs import Fields
from tests.abi.probe import Answer, Facts
from tests.abi.targets import Target

EPOLL_NAMES = "EPOLL_CTL_ADD EPOLL_CTL_DEL EPOLL_CTL_MOD EPOLLIN EPOLLOUT EPOLLERR EPOLLHUP".split()
POLL_NAMES = "POLLIN POLLOUT POLLERR POLLHUP POLLNVAL".split()
KQUEUE_NAMES = "EV_ADD EV_DELETE EV_ENABLE EV_DISABLE EV_ONESHOT EV_EOF EV_ERROR".split()


def room_on(name: str, platform: str) -> ModuleType:
    """The package's module `name`, loaded again as if this were `platform`."""
    spec = importlib.util.find_spec(f"danga_raw.{name}")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    # The door reads `sys.platform`; the modules above it read the door's copy.
    with patch.object(sys, "platform", platform), patch.object(_libc, "PLATFORM", platform):
        spec.loader.exec_module(module)
    return module


def layout(struct: str, fields: Fields, pack: int, types: Facts) -> Facts:
    """The layout that C gives a struct, by the rules common to all ABIs here and the sizes in
    `types`."""
    facts: dict[str, int] = {}
    end, widest = 0, 1
    for name, c_type in fields:
        array = re.fullmatch(r"(.*)\[(\d+)\]", c_type)
        item, count = (array[1], int(array[2])) if array else (c_type, 1)
        alignment = min(pack or 16, types[f"alignof({item})"])
        offset = -(-end // alignment) * alignment
        size = types[f"sizeof({item})"] * count
        end, widest = offset + size, max(widest, alignment)
        facts[f"offsetof({struct}.{name})"] = offset
        facts[f"sizeof({struct}.{name})"] = size
        if not array and f"signed({item})" in types:
            facts[f"signed({struct}.{name})"] = types[f"signed({item})"]
    facts[f"sizeof({struct})"] = -(-end // widest) * widest
    return facts


def _declared(target: Target, types: Facts) -> Iterator[tuple[str, int]]:
    poll = room_on("_poll", target.platform)
    yield from layout("pollfd", _poll.POLLFD, 0, types).items()
    yield from ((name, getattr(_poll, name)) for name in POLL_NAMES)
    # If int and long have the same size, ctypes has one type for both: nothing tells them apart.
    if ctypes.sizeof(ctypes.c_uint) != ctypes.sizeof(ctypes.c_ulong):
        nfds_t = {"c_uint": "unsigned int", "c_ulong": "unsigned long"}[poll.nfds_t.__name__]
        yield f"nfds_t is {nfds_t}", 1

    if target.platform in _sockopt.CORK_OPTIONS:
        option, number = _sockopt.CORK_OPTIONS[target.platform]
        yield option, number
    yield "IPPROTO_TCP", _sockopt.IPPROTO_TCP
    # The package passes setsockopt(2) its optlen as a C int.
    yield "sizeof(socklen_t)", types["sizeof(int)"]

    if target.platform == "linux":
        packed = _epoll.packed(target.machine)
        yield from layout("epoll_event", _epoll.EPOLL_EVENT, packed, types).items()
        yield from ((name, getattr(_epoll, name)) for name in EPOLL_NAMES)
        # The package uses Python's value, which comes from the same headers.
        yield "EPOLL_CLOEXEC", types["O_CLOEXEC"]
    else:
        abi = _kqueue.abi(target.platform)
        yield from layout("kevent", abi.fields, 0, types).items()
        timespec = _kqueue.timespec_fields(target.platform, target.machine)
        yield from layout("timespec", timespec, 0, types).items()
        yield from ((name, getattr(_kqueue, name)) for name in KQUEUE_NAMES)
        yield "EVFILT_READ", abi.evfilt_read
        yield "EVFILT_WRITE", abi.evfilt_write
        yield f"kevent counts are {'size_t' if abi.counts_are_size_t else 'int'}", 1


def declared(target: Target, types: Facts) -> Facts:
    """Every number that the package would use on `target`, with C types as in `types`."""
    return dict(_declared(target, types))


def differences(target: Target, answer: Answer) -> list[str]:
    """A line for each disagreement between the package and the headers of `target`."""
    # The second field of struct epoll_event is a union, which has no sign; the package uses u64.
    unsigned = {"signed(epoll_event.data)": 0}
    facts = {**unsigned, **answer.facts}
    lines = [
        f"{target.triple}: {name} is {facts.get(name, 'absent')} in the headers "
        f"and {value} in the package"
        for name, value in declared(target, facts).items()
        if facts.get(name) != value
    ]
    if target.platform != "linux":
        symbol = room_on("_libc", target.platform).FOREIGN["kevent"][-1]
        if symbol != answer.symbol:
            lines.append(f"{target.triple}: kevent is {answer.symbol}, not {symbol}")
    return lines
