# A descriptor number that comes back after a close belongs to the new object alone.
use lib $ENV{STORIES};
use Story;

story {
    my ($one, $peer_one) = pair();
    my $a = Teller->new($one, "a", read => sub { $_[0]->take(10); $_[0]->close });
    $a->watch_read(1);
    peer_write($peer_one, "to a");
    my ($b, $two, $peer_two);
    batches(sub {
        ($two, $peer_two) = pair();
        $b = Teller->new($two, "b", read => sub { $_[0]->take(10) });
        $b->watch_read(1);
        peer_write($peer_two, "to b");
    }, sub { $a->watch_write(1); $a->put("x"); $a->close }, sub { $b->close }, sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
