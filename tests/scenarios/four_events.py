# All that is ready on one descriptor is told in the order read, write, err, hup; a close in
# between keeps the rest quiet.
from danga_raw import Socket
from tests.scenarios.story import Teller, batches, pair, story


def close(s: Teller) -> None:
    s.close()


def nothing(s: Teller) -> None:
    pass


def tell() -> None:
    peers = []
    for closes_in in range(5):
        ours, theirs = pair()
        on = [close if place == closes_in else nothing for place in range(1, 5)]
        s = Teller(ours, f"s{closes_in}", read=on[0], write=on[1], err=on[2], hup=on[3])
        s.watch_read(True)
        s.watch_write(True)
        # A peer that closes with data unread makes an error of the hang-up.
        s.put(b"unread")
        peers.append(theirs)
    for peer in peers:
        peer.close()
    batches(iter(()))
    Socket.SetLoopTimeout(0)
    Socket.EventLoop()


story(tell)
