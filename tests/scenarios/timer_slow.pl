# A timer whose callback takes its time, with another one pending.
use lib $ENV{STORIES};
use Story;

story {
    clock(0);
    my $any = Teller->new((pair())[0], "any");
    Danga::Socket->AddTimer(0, sub { note("slow"); clock(3.5) });
    Danga::Socket->AddTimer(0.0102, sub { note("next") });
    batches(sub { clock(8); Danga::Socket->SetLoopTimeout(0) }, sub { });
    Danga::Socket->EventLoop;
};
