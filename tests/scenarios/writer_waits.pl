# A writer function that can't go on before something has been read, as in DJabberd's TLS: it writes
# nothing, and an overridden on_incomplete_write turns reading on and writing off until then.
use lib $ENV{STORIES};
use Story;

package Waiter;
use base 'Teller';
use fields qw(waits);

sub on_incomplete_write {
    my $self = shift;
    $self->said("on_incomplete_write");
    return $self->SUPER::on_incomplete_write unless $self->{waits};
    $self->watch_read(1);
    $self->watch_write(0);
}

package main;

story {
    my ($ours, $theirs) = pair();
    my $s = Waiter->new($ours, "s", read => sub {
        my $self = shift;
        if ($self->{waits}) {
            $self->{waits} = 0;
            $self->watch_read(0);
            $self->watch_write(1);
        } else {
            $self->take(10);
        }
    }, write => sub {
        my $self = shift;
        $self->watch_write(0) if $self->put(undef);
    });
    my @first = ("wait", 3, "wait", 0, 100, "wait", 100);
    $s->set_writer_func(sub {
        my ($data, $count, $offset) = @_;
        my $next = shift @first;
        note("writer", $count, $offset, $next);
        return 0 if $s->{waits} = $next eq "wait";
        return syswrite($ours, $$data, $count < $next ? $count : $next, $offset);
    });
    $s->put("0123456789");
    $s->state;
    $s->put("behind");
    batches((map { sub { $s->state; peer_write($theirs, "x") if $s->{waits} } } 1 .. 8), sub { $s->state });
    peer_write($theirs, "x");
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
