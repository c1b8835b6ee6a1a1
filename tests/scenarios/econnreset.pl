# A reset by the peer reaches whoever writes or reads first: the write closes the object with the
# reason ECONNRESET, the read ends.
use lib $ENV{STORIES};
use Story;

story {
    my ($one, $peer_one) = tcp_pair();
    my ($two, $peer_two) = tcp_pair();
    my $a = Teller->new($one, "a", read => sub { $_[0]->put("x") });
    my $b = Teller->new($two, "b", read => sub { $_[0]->take(10); $_[0]->take(10) },
                        hup => sub { $_[0]->close("hung up") });
    $a->watch_read(1);
    reset_peer($peer_one);
    batches(sub { $b->watch_read(1); reset_peer($peer_two) }, sub { });
    Danga::Socket->EventLoop;
};
