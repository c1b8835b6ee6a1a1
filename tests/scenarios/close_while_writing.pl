# A close drops what is queued; the dead object says that its writes went out.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Teller->new($ours, "s");
    $s->put(fill(20000));
    $s->put(sub { note("never run") });
    batches(sub { peer_read($theirs, 65536); $s->close; $s->put("after"); $s->put(undef) },
            sub { note("to close", scalar @{[Danga::Socket->ToClose]}); peer_read($theirs, 10) },
            sub { $s->close });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
