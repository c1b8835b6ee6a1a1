# The loop is run twice with a descriptor of somebody else.
use lib $ENV{STORIES};
use Story;

story {
    my ($reader, $writer) = ends_of_pipe();
    local $SIG{__WARN__} = sub { };
    my $any = Teller->new((pair())[0], "any");
    Danga::Socket->AddOtherFds(fileno($reader) => sub { note("other"); peer_read($reader, 10) });
    Danga::Socket->SetLoopTimeout(0);
    for my $run (1, 2) {
        note("run", $run);
        peer_write($writer, "x");
        batches(sub { });
        Danga::Socket->EventLoop;
    }
};
