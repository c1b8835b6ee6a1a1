# Post-loop callbacks: the object's first, then the global one; a false one ends the loop and the
# rest are not asked. Closing the object forgets its own.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s");
    my ($own, $global) = (3, 2);
    $s->SetPostLoopCallback(sub { note("own", $own); return --$own });
    Danga::Socket->SetPostLoopCallback(sub { note("global", $global); return --$global });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
    note("ended by the global one");
    $global = 5;
    Danga::Socket->EventLoop;
    note("ended by its own");
    $own = 5;
    $s->SetPostLoopCallback(undef);
    $global = 2;
    Danga::Socket->EventLoop;
    $s->SetPostLoopCallback(sub { note("own", $own); return --$own });
    $s->close;
    $global = 2;
    Danga::Socket->EventLoop;
};
