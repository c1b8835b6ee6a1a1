# At the end of the stream a read gives "end", each time; without a close the hang-up comes again
# in each batch, and without a wish to read it comes alone.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s", read => sub { $_[0]->take(10); $_[0]->take(10) });
    $s->watch_read(1);
    peer_write($theirs, "bye");
    close($theirs);
    batches(sub { }, sub { $s->watch_read(0) }, sub { $s->close; $s->take(5) }, sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
