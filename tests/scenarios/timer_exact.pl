# A deadline that is a whole number of milliseconds away, to the last bit.
use lib $ENV{STORIES};
use Story;

story {
    clock(0);
    my $any = Teller->new((pair())[0], "any");
    Danga::Socket->AddTimer(0.125, sub { note("fired") });
    batches(sub { clock(62.5) },
            sub { clock(62.5); Danga::Socket->SetLoopTimeout(0) },
            sub { });
    Danga::Socket->EventLoop;
};
