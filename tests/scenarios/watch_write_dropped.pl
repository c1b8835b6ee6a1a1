# A watch that write() began and the class dropped: the queue waits until it is kicked.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Teller->new($ours, "s");
    $s->put(fill(20000));
    $s->watch_write(0);
    $s->state;
    batches(sub { peer_read($theirs, 65536) },
            sub { $s->put("more"); $s->put(undef); $s->state },
            sub { peer_read($theirs, 65536) },
            sub { peer_read($theirs, 65536); $s->state });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
