# Pushed-back data comes first, a piece a read, split but never topped up from the socket, and is
# read again after the batch as long as the object watches for reading.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $times = 0;
    my $s = Teller->new($ours, "s", read => sub {
        my $s = shift;
        $times++;
        if ($times == 1) {
            $s->take(6);
            $s->push_back_read("first ");
            $s->push_back_read("second");
            return;
        }
        $s->take(4);
        # With push-backs left, but no wish to read: they wait for the next batch.
        $s->watch_read(0) if $times == 3;
    });
    $s->watch_read(1);
    peer_write($theirs, "hello world");
    batches(sub { $s->take(3) },
            sub { $s->watch_read(1) },
            sub { $s->push_back_read(\"ref"); peer_write($theirs, "!") },
            sub { $s->push_back_read("never read"); $s->close },
            sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
