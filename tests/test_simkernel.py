"""The simulated kernel itself: observed behaviour of real kernels with kqueue, row by row, and how
it treats a program that misuses it. (test_simkernel_truth.py covers Linux.)"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Iterator
from ctypes import byref, c_int, c_size_t, c_ulong
from errno import (
    EBADF,
    ECONNREFUSED,
    ECONNRESET,
    EINVAL,
    EMFILE,
    ENOENT,
    ENOTCONN,
    EPIPE,
)
from typing import Any

import pytest

from danga_raw._epoll import EVENT, Epoll, epoll_event
from danga_raw._kqueue import KQueue, kevent_type
from danga_raw._libc import libc
from danga_raw._poll import POLLHUP, POLLIN, POLLOUT, Poll, pollfd
from tests.simkernel import LAYOUTS, Handle, SimError, SimKernel
from tests.simkernel.kernel import CORK_OPTION
from tests.simkernel.kqueue import (
    EV_ADD,
    EV_DELETE,
    EV_DISABLE,
    EV_ENABLE,
    EV_EOF,
    EV_ERROR,
    EV_ONESHOT,
)
from tests.simkernel.sockets import SHUT_RD, SHUT_WR

lp64 = pytest.mark.skipif(sys.maxsize < 2**32, reason="its kqueue has the layouts of LP64")

Event = tuple[int, int, int, int, int, int]
"""ident, filter, flags, fflags, data, udata"""


class Bench:
    """A kqueue driven by hand: structs packed and unpacked by the simulator's own description."""

    def __init__(self, form: str, strict: bool = True) -> None:
        self.kernel = SimKernel(platform=form, strict=strict)
        self.layout = LAYOUTS[form]
        self.size_t = c_size_t if self.layout.size_t_counts else int
        self.element = kevent_type(form)
        self.kq = self.kernel.kqueue()
        self.read = self.layout.read
        self.write = self.layout.write

    def changes(self, *changes: tuple[int, ...]) -> Any:
        """An array of (ident, filter, flags[, udata])."""
        array = (self.element * len(changes))()
        view = memoryview(array).cast("B")
        for i, (ident, filter, flags, *udata) in enumerate(changes):
            fields = (ident, filter, flags, 0, 0, *(udata or [0]))
            self.layout.fields.pack_into(view, i * self.layout.size, *fields)
        return array

    def call(self, *changes: tuple[int, ...], room: int = 0, timeout: Any = None) -> int:
        """kevent(2); the events are in `told`, the errno in `errno`."""
        events = (self.element * max(room, 1))()
        count = self.kernel.kevent(
            self.kq,
            self.changes(*changes) if changes else None,
            self.size_t(len(changes)),
            events if room else None,
            self.size_t(room),
            timeout if timeout is not None else timespec(0),
        )
        self.errno = ctypes.get_errno() if count < 0 else 0
        view = memoryview(events).cast("B")
        unpack = self.layout.fields.unpack_from
        self.told: list[Event] = [unpack(view, i * self.layout.size) for i in range(max(count, 0))]
        return count

    def events(self) -> list[Event]:
        """The filters that are ready now."""
        self.call(room=10)
        return self.told


def timespec(seconds: int, nanoseconds: int = 0) -> Any:
    """A reference to a struct timespec."""
    return byref((ctypes.c_int64 * 2)(seconds, nanoseconds))


