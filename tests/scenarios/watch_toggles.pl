# Asking for what is watched already makes no call; asking for a change makes one.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s");
    $s->watch_read(1);
    $s->watch_read(1);
    $s->watch_write(1);
    $s->watch_write(1);
    $s->watch_read(0);
    $s->watch_read(0);
    $s->watch_write(0);
    $s->watch_write(0);
    $s->watch_write(1);
    $s->watch_read(1);
    $s->state;
    batches(sub { $s->watch_write(0); peer_write($theirs, "x") },
            sub { $s->close; $s->watch_read(1); $s->watch_write(1); $s->watch_read(0) },
            sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
