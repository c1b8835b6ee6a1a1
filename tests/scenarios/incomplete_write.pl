# on_incomplete_write runs for a partial write, not for one that finds no room; a class that
# overrides it decides on the watch.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Quiet->new($ours, "s");
    $s->put(fill(9500));
    $s->state;
    $s->put(undef);
    $s->state;
    batches(sub { peer_read($theirs, 65536) }, sub { peer_read($theirs, 65536); $s->state },
            sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
    my ($more, $more_theirs) = pair(4608);
    my $t = Quiet->new($more, "t");
    $t->put(fill(9500));
    peer_read($more_theirs, 65536);
    batches(sub { $t->put(undef); $t->state }, sub { });
    Danga::Socket->EventLoop;
};

package Quiet;
our @ISA;
BEGIN { @ISA = ('Teller') }
sub on_incomplete_write {
    my $self = shift;
    $self->said("on_incomplete_write");
}
