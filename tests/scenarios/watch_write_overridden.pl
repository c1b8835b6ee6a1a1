# A class with a watch_write of its own.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair(4608);
    my $s = Watcher->new($ours, "s");
    $s->put(fill(9500));
    batches(map { sub { peer_read($theirs, 65536) } } 1 .. 3);
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};

package Watcher;
our @ISA;
BEGIN { @ISA = ('Teller') }
sub watch_write {
    my ($self, $on) = @_;
    $self->said("watch_write", $on ? 1 : 0);
    $self->SUPER::watch_write($on);
}
