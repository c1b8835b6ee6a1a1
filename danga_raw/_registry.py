"""What a loop watches, and the life of a descriptor in it.

A descriptor passes through three states, which the sections of `Registry` follow:

* *registered*: the poller reports its events. `objects` or `other_fds` says who holds its number, that
  is, whom the events are for. A number has one holder.
* *leaving*: its holder has closed it, given it away or taken it off the loop. It gets no event any
  more. But the batch in hand, which is what the last wait returned, may still contain one. Until that
  batch is over, close(2) is put off and the entry in `objects` stays, so that the kernel gives the
  number to nobody else, who would get that event.
* *gone*: nothing here knows the number.

A number may get a new holder while the old one is still here: where a program has closed a descriptor
behind the loop's back and the kernel has given the number out again, or where a stolen socket is
wrapped again in the same batch. Then the old holder is dropped, and with it what is left of the batches
in hand that contain the number. No event is lost by that: they are level-triggered, and the next wait
reports again what is still true.
"""

from __future__ import annotations

from ctypes import get_errno, set_errno
from errno import EEXIST, ENOMEM, ENOSPC

from danga_raw._backends import new_poller
from danga_raw._handle import close_fds, close_handle, disown, still_has
from danga_raw._interrupt import alone, by_handler
from danga_raw._log import complain, warn
from danga_raw._poll import POLLIN
from danga_raw._sockopt import set_cork
from danga_raw.timers import heappop, heappush

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final, TypeAlias

    from danga_raw._connecting import Connecting
    from danga_raw._poller import Poller
    from danga_raw._waker import Waker
    from danga_raw.listener import Listener
    from danga_raw.types import (
        AnySocket,
        Handle,
        OtherFdCallback,
        OtherFdMapping,
        PostLoopCallback,
    )

    Leaving: TypeAlias = tuple[AnySocket | None, list[Handle]]
    """A descriptor that is leaving: its object, None for an other fd; and in a list the handle that is
    to be closed. The list is empty where there is none to close, and once it is closed."""


LOOPS_OWN: Final = -1
"""The key of the loop's own post-loop callback, among those of objects by their fd."""


