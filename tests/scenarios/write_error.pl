# Any other error of a write closes the object too, with the reason write_error.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = datagram_pair(4608);
    my $s = Teller->new($ours, "s");
    $s->put("a datagram");
    $s->put(fill(50000));
    $s->put("too late");
    my ($two, $peer_two) = pair();
    my $t = Teller->new($two, "t");
    $t->set_writer_func(sub { $! = Errno::EIO(); return undef });
    $t->put("y");
    batches(sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
