# An event for a descriptor that nobody knows: it leaves epoll and is closed.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s");
    local $SIG{__WARN__} = sub { };
    my ($reader, $writer) = ends_of_pipe();
    Sys::Syscall::epoll_ctl($Danga::Socket::Epoll, 1, fileno($reader), 1);
    peer_write($writer, "x");
    batches(sub { }, sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
