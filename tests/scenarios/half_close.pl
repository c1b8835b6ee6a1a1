# A peer that only shuts its sending side: readable with nothing to read, and still writable.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s", read => sub {
        $_[0]->take(10);
        $_[0]->put("answer");
        $_[0]->close;
    });
    $s->watch_read(1);
    shutdown($theirs, 1);
    batches(sub { peer_read($theirs, 20) });
    Danga::Socket->EventLoop;
};
