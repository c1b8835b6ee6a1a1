# Watching a descriptor that was closed behind the object's back.
use lib $ENV{STORIES};
use Story;

story {
    local $SIG{__WARN__} = sub { };
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s");
    close_behind($ours);
    for (1, 2) {
        eval { $s->watch_read(1) };
        note("raised") if $@;
    }
};
