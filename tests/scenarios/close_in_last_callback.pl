# A close in the post-loop callback that ends the loop waits for the next batch, which is that of
# another run.
use lib $ENV{STORIES};
use Story;

story {
    my ($ours, $theirs) = pair();
    my $s = Teller->new($ours, "s");
    Danga::Socket->SetLoopTimeout(0);
    Danga::Socket->SetPostLoopCallback(sub { $s->close; 0 });
    Danga::Socket->EventLoop;
    note("waiting", scalar @{[Danga::Socket->ToClose]});
    Danga::Socket->SetPostLoopCallback(sub { note("waiting", scalar @{[Danga::Socket->ToClose]}); 0 });
    Danga::Socket->EventLoop;
};
