# A stolen socket leaves epoll but stays open, and a new object can have it at once.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $second;
    my $first = Teller->new($ours, "first", read => sub {
        my $s = shift;
        $s->take(3);
        my $handle = $s->steal_socket;
        $s->take(3);
        $s->put("to nobody");
        $s->watch_read(1);
        note("stolen twice", defined $s->steal_socket ? "yes" : "no");
        $second = Teller->new($handle, "second", read => sub { $_[0]->take(10) });
        $second->watch_read(1);
        $second->put("hello");
    });
    $first->watch_read(1);
    peer_write($theirs, "abcdef");
    local $SIG{__WARN__} = sub { };    # it warns that the map's entry is replaced
    batches(sub { peer_read($theirs, 10) }, sub { $second->close }, sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
