# A wait that a signal ends is a batch without events.
# inject epoll_wait:error=EINTR:when=2
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s", read => sub { $_[0]->take(10) });
    $s->watch_read(1);
    peer_write($theirs, "x");
    batches(sub { peer_write($theirs, "y") }, sub { note("nothing was read") }, sub { });
    Danga::Socket->EventLoop;
};
