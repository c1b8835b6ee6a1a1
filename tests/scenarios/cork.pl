# Corking around queued data: the option is set once each way, also from queued callables, and a
# close while corked uncorks before it leaves epoll.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = tcp_pair();
    my $s = Teller->new($ours, "s");
    $s->tcp_cork(0);
    $s->tcp_cork(1);
    $s->tcp_cork(1);
    $s->put("header ");
    $s->put(sub { note("between"); $s->tcp_cork(1) });
    $s->put("body");
    $s->put(sub { $s->tcp_cork(0); $s->state });
    $s->tcp_cork(0);
    batches(sub { $s->tcp_cork(1); $s->put("last"); $s->close; $s->tcp_cork(1); $s->tcp_cork(0) },
            sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
