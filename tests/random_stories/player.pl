# Plays stories of stories.py on the original: perl player.pl STORIES.json
#
# player.py plays them in Python, function by function. Each story has a process of its own, a child
# of the one that has loaded everything.

use strict;
use warnings;
use lib $ENV{STORIES};
use JSON::PP ();
use Story;

use constant {
    MOST_ACTS => 60,        # of a story, as acts may lead to each other for ever
    MOST_TIMES => 3,        # that one act is played
    PATIENCE => 5,          # seconds after which a story that doesn't end is ended
};

my $TEXT = fill(30_000);

sub data {
    my ($size, $place) = @_;
    return substr($TEXT, $place, $size);
}

# A hash in the order of its insertions, as Python's are.
package Ordered;

sub TIEHASH { return bless { keys => [], values => {} }, shift }

# A closed object's descriptor is undef, which is the empty string as a key.
sub FETCH { return $_[0]{values}{$_[1] // ''} }

sub STORE {
    my ($self, $key, $value) = @_;
    $key //= '';
    push @{$self->{keys}}, $key unless exists $self->{values}{$key};
    $self->{values}{$key} = $value;
}

sub EXISTS { return exists $_[0]{values}{$_[1] // ''} }

sub DELETE {
    my ($self, $key) = @_;
    $key //= '';
    @{$self->{keys}} = grep { $_ ne $key } @{$self->{keys}};
    return delete $self->{values}{$key};
}

sub CLEAR {
    my $self = shift;
    $self->{keys} = [];
    $self->{values} = {};
}

sub FIRSTKEY {
    my $self = shift;
    $self->{left} = [@{$self->{keys}}];
    return shift @{$self->{left}};
}

sub NEXTKEY { return shift @{$_[0]{left}} }

sub SCALAR { return scalar @{$_[0]{keys}} }

# The objects with pushed-back data, which the original goes through in any order, as it has them in
# a hash: first those that don't watch for reading, then the others in the order in which they began,
# or were last read in a round (`event_read`).
package PushedBack;

our @ISA = ('Ordered');

sub FIRSTKEY {
    my $self = shift;
    my $reads = sub { $self->{values}{$_[0]}{event_watch} & 1 };
    $self->{left} = [sort { $reads->($a) <=> $reads->($b) } @{$self->{keys}}];
    return shift @{$self->{left}};
}

# One story, and what the loop does in it.
package Player;

use Story;

sub new {
    my ($class, $plan) = @_;
    return bless {
        plan => $plan,
        ends => [],
        others => [],
        timers => [],
        timer_runs => 0,
        acts_left => main::MOST_ACTS,
        played => {},
    }, $class;
}

sub tell {
    my $self = shift;
    clock(0);
    tie %Danga::Socket::PushBackSet, 'PushedBack';
    tie %Danga::Socket::PLCMap, 'Ordered';
    tie %Danga::Socket::OtherFds, 'Ordered';
    Danga::Socket->SetLoopTimeout(0);
    $self->open_connection($_) for 0 .. $self->{plan}{open_first} - 1;
    $self->perform($self->{plan}{before});
    $self->{others} = [map { OtherEnd->new($self, $_) } @{$self->{plan}{others}}];
    for my $other (@{$self->{others}}) {
        Danga::Socket->AddOtherFds(fileno($other->{ours}) => sub { $other->event(@_) });
    }
    for my $run (@{$self->{plan}{runs}}) {
        $self->run(@{$run->{batches}});
        $self->perform($run->{after});
        $_->state for grep { $_ } @{$self->{ends}};
    }
}

sub run {
    my ($self, @left) = @_;
    my $batch = 0;
    Danga::Socket->SetPostLoopCallback(sub {
        my $descriptors = shift;
        my $open = grep { !$_->{closed} } values %$descriptors;
        note("batch", ++$batch, "open=$open");
        clock($self->{plan}{tick});
        $_->after_batch($batch) for grep { $_ } @{$self->{others}}, @{$self->{ends}};
        $self->perform(shift @left) if @left;
        return @left ? 1 : 0;
    });
    Danga::Socket->EventLoop;
    note("run over");
}

sub perform {
    my ($self, $operations) = @_;
    for my $operation (@$operations) {
        my ($name, $number, @arguments) = @$operation;
        my $target = defined $number ? $self->{ends}[$number] : $self;
        $target->$name(@arguments) if $target;
    }
}

sub play {
    my ($self, $act) = @_;
    return if $self->{played}{$act}++ >= main::MOST_TIMES || $self->{acts_left} == 0;
    $self->{acts_left}--;
    $self->perform($self->{plan}{acts}[$act]);
}

sub open_connection {
    my ($self, $number) = @_;
    $self->{ends}[$number] ||= End->new($self, $number);
}

sub add_timer {
    my ($self, $seconds, $act) = @_;
    # One that is due already fires in the same pass in the original, and here in the next.
    $seconds = 0.001 if $self->{timer_runs} && $seconds < 0.001;
    my $timer = @{$self->{timers}};
    push @{$self->{timers}}, Danga::Socket->AddTimer($seconds, sub {
        note("timer", $timer);
        $self->{timer_runs} = 1;
        $self->play($act);
        $self->{timer_runs} = 0;
    });
}

sub cancel_timer {
    my ($self, $timer) = @_;
    my $timers = $self->{timers};
    $timers->[$timer % @$timers]->cancel if @$timers;
}

sub loop_timeout {
    my ($self, $milliseconds) = @_;
    Danga::Socket->SetLoopTimeout($milliseconds);
}

# Has the loop wait for ever until a timer ends that.
sub wait_for_timer {
    Danga::Socket->SetLoopTimeout(-1);
    Danga::Socket->AddTimer(0.002, sub { Danga::Socket->SetLoopTimeout(0) });
}

sub move_clock {
    my ($self, $milliseconds) = @_;
    # After a timer that took its time the original waits too long.
    clock($milliseconds) unless $self->{timer_runs} && $self->{plan}{exact_waits};
}

sub count_closing { note("closing", scalar(my @waiting = Danga::Socket->ToClose)) }

# A pair of which one end is an other fd of the loop.
package OtherEnd;

use Story;

sub new {
    my ($class, $player, $plan) = @_;
    my ($ours, $theirs) = pair();
    return bless {
        player => $player,
        plan => $plan,
        ours => $ours,
        theirs => $theirs,
        acts => [@{$plan->{acts}}],
    }, $class;
}

sub after_batch {
    my ($self, $batch) = @_;
    syswrite($self->{theirs}, "o") if grep { $_ == $batch } @{$self->{plan}{batches}};
}

sub event {
    my ($self, $state) = @_;
    note("other", $state);
    sysread($self->{ours}, my $got, $self->{plan}{takes});
    $self->{player}->play(shift @{$self->{acts}}) if @{$self->{acts}};
}

# The two ends of a connection, and what can be done with it.
package End;

use Story;

sub new {
    my ($class, $player, $number) = @_;
    my $plan = $player->{plan}{connections}[$number];
    my $self = bless {
        player => $player,
        number => $number,
        plan => $plan,
        stolen => 0,
        wrappable => 0,
        handles_last => 0,
        event_may_wait => 0,
        reactions => { map { $_ => [@{$plan->{reactions}{$_}}] } keys %{$plan->{reactions}} },
    }, $class;
    $self->open;
    $self->{actor} = Actor->new($self);
    return $self;
}

sub open {
    my $self = shift;
    my $plan = $self->{plan};
    ($self->{ours}, $self->{theirs}) =
          $plan->{kind} eq 'tcp'      ? tcp_pair()
        : $plan->{kind} eq 'datagram' ? datagram_pair($plan->{size})
        :                               pair($plan->{size});
}

sub after_batch {
    my $self = shift;
    $self->{wrappable} = $self->{stolen};
    $self->{event_may_wait} = 0;
    $self->peer_reads(65536) if $self->{plan}{peer_follows};
}

sub closes_on {
    my ($self, $event) = @_;
    return scalar grep { $_ eq $event } @{$self->{plan}{closes_on}};
}

sub take {
    my ($self, $count) = @_;
    $self->{actor}->take($count);
}

sub put {
    my ($self, $size, $place, $form, $times) = @_;
    my $data = main::data($size, $place);
    $self->{actor}->put($form ? \$data : $data) for 1 .. $times;
}

# An empty string, unless it might have to wait alone: then the original writes past it.
sub put_nothing {
    my $self = shift;
    return if $self->{plan}{kind} eq 'datagram';
    return if grep { ref $_ eq 'CODE' } @{$self->{actor}{write_buf}};
    $self->{actor}->put("");
}

sub put_callable {
    my ($self, $act) = @_;
    $self->{actor}->put(sub {
        note("callable", $act);
        $self->{player}->play($act);
    });
}

sub flush { $_[0]{actor}->put(undef) }

sub watch_read {
    my ($self, $on) = @_;
    my $actor = $self->{actor};
    my $begins = $on && !($actor->{event_watch} & 1);
    $actor->watch_read($on ? 1 : 0);
    my $waiting = $begins && delete $Danga::Socket::PushBackSet{$actor->{fd} // ''};
    $Danga::Socket::PushBackSet{$actor->{fd}} = $waiting if $waiting;
}

sub watch_write {
    my ($self, $on) = @_;
    $self->{actor}->watch_write($on ? 1 : 0);
}

sub cork {
    my ($self, $on) = @_;
    $self->{actor}->tcp_cork($on ? 1 : 0);
}

sub push_back {
    my ($self, $size, $place) = @_;
    $self->{actor}->push_back_read(main::data($size, $place));
}

sub writer {
    my ($self, $answers) = @_;
    return $self->{actor}->set_writer_func(undef) unless $answers;
    my @left = @$answers;
    $self->{actor}->set_writer_func(sub {
        my ($data, $count, $offset) = @_;
        my ($answer, $number) = @{shift @left || ["all", 0]};
        note("writer", $self->{number}, $count, $offset, $answer);
        # What is refused waits, and an empty string must not.
        return syswrite($self->{ours}, $$data, $count, $offset) if $answer eq "all" || !$count;
        if ($answer eq "fail") {
            $! = $number;
            return undef;
        }
        $count = $number if $number < $count;
        return $count if $answer eq "claim";
        return syswrite($self->{ours}, $$data, $count, $offset);
    });
}

sub own_callback {
    my ($self, $act, $says) = @_;
    return if $self->{actor}{closed};
    return $self->{actor}->SetPostLoopCallback(undef) unless defined $act;
    my @left = @$says;
    $self->{actor}->SetPostLoopCallback(sub {
        note("own callback", $self->{number});
        $self->{player}->play($act);
        return @left ? shift @left : 1;
    });
}

sub state { $_[0]{actor}->state }

sub close { $_[0]{actor}->close("asked") }

# The batch in hand may hold another event for the descriptor.
sub leaves {
    my $self = shift;
    $self->{event_may_wait} ||= !$self->{handles_last} && !$self->{player}{timer_runs};
}

sub steal {
    my $self = shift;
    $self->leaves;
    my $stolen = $self->{actor}->steal_socket;
    note("stole", $stolen ? 1 : 0);
    $self->{stolen} ||= $stolen ? 1 : 0;
}

sub wrap_again {
    my ($self, $by_the_same) = @_;
    # In the batch in which it was stolen it would hear the old object's events.
    return unless $self->{stolen} && $self->{wrappable};
    $self->{stolen} = $self->{wrappable} = 0;
    return $self->make_anew if $by_the_same;
    $self->{actor} = Actor->new($self);
}

sub connect_again {
    my $self = shift;
    return if $self->{stolen} || !$self->{actor}{closed} || $self->{event_may_wait};
    $self->open;
    $self->make_anew;
}

sub make_anew {
    my $self = shift;
    my $actor = $self->{actor};
    # Of these the original knows those of its last socket.
    delete $Danga::Socket::PushBackSet{''};
    $actor->{writer_func} = undef;
    $actor->{write_set_watch} = 0;
    $actor->Danga::Socket::new($self->{ours});
    $actor->state;
}

sub close_stolen {
    my $self = shift;
    return unless $self->{stolen};
    $self->{stolen} = 0;
    CORE::close($self->{ours});
}

sub peer_reads {
    my ($self, $count) = @_;
    return unless $self->{theirs};
    my $got = sysread($self->{theirs}, my $data, $count);
    note("peer read", defined $got ? $got : "nothing");
}

sub peer_writes {
    my ($self, $size, $place) = @_;
    return unless $self->{theirs};
    my $written = syswrite($self->{theirs}, main::data($size, $place));
    note("peer wrote", defined $written ? $written : "nothing");
}

sub peer_closes {
    my $self = shift;
    CORE::close($self->{theirs}) if $self->{theirs};
    $self->{theirs} = undef;
}

sub peer_shuts {
    my $self = shift;
    shutdown($self->{theirs}, 1) if $self->{theirs};
}

sub peer_resets {
    my $self = shift;
    return unless $self->{theirs} && $self->{plan}{kind} eq 'tcp';
    reset_peer($self->{theirs});
    $self->{theirs} = undef;
}

# The object on the loop, whose handlers do what the story has for them.
package Actor;

use base 'Teller';
use fields qw(end);

sub new {
    my ($class, $end) = @_;
    my Actor $self = $class->SUPER::new($end->{ours}, "s$end->{number}");
    $self->{end} = $end;
    $self->state;
    return $self;
}

# Plays what the story has for this call; true if the handler is to go on as usual.
sub reacts {
    my ($self, $event) = @_;
    my $reaction = shift @{$self->{end}{reactions}{$event}} or return 1;
    my ($act, $goes_on) = @$reaction;
    local $self->{end}{handles_last} = $event eq "hup";
    $self->{end}{player}->play($act);
    $self->state;
    return $goes_on;
}

sub event_read {
    my $self = shift;
    my $in_round = (caller(1))[3] eq 'Danga::Socket::PostEventLoop';
    $self->read_event;
    my $waiting = $in_round && delete $Danga::Socket::PushBackSet{$self->{fd} // ''};
    $Danga::Socket::PushBackSet{$self->{fd}} = $waiting if $waiting;
}

sub read_event {
    my $self = shift;
    $self->said("event_read");
    return if !$self->reacts("read") || $self->{closed};
    my $got = $self->take(3000);
    $self->close("end") if !defined $got && $self->{end}->closes_on("end");
}

sub event_write {
    my $self = shift;
    $self->said("event_write");
    return unless $self->reacts("write");
    $self->Danga::Socket::event_write;
    $self->state;
}

sub event_err {
    my $self = shift;
    $self->said("event_err");
    $self->close("err") if $self->reacts("err") && $self->{end}->closes_on("err");
}

sub event_hup {
    my $self = shift;
    $self->said("event_hup");
    $self->close("hup") if $self->reacts("hup") && $self->{end}->closes_on("hup");
}

sub on_incomplete_write {
    my $self = shift;
    $self->said("on_incomplete_write");
    $self->SUPER::on_incomplete_write if $self->reacts("incomplete");
}

sub close {
    my ($self, $reason) = @_;
    my $reaction = shift @{$self->{end}{reactions}{close}};
    my ($act, $afterwards) = $reaction ? @$reaction : ();
    $self->{end}{player}->play($act) if defined $act && !$afterwards;
    $self->{end}->leaves;
    $self->SUPER::close($reason);
    $self->{end}{player}->play($act) if defined $act && $afterwards;
    return 0;
}

package main;

# How the original dies when a post-loop callback of an object, which is to be called, is gone.
my $LOST = qr/^(Use of freed value in iteration|Can't use an undefined value as a subroutine)/;

# Tells a story, and how it ended if it died.
sub told {
    my $plan = shift;
    return if eval { Player->new($plan)->tell; 1 };
    note($@ =~ $LOST ? "lost callback" : "died $@");
}

my $loaded = $!{EAGAIN};    # loads what %! loads, once for all
open(my $file, '<', $ARGV[0]) or die "$ARGV[0]: $!";
my $plans = JSON::PP::decode_json(join "", <$file>);
close($file);
for my $number (0 .. $#$plans) {
    my $child = fork;
    die "fork: $!" unless defined $child;
    if (!$child) {
        alarm(PATIENCE);
        note("story", $number);
        story { told($plans->[$number]) };
    }
    waitpid($child, 0);
}
POSIX::_exit(0);
