# With the socket full, corking waits in the queue with the data around it.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Teller->new($ours, "s");
    $s->put(fill(9500));
    $s->put(sub { $s->tcp_cork(1); $s->state });
    $s->put("corked");
    $s->put(sub { $s->tcp_cork(0); $s->state });
    batches(map { sub { peer_read($theirs, 65536) } } 1 .. 3);
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
