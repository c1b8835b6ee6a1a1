# Writing to a peer that is gone closes the object with the reason EPIPE, from a write of its own
# and from the queue.
use lib $ENV{STORIES};
use Story;

story {
    my ($one, $peer_one) = pair();
    my ($two, $peer_two) = pair(4608);
    my $a = Teller->new($one, "a");
    my $b = Teller->new($two, "b", hup => sub { $_[0]->put("too late") });
    $b->put(fill(9500));
    $b->put("queued");
    close($peer_one);
    $a->put("into the void");
    $a->put("again");
    $a->state;
    batches(sub { peer_read($peer_two, 65536); close($peer_two) }, sub { $b->state }, sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
