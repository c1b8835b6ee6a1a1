# A close before the loop, in a timer or in a post-loop callback waits for the end of the next
# batch; one in a handler for the end of its own.
use lib $ENV{STORIES};
use Story;

story {
    my ($one, $peer_one) = pair();
    my ($two, $peer_two) = pair();
    my ($three, $peer_three) = pair();
    my $a = Teller->new($one, "a");
    my $b = Teller->new($two, "b");
    my $c = Teller->new($three, "c", read => sub { $_[0]->close });
    $c->watch_read(1);
    $a->close;
    note("waiting", scalar @{[Danga::Socket->ToClose]});
    batches(sub { $b->close; note("waiting", scalar @{[Danga::Socket->ToClose]}) },
            sub { peer_write($peer_three, "x") },
            sub { note("waiting", scalar @{[Danga::Socket->ToClose]}) });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
