# Two objects are ready in one batch and the first closes the second: the second hears nothing,
# and both descriptors are closed after the batch, in the order of closing.
use lib $ENV{STORIES};
use Story;

story {
    my ($one, $peer_one) = pair();
    my ($two, $peer_two) = pair();
    my ($a, $b);
    $a = Teller->new($one, "a", read => sub { $b->close; $a->take(10); $a->close });
    $b = Teller->new($two, "b", read => sub { $a->close; $b->take(10); $b->close });
    $a->watch_read(1);
    $b->watch_read(1);
    peer_write($peer_two, "to b");
    peer_write($peer_one, "to a");
    batches(sub { note("still mapped", scalar Danga::Socket->WatchedSockets) }, sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
