# The same descriptor twice: the second object dies, the first is none the worse.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s");
    eval { Teller->new($ours, "twin") };
    note("died", $@ ? "yes" : "no");
    $s->put("x");
    $s->watch_read(1);
    $s->state;
    note("watched", scalar Danga::Socket->WatchedSockets);
};
