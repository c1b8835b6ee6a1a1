# A queued callable that dies is gone, the rest of the queue survives and leaves when kicked.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Teller->new($ours, "s");
    eval { $s->put(sub { die "at once\n" }) };
    note("caught", $@ =~ /at once/ ? "yes" : "no");
    $s->state;
    $s->put(fill(9500));
    $s->put("tail");
    $s->put(sub { die "later\n" });
    $s->put("survives");
    peer_read($theirs, 65536);
    eval { $s->put(undef) };
    note("caught", $@ =~ /later/ ? "yes" : "no");
    $s->state;
    $s->put(undef);
    $s->state;
};
