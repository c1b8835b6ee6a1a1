# Profiling changes nothing in the calls.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    Danga::Socket->EnableProfiling;
    my $s = Teller->new($ours, "s", read => sub { $_[0]->take(10) });
    $s->watch_read(1);
    $s->watch_write(1);
    peer_write($theirs, "x");
    close($theirs);
    batches(sub { $s->close }, sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
