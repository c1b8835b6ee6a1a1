# Each block that went out whole drops the watch before the next one is tried; a next one that
# blocks begins it again.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Teller->new($ours, "s");
    $s->put(fill(9500)) for 1 .. 6;
    $s->state;
    batches(map { my $size = $_ % 2 ? 9088 : 65536;
                  sub { peer_read($theirs, $size); $s->state } } 0 .. 8);
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
