# Asking for the mechanism, before there is anything to watch.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    note("epoll", Danga::Socket->HaveEpoll ? "yes" : "no");
    peer_write($theirs, "x");
    my $s = Teller->new($ours, "s", read => sub { $_[0]->take(10) });
    $s->watch_read(1);
    batches(sub { });
    Danga::Socket->EventLoop;
};