@pytest.fixture(params=["freebsd", "netbsd"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.param)


def netbsd(bench: Bench) -> bool:
    return bench.kernel.form == "netbsd"


@lp64
class TestKernelBehaviour:
    def test_change_in_a_foreign_layout_is_ignored_by_freebsd_and_rejected_by_netbsd(
        self, bench: Bench
    ) -> None:
        lax = Bench(bench.kernel.platform, strict=False)
        one, _ = lax.kernel.socketpair()
        array = (kevent_type("darwin") * 1)()
        struct.pack_into("=QhHIqQ", array, 0, one.fileno(), -1, EV_ADD, 0, 0, 0)
        count = lax.kernel.kevent(lax.kq, array, lax.size_t(1), None, lax.size_t(0), timespec(0))
        assert (count, ctypes.get_errno() if count else 0) == (
            (-1, EINVAL) if netbsd(lax) else (0, 0)
        )
        assert lax.call((one.fileno(), lax.read, EV_ENABLE)) == -1
        assert lax.errno == ENOENT

    def test_event_flags_are_empty_on_freebsd_and_those_of_the_first_add_on_netbsd(
        self, bench: Bench
    ) -> None:
        one, two = bench.kernel.socketpair()
        two.send(b"x")
        fd = one.fileno()
        bench.call((fd, bench.read, EV_ADD))
        assert bench.events() == [(fd, bench.read, 1 if netbsd(bench) else 0, 0, 1, 0)]
        bench.call((fd, bench.read, EV_DELETE))
        bench.call((fd, bench.read, EV_ADD | EV_DISABLE))
        assert bench.events() == []
        bench.call((fd, bench.read, EV_ENABLE))
        assert bench.events() == [(fd, bench.read, 9 if netbsd(bench) else 0, 0, 1, 0)]

    def test_closing_peer_is_eof_with_the_unread_bytes_again_after_each_read(
        self, bench: Bench
    ) -> None:
        one, two = bench.kernel.socketpair(tcp=True)
        bench.call((one.fileno(), bench.read, EV_ADD))
        two.send(b"abc")
        two.close()
        for left in (3, 1, 0, 0):
            [(_, _, flags, fflags, data, _)] = bench.events()
            assert (flags & EV_EOF, fflags, data) == (EV_EOF, 0, left)
            one.recv(2)

    def test_fin_alone_is_no_event_for_a_tcp_write_filter_but_eof_for_a_unix_one(
        self, bench: Bench
    ) -> None:
        for tcp in (True, False):
            one, two = bench.kernel.socketpair(tcp)
            bench.call((one.fileno(), bench.write, EV_ADD))
            two.close()
            [(_, _, flags, *_)] = bench.events()
            assert flags & EV_EOF == (0 if tcp else EV_EOF)
            one.close()

    def test_closed_reader_is_eof_for_the_write_filter_of_a_pipe(self, bench: Bench) -> None:
        reader, writer = bench.kernel.pipe()
        bench.call((writer.fileno(), bench.write, EV_ADD))
        reader.close()
        [(_, _, flags, *_)] = bench.events()
        assert flags & EV_EOF

    def test_reset_is_eof_with_econnreset_on_both_filters_until_the_error_is_read(
        self, bench: Bench
    ) -> None:
        one, two = bench.kernel.socketpair(tcp=True)
        two.send(b"abc")
        two.reset()
        fd = one.fileno()
        bench.call((fd, bench.read, EV_ADD), (fd, bench.write, EV_ADD))
        told = {event[1]: event for event in bench.events()}
        assert all(e[2] & EV_EOF and e[3] == ECONNRESET for e in told.values()) and len(told) == 2
        assert told[bench.read][4] == 3
        assert one.take_error() == ECONNRESET
        assert all(e[2] & EV_EOF and e[3] == 0 for e in bench.events())

    def test_nothing_is_reported_while_both_filters_are_disabled(self, bench: Bench) -> None:
        for end in (Handle.close, Handle.reset):
            one, two = bench.kernel.socketpair(tcp=True)
            fd = one.fileno()
            for filter in (bench.read, bench.write):
                bench.call((fd, filter, EV_ADD), (fd, filter, EV_DISABLE))
            end(two)
            assert bench.events() == []
            bench.call((fd, bench.read, EV_ENABLE))
            assert [event[1] for event in bench.events()] == [bench.read]
            one.close()

    def test_adding_a_disabled_filter_again_leaves_it_disabled(self, bench: Bench) -> None:
        one, _ = bench.kernel.socketpair()
        fd = one.fileno()
        bench.call((fd, bench.write, EV_ADD), (fd, bench.write, EV_DISABLE))
        bench.call((fd, bench.write, EV_ADD))
        assert bench.events() == []

    def test_enable_with_disable_is_rejected_by_freebsd_only(self, bench: Bench) -> None:
        one, _ = bench.kernel.socketpair()
        bench.call((one.fileno(), bench.read, EV_ADD))
        count = bench.call((one.fileno(), bench.read, EV_ENABLE | EV_DISABLE))
        assert (count, bench.errno) == ((0, 0) if netbsd(bench) else (-1, EINVAL))

    def test_udata_of_a_later_change_is_stored_by_freebsd_but_not_by_netbsd(
        self, bench: Bench
    ) -> None:
        one, two = bench.kernel.socketpair()
        two.send(b"x")
        fd = one.fileno()
        bench.call((fd, bench.read, EV_ADD, 7))
        bench.call((fd, bench.read, EV_DISABLE, 8), (fd, bench.read, EV_ENABLE, 9))
        assert bench.events()[0][5] == (7 if netbsd(bench) else 9)

    def test_change_of_an_absent_filter_is_enoent_and_ebadf_once_closed(self, bench: Bench) -> None:
        one, _ = bench.kernel.socketpair()
        fd = one.fileno()
        assert (bench.call((fd, bench.read, EV_DELETE)), bench.errno) == (-1, ENOENT)
        one.close()
        assert (bench.call((fd, bench.read, EV_DELETE)), bench.errno) == (-1, EBADF)

    def test_failing_change_without_room_for_events_prevents_the_later_ones(
        self, bench: Bench
    ) -> None:
        one, _ = bench.kernel.socketpair()
        fd = one.fileno()
        changes = ((fd, bench.write, EV_ENABLE), (fd, bench.write, EV_ADD))
        assert (bench.call(*changes), bench.errno) == (-1, ENOENT)
        assert bench.events() == []

    def test_failing_change_with_room_for_events_is_reported_and_later_ones_applied(
        self, bench: Bench
    ) -> None:
        one, _ = bench.kernel.socketpair()
        fd = one.fileno()
        bench.call((fd, bench.write, EV_ENABLE), (fd, bench.write, EV_ADD), room=5)
        assert bench.told == [(fd, bench.write, EV_ERROR, 0, ENOENT, 0)]
        assert [event[:2] for event in bench.events()] == [(fd, bench.write)]

    def test_closing_an_fd_removes_its_filters_from_every_kqueue_despite_a_dup(
        self, bench: Bench
    ) -> None:
        one, two = bench.kernel.socketpair()
        first, bench.kq = bench.kq, bench.kernel.kqueue()
        for kq in (first, bench.kq):
            bench.kq = kq
            bench.call((one.fileno(), bench.read, EV_ADD))
        dup = one.dup()
        two.send(b"x")
        assert bench.events()
        one.close()
        for kq in (first, bench.kq):
            bench.kq = kq
            assert bench.events() == []
        assert dup.recv(1) == b"x"

    def test_invalid_timeout_is_rejected(self, bench: Bench) -> None:
        lax = Bench(bench.kernel.platform, strict=False)
        for wrong in (timespec(-1), timespec(0, 10**9)):
            assert (lax.call(room=1, timeout=wrong), lax.errno) == (-1, EINVAL)

    def test_macos_adds_the_filter_but_returns_epipe_if_the_other_end_is_closed(self) -> None:
        bench = Bench("darwin")
        bench.kernel.epipe_at_registration = True
        reader, writer = bench.kernel.pipe()
        reader.close()
        fd = writer.fileno()
        assert (bench.call((fd, bench.write, EV_ADD)), bench.errno) == (-1, EPIPE)
        assert [event[0] for event in bench.events()] == [fd]

    def test_filters_are_reported_in_the_order_of_their_activation(self, bench: Bench) -> None:
        one, two = bench.kernel.socketpair()
        fd = one.fileno()
        bench.call((fd, bench.read, EV_ADD), (fd, bench.write, EV_ADD))
        assert [event[1] for event in bench.events()] == [bench.write]
        two.send(b"abc")
        two.close()
        assert [(e[1], e[2] & EV_EOF, e[4]) for e in bench.events() if e[1] == bench.read] == [
            (bench.read, EV_EOF, 3)
        ]
        assert [event[1] for event in bench.events()] == [bench.write, bench.read]

    def test_events_that_did_not_fit_into_a_batch_come_first_in_the_next(
        self, bench: Bench
    ) -> None:
        fds = []
        for _ in range(3):
            one, _ = bench.kernel.socketpair()
            fds.append(one.fileno())
            bench.call((one.fileno(), bench.write, EV_ADD))
        told = []
        for _ in range(3):
            bench.call(room=2)
            told += [event[0] for event in bench.told]
        assert told == fds * 2

    @pytest.mark.parametrize("platform", LAYOUTS)
    def test_write_filter_of_a_pipe_whose_other_end_is_closed(self, platform: str) -> None:
        bench = Bench(platform)
        for writes in (False, True):
            ends = bench.kernel.pipe()
            ends[not writes].close()
            fd = ends[writes].fileno()
            refused = {"darwin": 0, "libkqueue": 0, "netbsd": EBADF, "netbsd9": EBADF}
            bench.call((fd, bench.write, EV_ADD))
            number = refused.get(platform, EPIPE)
            assert bench.errno == number
            assert len(bench.events()) == (0 if number else 1)
            assert bench.call((fd, bench.read, EV_ADD)) == 0
            ends[writes].close()

    @pytest.mark.parametrize("platform", LAYOUTS)
    @pytest.mark.parametrize("enabled", [False, True])
    def test_write_filter_of_a_pipe_whose_other_end_closes_later(
        self, platform: str, enabled: bool
    ) -> None:
        bench = Bench(platform)
        reader, writer = bench.kernel.pipe()
        fd = writer.fileno()
        bench.call((fd, bench.write, EV_ADD))
        if not enabled:
            bench.call((fd, bench.write, EV_DISABLE))
        reader.close()
        assert bench.call((fd, bench.write, EV_ENABLE)) == 0
        [(_, _, flags, *_)] = bench.events()
        assert flags & EV_EOF
        once = platform == "freebsd"
        assert bool(flags & EV_ONESHOT) == once
        assert len(bench.events()) == (0 if once else 1)
        bench.call((fd, bench.write, EV_DISABLE))
        assert bench.errno == (ENOENT if once else 0)

    def test_write_filter_of_a_pipes_read_end_fires_on_freebsd_only(self, bench: Bench) -> None:
        reader, writer = bench.kernel.pipe()
        bench.call((reader.fileno(), bench.write, EV_ADD))
        assert len(bench.events()) == (0 if netbsd(bench) else 1)
        writer.close()
        [(_, _, flags, *_)] = bench.events()
        assert flags & EV_EOF

    def test_peer_closing_with_unread_data_sends_a_fin_and_answers_data_with_a_reset(
        self, bench: Bench
    ) -> None:
        one, two = bench.kernel.socketpair(tcp=True)
        one.send(b"unread")
        two.close()
        assert one.recv(1) == b""
        one.send(b"x")
        with pytest.raises(ConnectionResetError):
            one.recv(1)

    def test_write_after_a_reset_is_epipe(self, bench: Bench) -> None:
        one, two = bench.kernel.socketpair(tcp=True)
        two.reset()
        for _ in range(2):
            with pytest.raises(BrokenPipeError):
                one.send(b"x")
        assert one.take_error() == ECONNRESET, "a write leaves it to a reader"

    def test_unix_socket_closed_with_unread_data_is_not_reset(self, bench: Bench) -> None:
        one, two = bench.kernel.socketpair()
        one.send(b"unread")
        two.close()
        assert one.recv(1) == b""
        assert one.take_error() == 0

    def test_shut_read_side_discards_unread_data_and_the_peer_can_still_write(
        self, bench: Bench
    ) -> None:
        for tcp in (True, False):
            one, two = bench.kernel.socketpair(tcp)
            two.send(b"unread")
            one.shutdown(SHUT_RD)
            assert one.recv(10) == b""
            two.setblocking(False)
            for _ in range(10):
                assert two.send(bytes(3000)) == 3000
            assert one.recv(10) == b""

    def test_local_shutdown_is_eof_for_the_write_filter(self, bench: Bench) -> None:
        one, _ = bench.kernel.socketpair(tcp=True)
        bench.call((one.fileno(), bench.write, EV_ADD))
        one.shutdown(SHUT_WR)
        [(_, _, flags, *_)] = bench.events()
        assert flags & EV_EOF

    def test_netbsd_unix_socket_is_not_writable_below_its_low_water_mark(
        self, bench: Bench
    ) -> None:
        one, _ = bench.kernel.socketpair()
        one.setblocking(False)
        bench.call((one.fileno(), bench.write, EV_ADD))
        one.send(bytes(2000))
        assert len(bench.events()) == 1
        one.send(bytes(100))
        assert len(bench.events()) == (0 if netbsd(bench) else 1)
        assert one.send(b"it takes more all the same") > 0

    def test_setsockopt_on_a_lost_connection(self) -> None:
        answers = {}
        for platform, option in CORK_OPTION.items():
            kernel = SimKernel(platform=platform)
            one, two = kernel.socketpair(tcp=True)
            two.reset()
            on = byref(c_int(1))
            failed = kernel.setsockopt(one.fileno(), 6, option, on, 4)
            answers[platform] = ctypes.get_errno() if failed else 0
        gone = dict.fromkeys(("freebsd", "dragonfly", "openbsd"), ECONNRESET)
        assert answers == {"linux": 0, "darwin": EINVAL, **gone}

    def test_pending_connection(self, bench: Bench) -> None:
        one, end = bench.kernel.connecting()
        fd = one.fileno()
        for filter in (bench.read, bench.write):
            bench.call((fd, filter, EV_ADD))
        assert bench.events() == []
        with pytest.raises(BlockingIOError):
            one.recv(1)
        if netbsd(bench):
            with pytest.raises(OSError) as early:
                one.send(b"early")
            assert early.value.errno == ENOTCONN
        else:
            assert one.send(b"early") == 5
        far = end(0)
        assert far is not None
        assert [event[1] for event in bench.events()] == [bench.write]
        far.setblocking(False)
        if not netbsd(bench):
            assert far.recv(10) == b"early"

    def test_refused_connection_is_eof_with_the_error_on_both_filters(self, bench: Bench) -> None:
        one, end = bench.kernel.connecting()
        for filter in (bench.read, bench.write):
            bench.call((one.fileno(), filter, EV_ADD))
        end(ECONNREFUSED)
        told = bench.events()
        assert {event[1] for event in told} == {bench.read, bench.write}
        assert all(event[2] & EV_EOF and event[3] == ECONNREFUSED for event in told)

    def test_listener_can_be_neither_written_nor_read(self, bench: Bench) -> None:
        listener = bench.kernel.listener()
        bench.call((listener.fileno(), bench.write, EV_ADD))
        bench.kernel.connect(listener)
        assert bench.events() == []
        for call in (lambda: listener.send(b"x"), lambda: listener.recv(1)):
            with pytest.raises(OSError) as refused:
                call()
            assert refused.value.errno == ENOTCONN

    def test_poll_reports_no_error_after_a_reset(self, bench: Bench) -> None:
        with bench.kernel.installed():
            one, two = bench.kernel.socketpair(tcp=True)
            two.reset()
            poller = Poll()
            poller.register(one.fileno(), POLLIN | POLLOUT)
            [(_, mask)] = poller.wait(0)
        assert mask == (POLLIN | POLLOUT if netbsd(bench) else POLLIN | POLLHUP)

    def test_wait_takes_whole_ticks_of_netbsds_clock(self, bench: Bench) -> None:
        clock = bench.kernel.clock
        for start in (0, 4_000_000):
            clock.now_ns += start
            before = clock.now_ns
            bench.call(room=1, timeout=timespec(0, 1_000_000))
            waited = clock.now_ns - before
            if netbsd(bench):
                assert 10_000_000 < waited <= 20_001_000
            else:
                assert waited == pytest.approx(1_000_000, abs=2_000)


class TestMisuse:
    @pytest.fixture
    def kernel(self) -> Iterator[SimKernel]:
        kernel = SimKernel()
        with kernel.installed():
            yield kernel

    def test_use_of_a_closed_descriptor_is_an_error(self, kernel: SimKernel) -> None:
        one, _ = kernel.socketpair()
        fd = one.fileno()
        one.close()
        uses: list[Callable[[], object]] = [
            lambda: libc.read(fd, 1),
            lambda: libc.write(fd, b""),
            lambda: libc.close(fd),
            lambda: libc.fstat(fd),
            lambda: libc.setsockopt(fd, 6, 3, byref(c_int(1)), 4),
            lambda: libc.epoll_wait(fd, byref((epoll_event * 1)()), 1, 0),
            lambda: libc.poll(byref((pollfd * 1)(pollfd(fd, 1, 0))), c_ulong(1), 0),
        ]
        for use in uses:
            with pytest.raises(SimError, match="closed"):
                use()

    def test_buffer_that_is_too_small_is_an_error(self, kernel: SimKernel) -> None:
        epfd = libc.epoll_create1(0x80000)
        with pytest.raises(SimError, match="24 bytes are used of a buffer that has 12|32 .* 16"):
            libc.epoll_wait(epfd, byref(epoll_event()), 2, 0)
        with pytest.raises(SimError, match="16 bytes are used of a buffer that has 8"):
            libc.poll(byref((pollfd * 1)()), c_ulong(2), 0)

    def test_struct_of_the_wrong_size_is_an_error(self, kernel: SimKernel) -> None:
        epfd = libc.epoll_create1(0x80000)
        one, _ = kernel.socketpair()
        with pytest.raises(SimError, match="bytes"):
            libc.epoll_ctl(epfd, 1, one.fileno(), bytes(36))

    def test_unknown_constants_are_errors(self, kernel: SimKernel) -> None:
        epfd = libc.epoll_create1(0x80000)
        one, _ = kernel.socketpair()
        uses: list[Callable[[], object]] = [
            lambda: libc.epoll_create1(1),
            lambda: libc.epoll_ctl(epfd, 9, one.fileno(), EVENT.pack(0, 0)),
            lambda: libc.epoll_ctl(epfd, 1, one.fileno(), EVENT.pack(0x4000, 0)),
            lambda: libc.setsockopt(one.fileno(), 6, 99, byref(c_int(1)), 4),
            lambda: libc.fcntl(one.fileno(), 77, 1),
            lambda: libc.poll(byref((pollfd * 1)(pollfd(3, 0x400, 0))), c_ulong(1), 0),
            lambda: libc.poll(byref((pollfd * 1)()), 1, 0),  # type: ignore[arg-type]
        ]
        for use in uses:
            with pytest.raises(SimError):
                use()

    @lp64
    @pytest.mark.parametrize("platform", LAYOUTS)
    def test_misuse_of_kevent_is_an_error(self, platform: str) -> None:
        bench = Bench(platform)
        one, _ = bench.kernel.socketpair()
        fd = one.fileno()
        wrong_size = kevent_type("netbsd" if platform == "freebsd" else "freebsd")
        wrong_count = 1 if bench.layout.size_t_counts else c_size_t(1)
        one_event = (bench.element * 1)()
        n = bench.size_t
        kevent = bench.kernel.kevent
        uses: list[Callable[[], object]] = [
            lambda: bench.call((fd, bench.read, 0x1000)),
            lambda: bench.call((fd, 5, EV_ADD)),
            lambda: bench.call((99, bench.read, EV_ADD)),
            lambda: bench.call(room=1, timeout=timespec(0, 10**9)),
            lambda: kevent(bench.kq, (wrong_size * 1)(), n(1), None, n(0), None),
            lambda: kevent(bench.kq, None, n(0), one_event, n(2), timespec(0)),
            lambda: kevent(bench.kq, None, n(0), one_event, wrong_count, timespec(0)),
            lambda: kevent(bench.kq, None, n(0), one_event, n(1), byref(c_int(0))),
            lambda: kevent(bench.kq, 1234, n(1), None, n(0), None),
        ]
        for use in uses:
            with pytest.raises(SimError):
                use()

    def test_wait_that_nothing_can_end_is_an_error(self, kernel: SimKernel) -> None:
        with pytest.raises(SimError, match="deadlock"):
            Poll().wait(-1)
        one, _ = kernel.socketpair()
        with pytest.raises(SimError, match="deadlock"):
            one.recv(1)


class TestSimulator:
    def test_clock_advances_only_during_waits(self) -> None:
        kernel = SimKernel()
        with kernel.installed():
            poller = Epoll()
            poller.open()
            one, two = kernel.socketpair()
            poller.register(one.fileno(), POLLIN)
            kernel.clock.after(30_000_000, lambda: two.send(b"x"))
            before = libc.clock_gettime(1)
            assert libc.clock_gettime(1) == before
            assert list(poller.wait(10)) == []
            assert libc.clock_gettime(1) - before == pytest.approx(0.010, abs=1e-5)
            assert list(poller.wait(-1)) == [(one.fileno(), 1)]
            assert libc.clock_gettime(1) - before == pytest.approx(0.030, abs=1e-5)

    def test_real_functions_are_restored_afterwards(self) -> None:
        before = dict(vars(libc))
        for platform in (None, *LAYOUTS):
            with SimKernel(platform=platform).installed():
                assert vars(libc) != before
                assert hasattr(libc, "epoll_wait") == (platform is None)
            assert vars(libc) == before

    def test_seed_determines_everything(self) -> None:
        def course(seed: int) -> list[object]:
            kernel = SimKernel(seed, noise=0.5, harm=0.1)
            seen: list[object] = []
            one, two = kernel.socketpair(tcp=True)
            one.setblocking(False)
            for i in range(100):
                try:
                    seen.append(kernel.write(one.fileno(), bytes(i)))
                    seen.append(two.recv(100))
                except OSError as error:
                    seen.append(error.errno)
                except SimError:
                    seen.append("deadlock")
            return seen

        assert course(1) == course(1) != course(2)

    def test_lowest_free_descriptor_is_used_up_to_the_limit(self) -> None:
        kernel = SimKernel(first_fd=0, limit=4)
        handles = [*kernel.socketpair(), *kernel.pipe()]
        assert [handle.fileno() for handle in handles] == [0, 1, 2, 3]
        handles[1].close()
        with pytest.raises(OSError) as full:
            kernel.pipe()
        assert full.value.errno == EMFILE
        assert kernel.dup(0) == 1

    def test_corked_socket_holds_back_partial_segments(self) -> None:
        kernel = SimKernel()
        one, two = kernel.socketpair(tcp=True)
        two.setblocking(False)
        on = byref(c_int(1))
        kernel.setsockopt(one.fileno(), 6, 3, on, 4)
        one.send(b"held")
        with pytest.raises(BlockingIOError):
            two.recv(10)
        kernel.setsockopt(one.fileno(), 6, 3, byref(c_int(0)), 4)
        assert two.recv(10) == b"held"

    def test_closing_listener_resets_pending_connections(self) -> None:
        kernel = SimKernel()
        listener = kernel.listener()
        client = kernel.connect(listener)
        listener.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)

    @lp64
    def test_library_can_serve_a_poller_of_its_own(self) -> None:
        kernel = SimKernel(platform="openbsd")
        with kernel.installed():
            poller = KQueue(kernel.entry_points, "openbsd")
            poller.open()
            one, _ = kernel.socketpair()
            poller.register(one.fileno(), POLLOUT)
            assert list(poller.wait(-1)) == [(one.fileno(), POLLOUT)]
            fd = one.fileno()
            assert kernel.changes == [[(fd, -1, EV_ADD), (fd, -1, EV_DISABLE), (fd, -2, EV_ADD)]]

    @lp64
    @pytest.mark.parametrize("has_close", [True, False], ids=["with close", "without close"])
    def test_poller_on_a_library_closes_no_descriptor_of_this_process(
        self, has_close: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kernel = SimKernel(platform="freebsd")
        if not has_close:
            del kernel.entry_points.close
        poller = KQueue(kernel.entry_points, "freebsd")
        poller.open()
        monkeypatch.setattr(libc, "close", lambda fd: pytest.fail("another's descriptor"))
        fd = poller.fileno()
        poller.close()
        assert (fd in kernel.table.files) != has_close


def test_socket_whose_write_side_is_shut_down_can_still_read() -> None:
    one, two = SimKernel().socketpair(tcp=True)
    one.shutdown(SHUT_WR)
    assert two.recv(1) == b""
    two.send(b"late")
    assert one.recv(4) == b"late"
