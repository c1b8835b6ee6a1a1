# A socket that can't be corked is asked each time, since it is never taken for corked.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s");
    $s->tcp_cork(0);
    $s->tcp_cork(1);
    $s->tcp_cork(1);
    $s->state;
    $s->tcp_cork(0);
    $s->put("data");
    $s->tcp_cork(1);
    $s->close;
    batches(sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
