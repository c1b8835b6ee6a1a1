# The loop timeout goes to epoll_wait as it is: -1 waits for an event, 0 returns at once, and
# other numbers are milliseconds.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s", read => sub { $_[0]->take(10) });
    $s->watch_read(1);
    peer_write($theirs, "x");
    batches(sub { Danga::Socket->SetLoopTimeout(0) },
            sub { Danga::Socket->SetLoopTimeout(7) },
            sub { Danga::Socket->SetLoopTimeout(60_000); peer_write($theirs, "y") },
            sub { Danga::Socket->SetLoopTimeout(-1); peer_write($theirs, "z") },
            sub { });
    Danga::Socket->EventLoop;
};
