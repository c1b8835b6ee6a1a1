# A descriptor that was closed behind the object's back: a read ends, a write closes the object, a
# cork closes it too; leaving epoll and the last close then fail, and nothing comes of that.
use lib $ENV{STORIES};
use Story;

story {
    local $SIG{__WARN__} = sub { };
    my ($one, $peer_one) = pair();
    my ($two, $peer_two) = pair();
    my $a = Teller->new($one, "a");
    $a->watch_read(1);
    close_behind($one);
    $a->take(5);
    $a->put("x");
    $a->state;

    my $b = Teller->new($two, "b");
    close_behind($two);
    $b->tcp_cork(1);
    $b->state;

    batches(sub { });
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->EventLoop;
};
