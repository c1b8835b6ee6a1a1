# A callable that writes: before the rest of the queue when the queue is empty, behind it when not.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Teller->new($ours, "s");
    $s->put(sub { $s->put("one"); $s->put(sub { $s->put("two") }); note("outer ends") });
    $s->put(fill(9500));
    $s->put(sub {
        $s->put("inner");
        $s->put(sub { note("inner callable"); $s->put("deep") });
        $s->state;
    });
    $s->put("behind");
    $s->put(sub { $s->put(fill(9500)); $s->put("after full"); $s->state });
    batches(map { sub { peer_read($theirs, 65536); $s->state } } 1 .. 5);
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
