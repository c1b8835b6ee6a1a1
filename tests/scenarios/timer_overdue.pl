# A timer adds one that is due already.
use lib $ENV{STORIES};
use Story;

story {
    clock(0);
    my $any = Teller->new((pair())[0], "any");
    my $say = sub { my $what = shift; sub { note("timer", $what) } };
    Danga::Socket->AddTimer(0.001, sub {
        note("timer one");
        Danga::Socket->AddTimer(-1, $say->("overdue"));
    });
    Danga::Socket->AddTimer(0.001, $say->("two"));
    batches(sub { clock(1.5); Danga::Socket->SetLoopTimeout(0) }, sub { }, sub { });
    Danga::Socket->EventLoop;
};
