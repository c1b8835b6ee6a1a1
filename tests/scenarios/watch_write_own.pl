# A watch for writing that the class itself asked for is left alone by write(); one that write()
# began becomes the class's own once the class asks for it too.
use lib $ENV{STORIES};
use Story;

story {
    my ($one, $peer_one) = pair(4608);
    my ($two, $peer_two) = pair(4608);
    my $a = Teller->new($one, "a");
    $a->watch_write(1);
    $a->put(fill(9500));
    $a->state;
    my $b = Teller->new($two, "b");
    $b->put(fill(9500));
    $b->state;
    $b->watch_write(1);
    $b->state;
    batches(sub { peer_read($peer_one, 65536) },
            sub { $a->watch_write(0); $a->state; peer_read($peer_two, 65536) },
            sub { $b->state; $b->watch_write(0) },
            sub { $b->put("small"); $b->state },
            sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
