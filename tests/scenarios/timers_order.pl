# Timers fire by time, equal times in the order they were added; what a timer adds takes its place
# among those that are still to run.
use lib $ENV{STORIES};
use Story;

story {
    clock(0);
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s", read => sub { $_[0]->take(10) });
    $s->watch_read(1);
    my $add = sub {
        my ($seconds, $what, $then) = @_;
        Danga::Socket->AddTimer($seconds, sub { note("timer", $what); $then->() if $then });
    };
    $add->(0.003, "c");
    $add->(0.002, "b1");
    $add->(0.002, "b2", sub { clock(0.01); $add->(0, "added by b2") });
    $add->(0.001, "a", sub { peer_write($theirs, "from a") });
    $add->(0.002, "b3");
    $add->(0, "at once");
    $add->(0.0205, "last");
    batches((sub { clock(1.25) }) x 5,
            sub { clock(20); Danga::Socket->SetLoopTimeout(0) },
            sub { });
    Danga::Socket->EventLoop;
};
