package Story;

# What the Perl sides of the scenarios share; story.py says the same in Python.
#
# A note is a write(2) to a descriptor that can't be open. It fails, and so leaves nothing
# behind but its line in the trace, between the calls it stands between.

use strict;
use warnings;
use Danga::Socket;
use Errno ();
use IO::Handle;
use POSIX ();
use Socket qw(AF_UNIX AF_INET SOCK_STREAM SOCK_DGRAM PF_UNSPEC SOL_SOCKET SO_SNDBUF SO_RCVBUF
              SO_LINGER INADDR_LOOPBACK sockaddr_in);
use Time::HiRes ();

use base 'Exporter';
our @EXPORT = qw(note story batches clock pair datagram_pair tcp_pair ends_of_pipe reset_peer
                 close_behind peer_write peer_read fill);

$SIG{PIPE} = 'IGNORE';

use constant NOTES => 1000;

sub note {
    my $text = join " ", @_;
    local $!;
    POSIX::write(NOTES, $text, length $text);
}

# Runs the story between the two marks that the trace is cut at.
sub story (&) {
    my $code = shift;
    $! = 0; my $loaded = $!{EAGAIN};    # loads what %! loads, before the trace is looked at
    note("begin");
    $code->();
    note("end");
    POSIX::_exit(0);
}

# After the first batch of events the first step runs, and so on; the loop ends after the last.
sub batches {
    my @steps = @_;
    my $done = 0;
    Danga::Socket->SetPostLoopCallback(sub {
        my $step = shift @steps;
        note("batch", ++$done);
        $step->() if $step;
        return @steps ? 1 : 0;
    });
}

# A clock that stands still until the story moves it, so that no timeout hangs on the machine's
# speed. Given in milliseconds.
my $now;
sub clock {
    my $advance = shift;
    if (!defined $now) {
        $now = 1000;
        no warnings qw(redefine prototype);
        *Time::HiRes::time = sub { $now };
    }
    $now += $advance / 1000;
}

sub _sized {
    my ($handle, $size) = @_;
    return unless $size;
    setsockopt($handle, SOL_SOCKET, SO_SNDBUF, $size) or die "SO_SNDBUF: $!";
    setsockopt($handle, SOL_SOCKET, SO_RCVBUF, $size) or die "SO_RCVBUF: $!";
}

# Handles that nobody holds any more close themselves, which is not part of any story.
my @kept;

# Two ends of a UNIX stream, both non-blocking.
sub pair {
    my ($size, $type) = @_;
    socketpair(my $ours, my $theirs, AF_UNIX, $type || SOCK_STREAM, PF_UNSPEC)
        or die "socketpair: $!";
    push @kept, $ours, $theirs;
    for my $end ($ours, $theirs) {
        $end->blocking(0);
        _sized($end, $size);
    }
    return ($ours, $theirs);
}

sub datagram_pair { return pair($_[0], SOCK_DGRAM) }

# The same of TCP on loopback.
sub tcp_pair {
    socket(my $listener, AF_INET, SOCK_STREAM, 0) or die "socket: $!";
    bind($listener, sockaddr_in(0, INADDR_LOOPBACK)) or die "bind: $!";
    listen($listener, 1) or die "listen: $!";
    socket(my $theirs, AF_INET, SOCK_STREAM, 0) or die "socket: $!";
    connect($theirs, getsockname($listener)) or die "connect: $!";
    accept(my $ours, $listener) or die "accept: $!";
    close($listener);
    push @kept, $ours, $theirs;
    $_->blocking(0) for $ours, $theirs;
    return ($ours, $theirs);
}

sub ends_of_pipe {
    pipe(my $reader, my $writer) or die "pipe: $!";
    push @kept, $reader, $writer;
    return ($reader, $writer);
}

# Closes the peer's end of a TCP pair with a reset instead of a FIN.
sub reset_peer {
    my $handle = shift;
    setsockopt($handle, SOL_SOCKET, SO_LINGER, pack("ii", 1, 0)) or die "SO_LINGER: $!";
    close($handle);
}

# Closes a descriptor without the knowledge of whoever holds it.
sub close_behind { POSIX::close(fileno($_[0])) }

sub peer_write { return syswrite($_[0], $_[1]) }
sub peer_read { return sysread($_[0], my $buf, $_[1]) }

# A byte string of a given length whose places can be told apart.
sub fill {
    my $length = shift;
    my $text = join "", map { sprintf "%07d ", $_ * 8 } 0 .. int($length / 8);
    return substr($text, 0, $length);
}

package Teller;

# A socket that notes each call of its handlers; what else they do is given by the story.

use base 'Danga::Socket';
use fields qw(name on);

sub new {
    my ($class, $sock, $name, %on) = @_;
    my Teller $self = fields::new($class);
    $self->SUPER::new($sock);
    $self->{name} = $name;
    $self->{on} = \%on;
    return $self;
}

sub said {
    my ($self, $what, @rest) = @_;
    Story::note($self->{name}, $what, @rest);
}

sub event_read {
    my $self = shift;
    $self->said("event_read");
    $self->{on}{read}->($self) if $self->{on}{read};
}

sub event_write {
    my $self = shift;
    $self->said("event_write");
    return $self->{on}{write}->($self) if $self->{on}{write};
    $self->SUPER::event_write;
}

sub event_err {
    my $self = shift;
    $self->said("event_err");
    $self->{on}{err}->($self) if $self->{on}{err};
}

sub event_hup {
    my $self = shift;
    $self->said("event_hup");
    $self->{on}{hup}->($self) if $self->{on}{hup};
}

sub close {
    my ($self, $reason) = @_;
    $self->said("close", $reason || "-");
    return $self->SUPER::close($reason);
}

# Reads once, and notes what came: the bytes (the first 20 and their number), or how it ended.
sub take {
    my ($self, $bytes) = @_;
    my $got = $self->read($bytes);
    $self->said("read", defined $got ? length($$got) . " [" . substr($$got, 0, 20) . "]" : "end");
    return $got;
}

# Writes, and notes what write() said.
sub put {
    my ($self, $data) = @_;
    my $done = $self->write($data);
    $self->said("write", $done ? 1 : 0);
    return $done;
}

# Notes the fields that tell how far the writing is. What a closed object was about to write is
# nobody's business any more.
sub state {
    my $self = shift;
    $self->said("state", "queued=" . scalar @{$self->{write_buf}}, "watch=$self->{event_watch}",
                "closed=$self->{closed}", "corked=" . ($self->{corked} ? 1 : 0));
    return if $self->{closed};
    $self->said("state", "offset=$self->{write_buf_offset}", "size=$self->{write_buf_size}",
                "set_watch=" . ($self->{write_set_watch} ? 1 : 0));
}

1;
