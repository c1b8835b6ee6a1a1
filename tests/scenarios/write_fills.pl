# A write that fills the socket is queued and goes on as the peer reads, with one watch begun and
# one dropped. A partial write is not tried again at once; a write that finds no room is.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Teller->new($ours, "s");
    my $data = fill(20000);
    $s->put($data);
    $s->state;
    $s->put("more");
    $s->state;
    my @steps = map { sub { peer_read($theirs, 65536); $s->state } } 1 .. 4;
    batches(@steps);
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
    $s->put("and after");
    $s->state;
};
