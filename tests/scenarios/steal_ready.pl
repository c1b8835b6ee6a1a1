# An object whose socket is stolen while its event waits in the batch hears nothing.
use lib $ENV{STORIES};
use Story;

story {
    my ($one, $peer_one) = pair();
    my ($two, $peer_two) = pair();
    my ($a, $b, $handle);
    my $steal = sub { my $other = shift; $handle ||= $other->steal_socket };
    $a = Teller->new($one, "a", read => sub { $a->take(10); $steal->($b) });
    $b = Teller->new($two, "b", read => sub { $b->take(10); $steal->($a) });
    $_->watch_read(1) for $a, $b;
    peer_write($peer_one, "to a");
    peer_write($peer_two, "to b");
    batches(sub { }, sub { peer_write($peer_one, "more for a"); peer_write($peer_two, "for b") },
            sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
