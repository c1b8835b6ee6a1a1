# An empty string is a write of no bytes; in a queue of nothing but that, nothing is queued.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Teller->new($ours, "s");
    $s->put("");
    $s->put(undef);
    $s->put(fill(9500));
    $s->put("");
    $s->state;
    $s->put("tail");
    $s->put("");
    $s->state;
    batches(map { sub { peer_read($theirs, 65536); $s->state } } 1 .. 3);
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
