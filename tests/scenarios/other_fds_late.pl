# A descriptor of somebody else that is added while the loop runs, which then runs again.
use lib $ENV{STORIES};
use Story;

story {
    my ($reader, $writer) = ends_of_pipe();
    my $any = Teller->new((pair())[0], "any");
    peer_write($writer, "x");
    my $other = sub { note("other"); peer_read($reader, 10) };
    batches(sub { Danga::Socket->AddOtherFds(fileno($reader) => $other) }, sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
    note("again");
    batches(sub { peer_write($writer, "y") }, sub { });
    Danga::Socket->EventLoop;
};
