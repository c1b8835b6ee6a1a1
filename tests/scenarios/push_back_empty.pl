# An empty piece that was pushed back is read as one, without a look at the socket.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s", read => sub { $_[0]->take(10) });
    $s->watch_read(1);
    peer_write($theirs, "x");
    batches(sub { $s->push_back_read(""); $s->push_back_read("after") },
            sub { peer_write($theirs, "y") },
            sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
