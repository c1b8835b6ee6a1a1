# An object that is made anew, on another socket when it has closed its own, and on that which was
# stolen from it.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my ($next, $peer) = pair();
    my $s;
    $s = Teller->new($ours, "it", read => sub {
        my $got = $s->take(10);
        my $handle = $next;
        if ($got) {
            return if $$got ne "once more";
            $handle = $s->steal_socket;
        } else {
            $s->close("end");
        }
        $s->Danga::Socket::new($handle);
        $s->watch_read(1);
    });
    $s->watch_read(1);
    shutdown($theirs, 1);
    local $SIG{__WARN__} = sub { };    # it warns that the map's entry is replaced
    batches(sub { peer_write($peer, "hello") }, sub { peer_write($peer, "once more") },
            sub { peer_write($peer, "again") }, sub { $s->state });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
