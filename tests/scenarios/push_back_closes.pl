# An object that closes itself on reading pushed-back data is closed with the same batch.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $times = 0;
    my $s = Teller->new($ours, "s", read => sub {
        my $s = shift;
        $s->take(10);
        return $s->close if $times++;
        $s->push_back_read("one");
        $s->push_back_read("two");
    });
    $s->watch_read(1);
    peer_write($theirs, "x");
    batches(sub { }, sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
