# The wait is a whole number of milliseconds past the deadline, and the lower of it and the loop
# timeout, where that is not -1.
use lib $ENV{STORIES};
use Story;

story {
    clock(0);
    my $any = Teller->new((pair())[0], "any");
    my $timer = sub { Danga::Socket->AddTimer(shift, sub { note("fired") }) };
    $timer->(0.0041);
    batches(sub { clock(0.05) },
            sub { clock(0.75) },
            sub { clock(3.2) },
            sub { clock(0.2); $timer->(0.005) },
            sub { clock(0.5); Danga::Socket->SetLoopTimeout(2) },
            sub { Danga::Socket->SetLoopTimeout(50) },
            sub { Danga::Socket->SetLoopTimeout(0) },
            sub { clock(3.75); Danga::Socket->SetLoopTimeout(1) },
            sub { clock(10); },
            sub { Danga::Socket->SetLoopTimeout(-1); $timer->(0.00000001) },
            sub { clock(1); Danga::Socket->SetLoopTimeout(0) },
            sub { });
    Danga::Socket->EventLoop;
};