class Registry:
    """The descriptors of one loop, and the poller that watches them."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.entries_outlive_fds: Final = backend == "epoll"
        """True for epoll, which watches the open file and not the number: what is registered stays
        there behind close(2) while a dup or a forked child has the same file open."""
        self.needs_waker: Final = backend == "poll"
        """True for poll, which takes its table at the beginning of a wait: what another thread adds
        meanwhile is not heard until something else ends the wait."""
        self.poller: Poller | None = None
        """The poller while it is open."""
        self._to_be_closed: list[Poller] = []
        """Pollers that were dropped and are not closed yet."""
        self.waker: Waker | None = None
        """What wakes the loop, once somebody has asked for it."""
        self.stale_entries: set[int] = set()
        """Numbers under which the epoll may still have a file that was closed here and could not be
        unregistered. Before such a number is registered again the poller is renewed."""
        self.outer_batches: list[list[int]] = []
        """A loop may be run within a handler. For each run that is going on, the batch that was in
        hand when it began."""
        self.objects: dict[int, AnySocket] = {}
        """The objects by their fd, those that are leaving included."""
        self.receivers: list[AnySocket | None] = []
        """The objects that are not leaving, by their fd. It doubles `objects` so that dispatch finds an
        object in a list: in a dict that takes a fortieth of all that a request costs."""
        self.other_fds: dict[int, OtherFdCallback] = {}
        """The callbacks of descriptors that no object has, by fd."""
        self.leaving: dict[int, Leaving] = {}
        """What is gone when the batch in hand is over, by number, in the order in which it left."""
        self.something_due: bool = True
        """False where a turn has nothing to do but wait and dispatch: nothing is leaving, no
        pushed-back data waits to be read, `call_soon` was given nothing, no timer was cut short,
        nobody has called `stop`, and the poller is that of the turn before, as is whether it is
        profiled. To ask this alone spares a turn 400 instructions."""
        # What few objects have, by fd, so that the others need no attribute for it:
        self.pushed_back: dict[int, int] = {}  # pushed-back data, in the order of these numbers
        self.pushes: int = 0  # the last number
        self.readable: set[int] = set()  # pushed-back data and a watch for reading
        self.turned_on: set[int] = set()  # pushed-back data, and a change of what is watched for
        self.post_loop_callbacks: dict[int, PostLoopCallback] = {}
        self.connecting: dict[int, Connecting] = {}  # a connect that is pending
        self.paused: dict[int, Listener] = {}  # a listener that had no descriptor for a connection

    # --- registered -------------------------------------------------------------------------------

    def register(self, fd: int, events: int, obj: AnySocket | None = None) -> None:
        """Watch a descriptor, for `obj` if it is an object's. Raises `OSError`, and then has done
        nothing; EEXIST where the holder of the number still has the descriptor open."""
        if renewed := fd in self.stale_entries:
            self.renew_poller()
        try:
            try:
                (self.poller or self.open()).register(fd, events)
            except OSError as error:
                holder = self.objects.get(fd)
                if error.errno != EEXIST or holder is None or still_has(holder, fd):
                    raise
                # The holder has closed it, and the newcomer is the same file by a dup; or on poll
                # looks like it, as both ends of a pipe have one inode.
                self.open().unregister(fd, holder.event_watch)
                self.open().register(fd, events)
            if fd in self.objects or fd in self.other_fds or fd in self.leaving:
                lost = self._drop_holder(fd, obj)
                if lost and self.entries_outlive_fds and not renewed:
                    # The old file's entry may be there still, and its events would be taken for those
                    # of the new one.
                    self.renew_poller()
                    self.open().register(fd, events)
            if fd >= len(self.receivers):  # Asked first: the call alone costs 1,300 instructions.
                self._make_room(fd)
            if obj is not None:
                self.objects[fd] = obj
                self.receivers[fd] = obj
        except BaseException as error:
            if by_handler(error) and obj is not None and fd not in self.other_fds:
                self.unregister(fd, events)
            raise

    def _drop_holder(self, fd: int, new: AnySocket | None = None) -> bool:
        """Drop whoever holds `fd`: it is another descriptor by now, that of the object `new` or one of
        the package's own. True if the old one was closed behind the loop's back."""
        self._drop_events(fd)
        holder = self.objects.get(fd)
        left, handles = self.leaving.get(fd, (None, []))
        lost = bool(handles)
        if handles:
            # Unless the newcomer has the same handle, and closes it.
            if new is None or handles[0] is not new.sock:
                disown(handles[0], fd)
            del handles[:]
        # An exception may have cut `leave` short.
        if left is not None and left.closed and left.fd == fd:
            left.let_go()
        # One that has left, and was made anew, has another descriptor, or is the newcomer itself.
        if holder is not None and holder is not new and self.receivers[fd] is holder:
            sock, holder.closed = holder.sock, True
            self.receivers[fd] = None
            if sock is not None:
                disown(sock, fd)
            holder.let_go()
            self._forget_callbacks(fd)
            warn("fd %d was closed behind the back of %s", fd, type(holder).__name__)
            lost = True
        self.leaving.pop(fd, None)
        self.objects.pop(fd, None)
        return self.other_fds.pop(fd, None) is not None or lost

    def _drop_events(self, fd: int) -> None:
        """Drop what is left of the batches in hand that contain `fd`."""
        for batch in (*self.outer_batches[1:], [] if self.poller is None else self.poller.batch):
            if fd in batch:
                batch.clear()

    def _make_room(self, fd: int) -> None:
        """Make `receivers` long enough to be asked for `fd`."""
        self.receivers += [None] * (fd + 1 - len(self.receivers))

    def undo_modify(self, obj: AnySocket, fd: int, old: int, new: int) -> None:
        """Watch for the old mask again, where a signal's handler has raised and nobody knows whether
        the poller has the new one already."""
        obj.event_watch = old
        try:
            self.open().modify(fd, new, old)
        except OSError:
            pass

    # --- leaving ----------------------------------------------------------------------------------

    def leave(self, obj: AnySocket, sock: Handle | None) -> bool:
        """Let an object leave, and close `sock` when the batch in hand is over. False if it has left
        already."""
        # To be restored: a signal's handler that closes may come between a call that fails and the
        # look at its errno.
        number = get_errno()
        handles = [] if sock is None else [sock]
        fd, receivers = obj.fd, self.receivers
        listed = fd in self.objects
        known = listed or fd in self.leaving
        # No call, and questions that fall through, until `closed` is set: or else a signal's handler
        # could let the object leave as well.
        if fd is not None and not obj.closed:
            # Should a handler raise behind this, `finish_leaving` does the rest.
            self.something_due = True
            own = listed and receivers[fd] is obj
            if own or handles or not known:  # One that was refused leaves the holder's place alone.
                self.leaving[fd] = obj, handles
            obj.closed = True
            if own:
                receivers[fd] = None
            corked = obj.corked
            trouble = self._take_off(fd, obj)
            # An epoll_ctl(2) that succeeds leaves errno alone, and to set it costs a quarter of that.
            if corked or trouble is not None or not self.entries_outlive_fds:
                set_errno(number)
            if trouble is not None:
                obj.dump_error(trouble)
            return True
        return False

    def _take_off(self, fd: int, obj: AnySocket) -> str | None:
        """Uncork and unregister an object that is leaving, and have it forget what it holds. Returns
        what went wrong. May be done twice."""
        trouble = None
        # A loop that was reset since knows nothing of this object, and the number may be another's.
        if obj.corked and self.objects.get(fd, obj) is obj:
            try:
                set_cork(fd, False)  # It sends what is still held back.
            except OSError as error:
                complain(error, "%s")
            obj.corked = False
        if self.objects.get(fd) is obj:
            try:
                (self.poller or self.open()).unregister(fd, obj.event_watch)
            except OSError as error:
                trouble = self._refused(fd, error)
            if self.pushed_back or self.post_loop_callbacks or self.paused or self.connecting:
                self._forget_callbacks(fd)
        obj.let_go()
        return trouble

    def _forget_callbacks(self, fd: int) -> None:
        self.readable.discard(fd)
        self.pushed_back.pop(fd, None)
        self.post_loop_callbacks.pop(fd, None)
        self.paused.pop(fd, None)
        if (pending := self.connecting.pop(fd, None)) is not None:
            pending.cancel()

    def unregister(self, fd: int, events: int) -> str | None:
        """Watch a descriptor no longer, unless an object has the number by now. Returns what went
        wrong."""
        obj = self.objects.get(fd)
        if obj is None or obj.closed:
            try:
                (self.poller or self.open()).unregister(fd, events)
            except OSError as error:
                return self._refused(fd, error)
        return None

    def _refused(self, fd: int, error: OSError) -> str:
        """Note that a descriptor could not be unregistered; the reason in words, as an error that a
        caller keeps would keep the caller in turn, by its traceback. What a signal's handler raised
        goes on."""
        if by_handler(error):
            del error
            raise
        if self.entries_outlive_fds:
            self.stale_entries.add(fd)
        return str(error)

    def to_close(self) -> list[Handle]:
        """The handles that wait to be closed, in order."""
        return [sock for _, handles in list(self.leaving.values()) for sock in handles]

    # --- gone -------------------------------------------------------------------------------------

    def finish_leaving(self, handled: Callable[[Exception], bool]) -> None:
        """Close and forget all that is leaving: close(2) for each handle. An exception of a handle's
        `close` goes to `handled`. The first for which that is false, or a signal's handler's, is raised
        when all are closed."""
        first: list[BaseException] = []
        leaving, objects = self.leaving, self.objects
        while leaving:
            for fd, entry in leaving.copy().items():
                try:
                    obj, handles = entry
                    # An exception has kept `leave` from doing so. Who was made anew has another number,
                    # or the socket that was stolen from it.
                    if obj is not None and obj.fd == fd and (obj.closed or handles):
                        obj.closed = True
                        self._take_off(fd, obj)
                    if handles:
                        close_handle(fd, handles)
                    # Unless somebody has the number anew.
                    if fd in objects and (
                        objects[fd].closed or self.receivers[fd] is not objects[fd]
                    ):
                        del objects[fd]
                    if len(self.outer_batches) > 1:
                        self._drop_events(fd)
                    # A handle's `close` may have run the loop or reset it.
                    if fd in leaving and leaving[fd] is entry:
                        del leaving[fd]
                except Exception as error:
                    if not handled(error):
                        first = first or [error]
                except BaseException as error:
                    if not first or not isinstance(first[0], KeyboardInterrupt):
                        first = [error]
        if self.paused:  # They lacked a descriptor, and one may be free now.
            for listener in list(self.paused.values()):
                listener.begin_again()
        if first:
            raise first.pop()

    def remove_unknown(self, fd: int, state: int) -> None:
        """An event came for a descriptor that nobody here holds, and would come again in every wait.
        The descriptor is unregistered and closed, as in the original. Where it can't be unregistered,
        since the number belongs to nobody or to another file by now, the poller is renewed."""
        if fd in self.leaving or fd in self.objects:
            return
        what = f"{self.backend} returned fd {fd} with state {state}, of which nothing is known."
        if (trouble := self.unregister(fd, state)) is not None:
            warn("%s %s. opening a new poller.", what, trouble)
            self.renew_poller()
            return
        warn("%s removing.", what)
        close_fds((fd,))

    def forget(self) -> None:
        """Forget everything, and close the poller and the waker: close(2) for each descriptor."""
        for known in (
            *(self.objects, self.other_fds, self.pushed_back, self.readable),
            *(self.post_loop_callbacks, self.connecting, self.paused),
        ):
            known.clear()
        self.receivers[:] = [None] * len(self.receivers)
        with alone():  # Another thread may be registering the waker.
            self._drop_poller()
            if self.waker is not None:
                self.waker.close()
                self.waker = None

    # --- pushed-back data -------------------------------------------------------------------------

    def who_reads_pushed_back(self) -> Iterator[AnySocket]:
        """Who has pushed-back data and watches for reading, in the order of their first pieces. As in
        the original, who turns reading on meanwhile has his turn still, and not who is pushed back."""
        told, newest = -1, self.pushes
        turns: list[tuple[int, int]] = []
        self.turned_on = {*self.readable}  # A copy: a signal's handler may close one of them.
        while turns or self.turned_on:
            new, self.turned_on = self.turned_on, set()
            for fd in new:
                heappush(turns, (self.pushed_back.get(fd, 0), fd))
            number, fd = heappop(turns)
            obj = self.objects.get(fd)
            # One before may have closed it, or a signal's handler have come between the object and what
            # is noted of it here.
            if obj is None or obj.closed or not obj.read_push_back:
                self.readable.discard(fd)
            elif told < number <= newest and fd in self.readable:
                told = number
                yield obj

    # --- other fds --------------------------------------------------------------------------------

    def add_other_fds(self, fds: OtherFdMapping) -> None:
        """Watch descriptors that no object has for reading: all of `fds`, or none where one raises
        `OSError`."""
        added: list[int] = []
        try:
            for fd in fds:
                self._add_other_fd(fd, added)
            self.other_fds |= fds
        except BaseException as error:
            if not by_handler(error):
                del added[-1:]  # The one that was refused is not registered by us.
            for fd in added:
                if fd not in self.other_fds:
                    self.unregister(fd, POLLIN)
            raise

    def _add_other_fd(self, fd: int, added: list[int]) -> None:
        """Watch one, and note in `added` that it is to be unregistered if another fails."""
        # One that is watched already may have been closed, and its number be another's.
        if fd not in self.other_fds or not self.open().holds(fd, POLLIN):
            added += (fd,)
            self.register(fd, POLLIN)

    def replace_other_fds(self, fds: OtherFdMapping) -> None:
        """Watch these other fds and no others. Raises `OSError`, and then has done nothing."""
        try:
            self.add_other_fds(fds)
            self._drop_other_fds(fds)
        except BaseException as error:
            # These may be added already: then the rest is still to be done.
            if by_handler(error) and fds.items() <= self.other_fds.items():
                self._drop_other_fds(fds)
            raise

    def _drop_other_fds(self, kept: OtherFdMapping) -> None:
        for fd in [fd for fd in self.other_fds if fd not in kept]:
            self.something_due = True
            self.leaving.setdefault(fd, (None, []))
            self.unregister(fd, POLLIN)
            del self.other_fds[fd]

    # --- the poller -------------------------------------------------------------------------------

    def open(self) -> Poller:
        """The poller. At its first use it is opened, by epoll_create1(2), or kqueue(2) and fcntl(2),
        and what the registry knows is registered. Raises `OSError` (EMFILE, ENFILE, ENOMEM)."""
        if self.poller is not None:
            return self.poller
        with alone():
            self._close_pollers()
            poller = new_poller(self.backend)
            try:
                poller.open()
                self._drop_holder(poller.fileno())
                for fd, events in self._watched().items():
                    try:
                        poller.register(fd, events)
                    except OSError as error:
                        # Nothing is wrong with the descriptor: to open is to be tried again.
                        if error.errno in (ENOMEM, ENOSPC):
                            raise
                        complain(error, "%s")  # It was closed behind the loop's back.
                # Unless a signal's handler has opened one meanwhile.
                self.poller = opened = self.poller or poller
            finally:
                if self.poller is not poller:
                    self._to_be_closed += (poller,)
                    self._close_pollers()
        return opened

    def _watched(self) -> dict[int, int]:
        """What a new poller is to watch: fd -> event mask."""
        known = {
            fd: obj.event_watch for fd, obj in list(self.objects.items()) if still_has(obj, fd)
        }
        known |= dict.fromkeys(self.other_fds, POLLIN)
        if self.waker is not None:
            known[self.waker.fileno()] = POLLIN
        return known

    def renew_poller(self) -> None:
        """Close the poller, and with it the entries that can't be removed from it, and open another:
        in this order, as there may be no descriptor left for a second."""
        with alone():
            self._drop_poller()
            self.open()

    def _drop_poller(self) -> None:
        """Close the poller, and drop the batches in hand."""
        if self.poller is not None:
            for batch in (self.poller.batch, *self.outer_batches):
                batch.clear()
            self._to_be_closed += (self.poller,)
        self.poller = None
        self.something_due = True
        self.stale_entries.clear()
        self._close_pollers()

    def _close_pollers(self) -> None:
        while self._to_be_closed:
            try:
                self._to_be_closed[0].close()
            except OSError as error:
                complain(error, "close(%s): %s", self.backend)
            del self._to_be_closed[:1]

    # --- the waker, and what waits for a timer ----------------------------------------------------

    def open_waker(self) -> Waker:
        """The waker. At its first use, from whichever thread, it is made by pipe2(2), and its read end
        is registered. Raises `OSError` (EMFILE, ENFILE)."""
        from danga_raw._waker import Waker  # imports what most programs have no use for

        with alone():
            if self.waker is not None:  # Another thread has made it meanwhile.
                return self.waker
            waker = Waker()
            try:
                waker.open()
                lost = self._drop_holder(waker.fileno())
                self._make_room(waker.fileno())
                if self.poller is not None:
                    if lost and self.entries_outlive_fds:
                        self.stale_entries.add(waker.fileno())
                    self.poller.register(waker.fileno(), POLLIN)
                # Unless a signal's handler has made one meanwhile.
                self.waker = made = self.waker or waker
                if made is waker:
                    return waker
                self.unregister(waker.fileno(), POLLIN)
            except BaseException as error:
                # A signal's handler may have raised behind the registration.
                if by_handler(error) and self.poller is not None and waker.fileno() >= 0:
                    self.unregister(waker.fileno(), POLLIN)
                waker.close()
                raise
            waker.close()
            return made

    def woken(self, waker: Waker) -> None:
        """The waker has an event: take out what was written, by read(2). A poller that was to be
        renewed for the waker's number is renewed only here: another thread must not close the one
        that the loop waits on."""
        if waker.fileno() in self.stale_entries:
            self.renew_poller()
        waker.drain()

    def resume(self) -> None:
        """Begin again what an exception may have cut short that has left an earlier run: listeners
        that pause, and connects whose outcome is to be told."""
        for listener in list(self.paused.values()):
            listener.resume()
        for pending in list(self.connecting.values()):
            pending.resume()
