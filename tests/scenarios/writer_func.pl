# A writer function stands in for write(2): it is given what is to go out and from where, its
# short counts and its EAGAIN are a partial and a blocked write.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s");
    my @allowed = (4, 3, undef, 100, 0, 100);
    $s->set_writer_func(sub {
        my ($data, $count, $offset) = @_;
        note("writer", $count, $offset);
        my $most = shift @allowed;
        if (!defined $most) {
            $! = Errno::EAGAIN();
            return undef;
        }
        my $take = $count < $most ? $count : $most;
        return syswrite($ours, $$data, $take, $offset);
    });
    $s->put("four");
    $s->put("0123456789");
    $s->state;
    $s->put("behind");
    batches(map { sub { $s->state } } 1 .. 4);
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
    $s->set_writer_func(undef);
    $s->put("plain");
};
