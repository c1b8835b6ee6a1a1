# Data and callables leave in the order they came; a callable runs once all before it is out.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Teller->new($ours, "s");
    $s->put(sub { note("nothing before me") });
    $s->put(fill(9500));
    $s->put(sub { note("first callable"); $s->state });
    $s->put("between");
    $s->put(\"by reference");
    $s->put(sub { note("second callable"); $s->state });
    $s->put(sub { note("third callable") });
    $s->put(undef);
    $s->state;
    batches(map { sub { peer_read($theirs, 65536) } } 1 .. 3);
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
    $s->state;
};
