"""What a loop watches, and the life cycle of a descriptor in it.

A descriptor passes through three states, which the sections of `Registry` follow:

* *registered*: the poller reports its events. `objects` or `other_fds` has the holder of its
  number, who gets the events. A number has one holder.
* *leaving*: its holder has closed it, given it away or taken it off the loop, and gets no more
  events. The current batch, which is what the last wait returned, may still contain one. Until that
  batch is done, close(2) is deferred and the entry in `objects` stays, so that the kernel can't
  give the number to somebody else, who would get that event.
* *gone*: the registry no longer knows the number.

A number may get a new holder while the old one is still here: a program has closed a descriptor
behind the loop's back and the kernel has reused the number, or a stolen socket is wrapped again in
the same batch. Then the old holder is dropped, together with the rest of any batch that contains
the number. No event is lost: events are level-triggered, and the next wait reports again what is
still true.
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
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
    """The object of a descriptor that is leaving, None for an other fd, and a list with the handle
    to close. The list is empty if there is none to close, and once it has been closed. It has more
    than one if objects from before a reset are closed whose number has been reused."""


LOOPS_OWN: Final = -1
"""The key of the loop's own post-loop callback; those of objects are under their fd."""


class Registry:
    """The descriptors of one loop, and the poller that watches them."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.entries_outlive_fds: Final = backend == "epoll"
        """True for epoll, which watches the open file and not the number: an entry survives
        close(2) while a dup or a forked child has the same file open."""
        self.needs_waker: Final = backend == "poll"
        """True for poll, which reads its table when a wait begins: what another thread adds during
        the wait has no effect until something else ends it."""
        self.poller: Poller | None = None
        """The poller while it is open."""
        self._to_be_closed: list[Poller] = []
        """Dropped pollers that have not been closed yet."""
        self.waker: Waker | None = None
        """Wakes the loop; made when first needed."""
        self.stale_entries: set[int] = set()
        """Numbers under which the poller may still have a file that was closed and could not be
        unregistered. It is renewed before such a number is registered again."""
        self.outer_batches: list[list[int]] = []
        """A handler may run the loop again. For each active run, the batch that was being
        dispatched when it began."""
        self.objects: dict[int, AnySocket] = {}
        """The objects by fd, including those that are leaving."""
        self.receivers: list[AnySocket | None] = []
        """The objects that are not leaving, indexed by fd. It duplicates `objects` because a list
        is faster: looking an object up in a dict costs a fortieth of a whole request."""
        self.other_fds: dict[int, OtherFdCallback] = {}
        """The callbacks of descriptors without an object, by fd."""
        self.leaving: dict[int, Leaving] = {}
        """What will be gone after the current batch, by fd, in the order in which it left."""
        self.something_due: bool = True
        """False if a turn only has to wait and dispatch: nothing is leaving, no pushed-back data is
        waiting, no `call_soon` is pending, no timer was cut short, `stop` was not called, and
        neither the poller nor profiling has changed. This one test saves 400 instructions."""
        # What few objects have, by fd, so that the others need no attribute for it:
        self.readable: dict[int, None] = {}  # has pushed-back data and watches for reading
        self.post_loop_callbacks: dict[int, PostLoopCallback] = {}
        self.connecting: dict[int, Connecting] = {}
        self.paused: dict[int, Listener] = {}  # could not get a descriptor for a connection

    # --- registered -------------------------------------------------------------------------------

    def register(self, fd: int, events: int, obj: AnySocket | None = None) -> None:
        """Watch a descriptor, for `obj` if it belongs to one. Raises `OSError` and changes nothing
        if that fails; EEXIST if the holder of the number still has the descriptor open."""
        if renewed := fd in self.stale_entries:
            self.renew_poller()
        try:
            try:
                (self.poller or self.open()).register(fd, events)
            except OSError as error:
                holder = self.objects.get(fd)
                if error.errno != EEXIST or holder is None or still_has(holder, fd):
                    raise
                # The holder has closed it, and the new one is a dup of the same file, or looks like
                # the same file to the poll backend, since both ends of a pipe have one inode.
                self.open().unregister(fd, holder.event_watch)
                self.open().register(fd, events)
            if fd in self.objects or fd in self.other_fds or fd in self.leaving:
                lost = self._drop_holder(fd, obj)
                if lost and self.entries_outlive_fds and not renewed:
                    # The old file's entry may still be there, and its events would look like the
                    # new one's.
                    self.renew_poller()
                    self.open().register(fd, events)
            if fd >= len(self.receivers):  # Mostly false, and the call costs 1,300 instructions.
                self._make_room(fd)
            if obj is not None:
                self.objects[fd] = obj
                self.receivers[fd] = obj
        except BaseException as error:
            if by_handler(error) and obj is not None and fd not in self.other_fds:
                self.unregister(fd, events)
            raise

    def _drop_holder(self, fd: int, new: AnySocket | None = None) -> bool:
        """Drop the holder of `fd`, which is another descriptor now: that of the object `new`, or
        one of the package's own. True if the old one was closed behind the loop's back."""
        self._drop_events(fd)
        holder = self.objects.get(fd)
        left, handles = self.leaving.get(fd, (None, []))
        lost = bool(handles)
        for each in handles:
            # Unless `new` wraps the same handle, and will close it.
            if new is None or each is not new.sock:
                disown(each, fd)
        del handles[:]
        # An exception has interrupted `leave`.
        if left is not None and left.closed and left.fd == fd:
            left.let_go()
        # An object that left and was initialized again has another descriptor, or is `new` itself.
        if holder is not None and holder is not new and self.receivers[fd] is holder:
            holder.closed = True
            self.receivers[fd] = None
            disown(holder.sock, fd)
            holder.let_go()
            self._forget_callbacks(fd)
            warn("fd %d was closed behind the back of %s", fd, type(holder).__name__)
            lost = True
        self.objects.pop(fd, None)
        self.leaving.pop(fd, None)  # Behind it: if interrupted, `finish_leaving` does the rest.
        return self.other_fds.pop(fd, None) is not None or lost

    def _drop_events(self, fd: int) -> None:
        """Drop the rest of each batch that contains `fd`."""
        for batch in (*self.outer_batches[1:], [] if self.poller is None else self.poller.batch):
            if fd in batch:
                batch.clear()

    def _make_room(self, fd: int) -> None:
        """Make `receivers` long enough for `fd`."""
        self.receivers += [None] * (fd + 1 - len(self.receivers))

    def undo_modify(self, obj: AnySocket, fd: int, old: int, new: int) -> None:
        """Restore the old mask after a signal's handler has raised, when it is unknown whether the
        poller already has the new one."""
        obj.event_watch = old
        try:
            self.open().modify(fd, new, old)
        except OSError:
            pass

    # --- leaving ----------------------------------------------------------------------------------

    def leave(self, obj: AnySocket, sock: Handle | None) -> bool:
        """Let an object leave, and close `sock` after the batch. False if it has already left."""
        # Restored below: a signal's handler may close an object between a failing call and the
        # reading of its errno.
        number = get_errno()
        handles = () if sock is None else (sock,)
        fd, receivers, objects = obj.fd, self.receivers, self.objects
        own = fd in objects and receivers[fd] is obj
        # An object that was refused must not take the place of the holder.
        listed = own or sock is not None or fd not in objects
        # Not empty if an object from before a reset has the number too.
        waiting = self.leaving[fd][1] if fd in self.leaving else []
        # No call and no taken jump until `closed` is set, or a signal's handler could also let the
        # object leave.
        if fd is not None and not obj.closed:
            # If a handler raises after this, `finish_leaving` does the rest.
            self.something_due = True
            if listed:
                self.leaving[fd] = obj, waiting
            waiting += handles
            obj.closed = True
            if own:
                receivers[fd] = None
            corked = obj.corked
            trouble = self._take_off(fd, obj)
            # A successful epoll_ctl(2) leaves errno alone, and setting it costs a quarter of that.
            if corked or trouble is not None or not self.entries_outlive_fds:
                set_errno(number)
            if trouble is not None:
                obj.dump_error(trouble)
            return True
        return False

    def _take_off(self, fd: int, obj: AnySocket) -> str | None:
        """Uncork and unregister an object that is leaving, and drop what it holds. Returns what
        went wrong. May be repeated."""
        trouble = None
        # After a reset the loop does not know this object, and the number may belong to another.
        if obj.corked and self.objects.get(fd, obj) is obj:
            try:
                set_cork(fd, False)  # Sends what is still held back.
            except OSError as error:
                complain(error, "%s")
            obj.corked = False
        if self.objects.get(fd) is obj:
            try:
                (self.poller or self.open()).unregister(fd, obj.event_watch)
            except OSError as error:
                trouble = self._refused(fd, error)
            if self.readable or self.post_loop_callbacks or self.paused or self.connecting:
                self._forget_callbacks(fd)
        obj.let_go()
        return trouble

    def _forget_callbacks(self, fd: int) -> None:
        self.readable.pop(fd, None)
        self.post_loop_callbacks.pop(fd, None)
        self.paused.pop(fd, None)
        if (pending := self.connecting.pop(fd, None)) is not None:
            pending.cancel()

    def unregister(self, fd: int, events: int) -> str | None:
        """Stop watching a number, unless an object has it now. Returns what went wrong."""
        obj = self.objects.get(fd)
        if obj is None or obj.closed:
            try:
                (self.poller or self.open()).unregister(fd, events)
            except OSError as error:
                return self._refused(fd, error)
        return None

    def _refused(self, fd: int, error: OSError) -> str:
        """Note that a descriptor could not be unregistered, and return the reason as text: an
        exception kept by a caller would keep the caller alive through its traceback. Reraises what
        a signal's handler raised."""
        if by_handler(error):
            del error
            raise
        self.stale_entries.add(fd)
        return str(error)

    def to_close(self) -> list[Handle]:
        """The handles waiting to be closed, in order."""
        return [sock for _, handles in list(self.leaving.values()) for sock in handles]

    # --- gone -------------------------------------------------------------------------------------

    def finish_leaving(self, handled: Callable[[Exception], bool]) -> None:
        """Close and forget everything that is leaving: close(2) for each handle. An exception from
        a handle's `close` is passed to `handled`. The first one for which that returns false, or
        that a signal's handler raised, is raised after all are closed."""
        first: list[BaseException] = []
        leaving, objects = self.leaving, self.objects
        while leaving:
            for fd, entry in leaving.copy().items():
                try:
                    obj, handles = entry
                    # An exception has interrupted `leave`. An object that was initialized again has
                    # another number, or the socket that was stolen from it.
                    if obj is not None and obj.fd == fd and (obj.closed or handles):
                        obj.closed = True
                        self._take_off(fd, obj)
                    if handles:
                        close_handle(fd, handles)
                    if len(self.outer_batches) > 1:
                        self._drop_events(fd)
                    # Unless the number has a new holder.
                    gone = fd in objects and (
                        objects[fd].closed or self.receivers[fd] is not objects[fd]
                    )
                    # The handle's `close` may have run or reset the loop.
                    if not handles and fd in leaving and leaving[fd] is entry:
                        del leaving[fd]
                        if gone:
                            del objects[fd]
                except Exception as error:
                    if not handled(error):
                        first = first or [error]
                except BaseException as error:
                    if not first or not isinstance(first[0], KeyboardInterrupt):
                        first = [error]
        if self.paused:  # They had no descriptor left, and one may be free now.
            for listener in list(self.paused.values()):
                listener.begin_again()
        if first:
            raise first.pop()

    def remove_unknown(self, fd: int, state: int) -> None:
        """Handle an event for a descriptor without a holder, which every wait would report again.
        Unregisters and closes the descriptor, as the original does. If it can't be unregistered,
        because the number is free or belongs to another file now, renews the poller."""
        if fd in self.leaving:
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
            *(self.objects, self.other_fds, self.readable),
            *(self.post_loop_callbacks, self.connecting, self.paused),
        ):
            known.clear()
        self.receivers[:] = [None] * len(self.receivers)
        with alone:  # Another thread may be registering the waker.
            self._drop_poller()
            if self.waker is not None:
                self.waker.close()
                self.waker = None

    # --- other fds --------------------------------------------------------------------------------

    def add_other_fds(self, fds: OtherFdMapping) -> None:
        """Watch descriptors without an object for reading: all of `fds`, or none if one raises
        `OSError`."""
        added: list[int] = []
        try:
            for fd, callback in fds.items():
                self._add_other_fd(fd, callback, added)
            self.other_fds |= fds
        except BaseException as error:
            if not by_handler(error):
                del added[-1:]  # The one that was refused is not registered.
            for fd in added:
                self.other_fds.pop(fd, None)
                self.unregister(fd, POLLIN)
            raise

    def _add_other_fd(self, fd: int, callback: OtherFdCallback, added: list[int]) -> None:
        """Watch one, and note it in `added`, to be unregistered if another one fails. It has its
        callback at once: another one may renew the poller, which then registers this one again."""
        # One that is watched already may have been closed, and its number reused.
        if fd not in self.other_fds or not self.open().holds(fd, POLLIN):
            added += (fd,)
            self.register(fd, POLLIN)
            self.other_fds[fd] = callback

    def replace_other_fds(self, fds: OtherFdMapping) -> None:
        """Watch these other fds and no others. Raises `OSError`, and then changes nothing."""
        try:
            self.add_other_fds(fds)
            self._drop_other_fds(fds)
        except BaseException as error:
            # If these have been added, the others still have to be dropped.
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
        """The poller. On first use, opens it by epoll_create1(2), or kqueue(2) and fcntl(2), and
        registers everything known. Raises `OSError` (EMFILE, ENFILE, ENOMEM)."""
        if self.poller is not None:
            return self.poller
        with alone:
            self._close_pollers()
            poller = new_poller(self.backend)
            try:
                poller.open()
                self._drop_holder(poller.fileno())
                for fd, events in self._watched().items():
                    try:
                        poller.register(fd, events)
                    except OSError as error:
                        # Nothing is wrong with the descriptor; opening can be tried again.
                        if error.errno in (ENOMEM, ENOSPC):
                            raise
                        complain(error, "%s")  # It was closed behind the loop's back.
                # Unless a signal's handler has just opened one.
                self.poller = opened = self.poller or poller
            finally:
                if self.poller is not poller:
                    self._to_be_closed += (poller,)
                    self._close_pollers()
        return opened

    def _watched(self) -> dict[int, int]:
        """What a new poller has to watch: fd -> event mask."""
        known = {
            fd: obj.event_watch for fd, obj in list(self.objects.items()) if still_has(obj, fd)
        }
        known |= dict.fromkeys(self.other_fds, POLLIN)
        if self.waker is not None:
            known[self.waker.fileno()] = POLLIN
        return known

    def renew_poller(self) -> None:
        """Close the poller, together with the entries that can't be removed from it, and open a new
        one: in this order, because there may be no descriptor left for a second."""
        with alone:
            self._drop_poller()
            self.open()

    def _drop_poller(self) -> None:
        """Close the poller, and drop all batches."""
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
        """The waker. On first use, from any thread, makes it by pipe2(2) and registers its read
        end. Raises `OSError` (EMFILE, ENFILE)."""
        from danga_raw._waker import Waker  # imports modules that most programs don't need

        with alone:
            if self.waker is not None:  # Another thread has just made it.
                return self.waker
            waker = Waker()
            try:
                waker.open()
                lost = self._drop_holder(waker.fileno())
                self._make_room(waker.fileno())
                if self.poller is not None:
                    if lost:
                        self.stale_entries.add(waker.fileno())
                    self.poller.register(waker.fileno(), POLLIN)
                # Unless a signal's handler has just made one.
                self.waker = made = self.waker or waker
                if made is waker:
                    return waker
                self.unregister(waker.fileno(), POLLIN)
            except BaseException as error:
                # A signal's handler may have raised after the registration.
                if by_handler(error) and self.poller is not None and waker.fileno() >= 0:
                    self.unregister(waker.fileno(), POLLIN)
                waker.close()
                raise
            waker.close()
            return made

    def woken(self, waker: Waker) -> None:
        """Handle an event of the waker: read(2) what was written. If the poller has to be renewed
        because of the waker's number, that is done here and not in `open_waker`: another thread
        must not close the poller that the loop is waiting on."""
        if waker.fileno() in self.stale_entries:
            self.renew_poller()
        waker.drain()

    def resume(self) -> None:
        """Resume what an exception that left an earlier run may have interrupted: paused listeners,
        and connects whose outcome has not been reported."""
        for listener in list(self.paused.values()):
            listener.resume()
        for pending in list(self.connecting.values()):
            pending.resume()
