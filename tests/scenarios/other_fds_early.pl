# A descriptor of somebody else that is added before the loop runs.
use lib $ENV{STORIES};
use Story;

story {
    my ($reader, $writer) = ends_of_pipe();
    my $any = Teller->new((pair())[0], "any");
    Danga::Socket->AddOtherFds(fileno($reader) => sub { note("other"); peer_read($reader, 10) });
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s");
    peer_write($writer, "x");
    batches(sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
