# All that is ready on one descriptor is told in the order read, write, err, hup; a close in
# between keeps the rest quiet.
use lib $ENV{STORIES};
use Story;

story {
    my @all = (undef, qw(read write err hup));
    my (@sockets, @peers);
    for my $closes_in (0 .. 4) {
        my ($ours, $theirs) = pair();
        my %on = map { $_ => sub { } } qw(read write err hup);
        $on{$all[$closes_in]} = sub { $_[0]->close } if $closes_in;
        my $s = Teller->new($ours, "s$closes_in", %on);
        $s->watch_read(1);
        $s->watch_write(1);
        push @sockets, $s;
        # A peer that closes with data unread makes an error of the hang-up.
        $s->put("unread");
        push @peers, $theirs;
    }
    close($_) for @peers;
    batches(sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
