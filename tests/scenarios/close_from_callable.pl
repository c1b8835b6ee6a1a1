# A queued callable that closes its own socket ends the write there.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Teller->new($ours, "s");
    $s->put(fill(9500));
    $s->put("tail");
    $s->put(sub { note("closing"); $s->close("done") });
    $s->put("never sent");
    $s->put(sub { note("never run") });
    batches(map { sub { peer_read($theirs, 65536) } } 1 .. 4);
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
