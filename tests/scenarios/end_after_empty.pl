# The end of the stream, read after an empty read: of the same object before, and of another one
# just then in the same batch.
use lib $ENV{STORIES};
use Story;

story {
    my ($one, $peer_one) = pair();
    my ($two, $peer_two) = pair();
    my @drain = (read => sub { $_[0]->take(10); $_[0]->take(10) });
    my $a = Teller->new($one, "a", @drain);
    my $b = Teller->new($two, "b", @drain);
    $_->watch_read(1) for $a, $b;
    peer_write($peer_one, "data");
    batches(sub { shutdown($peer_one, 1) },
            sub { $a->close; peer_write($peer_two, "data") },
            sub { shutdown($peer_two, 1) },
            sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
    my ($three, $peer_three) = pair();
    my ($four, $peer_four) = pair();
    my $c = Teller->new($three, "c", @drain);
    my $d = Teller->new($four, "d", @drain);
    $_->watch_read(1) for $c, $d;
    peer_write($peer_three, "data");
    shutdown($peer_four, 1);
    $b->close;
    batches(sub { $_->close for $c, $d }, sub { });
    Danga::Socket->EventLoop;
};
