# Any other error of the wait.
# inject epoll_wait:error=EINVAL:when=2
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s", read => sub { $_[0]->take(10) });
    $s->watch_read(1);
    peer_write($theirs, "x");
    batches(sub { peer_write($theirs, "y") }, sub { note("went on") }, sub { });
    eval { Danga::Socket->EventLoop };
    note("raised") if $@;
};
