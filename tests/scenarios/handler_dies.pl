# A handler that dies ends the loop; a close from before it is still owed.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s", read => sub { $_[0]->close; die "oh\n" });
    $s->watch_read(1);
    peer_write($theirs, "x");
    eval { Danga::Socket->EventLoop };
    note("caught", $@ =~ /^oh/ ? "yes" : "no");
    batches(sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
