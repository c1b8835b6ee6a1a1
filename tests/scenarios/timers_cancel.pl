# A cancelled timer does not fire, but one that is alone in the list is still waited for; timers
# cancel others of the same moment, and cancelling what has fired is nothing.
use lib $ENV{STORIES};
use Story;

story {
    clock(0);
    my $any = Teller->new((pair())[0], "any");
    my $say = sub { my $what = shift; sub { note("timer", $what) } };
    my $third;
    my $first = Danga::Socket->AddTimer(0.002, $say->("first"));
    my $second = Danga::Socket->AddTimer(0.002, sub { note("second"); $third->cancel; });
    $third = Danga::Socket->AddTimer(0.002, $say->("third"));
    my $fourth = Danga::Socket->AddTimer(0.006, $say->("fourth"));
    $first->cancel;
    $first->cancel;
    batches(sub { clock(2.5) },
            sub { $second->cancel; clock(4) },
            sub { },
            sub { });
    my $live = Danga::Socket->AddTimer(0.02, $say->("far"));
    Danga::Socket->SetLoopTimeout(3);
    Danga::Socket->EventLoop;
};
