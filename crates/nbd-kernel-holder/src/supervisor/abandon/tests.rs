use super::super::{Event, Phase, Refusal};
use super::*;
use crate::args::RestartWhen;

const DEAD: Event = Event::OwnerDead { clean: false, progressed: true };

fn hello(peer: u64) -> Event {
    Event::Hello { peer, takeover: true }
}

/// Peer 1 serves, started by us, and peer 2 is its spare.
fn serving() -> Supervisor {
    let mut supervisor = Supervisor::new(RestartWhen::Always, Some(3), true);
    supervisor.started(1);
    supervisor.apply(&hello(1));
    supervisor.apply(&Event::Ready { peer: 1 });
    supervisor.set_attached(0);
    supervisor.keep_spare();
    supervisor.started_spare(2);
    supervisor.apply(&hello(2));
    supervisor
}

#[test]
fn only_the_stand_in_follows_the_backend_of_a_device_that_is_given_up() {
    let mut supervisor = serving();
    assert_eq!(supervisor.apply(&Event::Abandon), [Action::Dismiss(2), Action::KillOwner]);
    assert_eq!(supervisor.apply(&hello(5)), [Action::Refuse(5, Refusal::Parting)]);
    assert_eq!(supervisor.apply(&Event::Restart), []);
    assert_eq!(supervisor.apply(&DEAD), [Action::StartStandIn]);
    supervisor.started_stand_in(7);
    assert_eq!(supervisor.apply(&hello(7)), [Action::Grant(7)]);
    supervisor.apply(&Event::Ready { peer: 7 });
    assert_eq!(supervisor.phase(), Phase::Failing);
    assert!(!supervisor.wants_spare());
    assert_eq!(supervisor.apply(&Event::Abandon), [], "it answers already");
    assert_eq!(supervisor.apply(&Event::Part), []);
    assert_eq!(supervisor.owner(), Some(7), "it sees the end of its lanes");
    assert_eq!(supervisor.apply(&DEAD), []);
}

#[test]
fn the_stand_in_waits_until_a_backend_in_an_uninterruptible_call_is_dead() {
    let mut supervisor = serving();
    supervisor.apply(&Event::Abandon);
    assert!(supervisor.is_fencing());
    // The operator tries again meanwhile.
    assert_eq!(supervisor.apply(&Event::Abandon), [Action::KillOwner]);
    assert_eq!(supervisor.apply(&DEAD), [Action::StartStandIn]);
}

#[test]
fn a_stand_in_that_dies_is_started_again_only_for_another_attempt() {
    let mut supervisor = serving();
    supervisor.apply(&Event::Abandon);
    supervisor.apply(&DEAD);
    supervisor.started_stand_in(7);
    supervisor.apply(&hello(7));
    assert_eq!(supervisor.apply(&DEAD), []);
    assert_eq!(supervisor.apply(&Event::Abandon), [Action::StartStandIn]);
    assert_eq!(supervisor.apply(&Event::NoStandIn), []);
    assert_eq!(supervisor.apply(&Event::Abandon), [Action::StartStandIn]);
}

#[test]
fn a_stand_in_that_was_about_to_leave_is_followed_by_another_one() {
    let mut supervisor = serving();
    supervisor.apply(&Event::Fail);
    supervisor.apply(&DEAD);
    supervisor.started_stand_in(7);
    supervisor.apply(&hello(7));
    assert_eq!(supervisor.apply(&Event::FailDone), [Action::KillOwner]);
    assert!(supervisor.apply(&Event::Abandon).contains(&Action::KillOwner));
    assert_eq!(supervisor.apply(&DEAD), [Action::StartStandIn]);
}
