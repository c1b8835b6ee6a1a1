# Timers by the machine's own clock.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s", read => sub { $_[0]->take(10) });
    $s->watch_read(1);
    Danga::Socket->AddTimer(3600, sub { note("never") });
    Danga::Socket->AddTimer(0, sub { note("at once"); peer_write($theirs, "x") });
    batches(sub { peer_write($theirs, "y") }, sub { });
    Danga::Socket->EventLoop;
};
