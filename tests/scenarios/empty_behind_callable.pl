# A callable that writes while nothing but an empty string is queued behind it.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Teller->new($ours, "s");
    $s->put(fill(9500));
    $s->put(sub { $s->state; $s->put("written"); $s->state });
    $s->put("");
    batches(map { sub { peer_read($theirs, 65536) } } 1 .. 3);
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
    $s->state;
};
