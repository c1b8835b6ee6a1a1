# The original: Danga::Socket (Debian: libdanga-socket-perl).

package Connection;
use strict;
use warnings;
use base 'Danga::Socket';
use fields;

my $RESPONSE = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!";

sub event_read {
    my Connection $self = shift;
    my $data = $self->read(256);
    return $self->close unless defined $data;
    $self->write($RESPONSE) if substr($$data, -4) eq "\r\n\r\n";
}
sub event_err { $_[0]->close }
sub event_hup { $_[0]->close }

package main;
use IO::Socket::INET;

my $listener = IO::Socket::INET->new(
    LocalAddr => "127.0.0.1", LocalPort => 0, Listen => 4096, Blocking => 0, ReuseAddr => 1)
    or die "listen: $!";
Danga::Socket->AddOtherFds(fileno($listener) => sub {
    while (my $connection = $listener->accept) {
        IO::Handle::blocking($connection, 0);
        Connection->new($connection)->watch_read(1);
    }
});
$| = 1;
print $listener->sockport, "\n";
Danga::Socket->EventLoop;
