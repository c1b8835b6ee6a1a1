# Reset forgets all and closes the mechanism; what comes after it starts anew.
use lib $ENV{STORIES};
use Story;

story {
    my ($one, $peer_one) = pair();
    my ($two, $peer_two) = pair();
    my $a = Teller->new($one, "a", read => sub { $_[0]->take(10) });
    my $b = Teller->new($two, "b");
    $a->watch_read(1);
    Danga::Socket->AddTimer(5, sub { note("never") });
    Danga::Socket->SetLoopTimeout(5);
    batches(sub { });
    $b->close;
    peer_write($peer_one, "x");
    Danga::Socket->Reset;
    note("watched", Danga::Socket->WatchedSockets, "waiting", scalar @{[Danga::Socket->ToClose]});

    my ($three, $peer_three) = pair();
    my $c = Teller->new($three, "c", read => sub { $_[0]->take(10) });
    $c->watch_read(1);
    peer_write($peer_three, "y");
    batches(sub { });
    Danga::Socket->EventLoop;
};
