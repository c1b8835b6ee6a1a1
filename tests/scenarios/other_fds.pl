# A descriptor of somebody else: its callback gets the state, and it is read by plain calls.
use lib $ENV{STORIES};
use Story;

story {
    my ($reader, $writer) = ends_of_pipe();
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s", read => sub { $_[0]->take(10) });
    $s->watch_read(1);
    Danga::Socket->AddOtherFds(fileno($reader) => sub {
        note("other", $_[0]);
        peer_read($reader, 10);
    });
    peer_write($writer, "one");
    batches(sub { peer_write($theirs, "x"); peer_write($writer, "two") },
            sub { },
            sub { close($writer) },
            sub { note("others", scalar keys %{Danga::Socket->OtherFds}) });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
