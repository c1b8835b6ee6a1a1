# A descriptor that is taken away while the loop runs, and then has data.
use lib $ENV{STORIES};
use Story;

story {
    my ($reader, $writer) = ends_of_pipe();
    local $SIG{__WARN__} = sub { };
    my $any = Teller->new((pair())[0], "any");
    Danga::Socket->AddOtherFds(fileno($reader) => sub { note("other"); peer_read($reader, 10) });
    batches(sub { %{Danga::Socket->OtherFds} = (); peer_write($writer, "x") }, sub { }, sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
