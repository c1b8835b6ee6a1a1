# A read asks for what the caller asked for, up to 1 MiB; no data yet is an empty read.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s", read => sub {
        my $s = shift;
        $s->take(4);
        $s->take(1048575);
        $s->take(1048576);
        $s->take(1048577);
        $s->take(50_000_000);
        $s->take(1);
    });
    $s->watch_read(1);
    peer_write($theirs, "abcdefgh");
    batches(sub { peer_write($theirs, fill(5000)) }, sub { });
    Danga::Socket->EventLoop;
};
