# What becomes of the wait when the only timer is cancelled.
use lib $ENV{STORIES};
use Story;

story {
    clock(0);
    my $any = Teller->new((pair())[0], "any");
    my $timer = Danga::Socket->AddTimer(0.005, sub { note("never") });
    $timer->cancel;
    batches(sub { clock(6) }, sub { });
    Danga::Socket->SetLoopTimeout(20);
    Danga::Socket->EventLoop;
};
