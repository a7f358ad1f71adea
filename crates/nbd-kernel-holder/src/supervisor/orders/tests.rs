use super::super::{Event, Kind, Phase, Refusal};
use super::*;
use crate::args::RestartWhen;

const DEAD: Event = Event::OwnerDead { clean: false, progressed: true };

fn hello(peer: PeerId) -> Event {
    Event::Hello { peer, takeover: false }
}

/// Peer 1 serves, started by us.
fn serving(when: RestartWhen) -> Supervisor {
    let mut supervisor = Supervisor::new(when, Some(3), true);
    supervisor.started(1);
    supervisor.apply(&hello(1));
    supervisor.apply(&Event::Ready { peer: 1 });
    supervisor.set_attached(0);
    supervisor
}

/// Nobody serves, and nobody is started.
fn waiting() -> Supervisor {
    let mut supervisor = serving(RestartWhen::Never);
    assert_eq!(supervisor.apply(&DEAD), []);
    supervisor
}

/// Peer 7 answers with EIO.
fn answering(mut supervisor: Supervisor, event: &Event) -> Supervisor {
    assert_eq!(supervisor.apply(event), [Action::StartStandIn]);
    supervisor.started_stand_in(7);
    assert_eq!(supervisor.phase(), Phase::Failing);
    assert_eq!(supervisor.apply(&hello(7)), [Action::Grant(7)]);
    supervisor.apply(&Event::Ready { peer: 7 });
    assert_eq!(supervisor.phase(), Phase::Failing);
    assert!(!supervisor.is_ready(), "it is no backend");
    supervisor
}

#[test]
fn the_stand_in_is_started_only_once_the_backend_is_dead() {
    let mut supervisor = serving(RestartWhen::OnFailure);
    assert_eq!(supervisor.apply(&Event::Fail), [Action::KillOwner]);
    // The backend's successor comes at the same time, and waits until the work is done.
    assert_eq!(supervisor.apply(&DEAD), [Action::StartStandIn, Action::Start]);
    supervisor.started_stand_in(7);
    supervisor.started(2);
    assert_eq!(supervisor.apply(&hello(2)), []);
    assert_eq!(supervisor.apply(&hello(7)), [Action::Grant(7)]);
    assert_eq!(supervisor.apply(&Event::FailDone), [Action::KillOwner]);
    assert_eq!(supervisor.apply(&DEAD), [Action::Grant(2)]);
    assert_eq!(supervisor.restarts(), 1, "the stand-in does not count");
}

#[test]
fn a_withdrawn_fail_leaves_what_is_in_flight_to_the_successor() {
    let mut supervisor = serving(RestartWhen::OnFailure);
    assert_eq!(supervisor.apply(&Event::Fail), [Action::KillOwner]);
    assert_eq!(supervisor.apply(&Event::FailWithdrawn), []);
    assert!(supervisor.is_fencing(), "it has the lanes until it is dead");
    assert_eq!(supervisor.apply(&DEAD), [Action::Start]);
}

#[test]
fn a_device_without_backend_has_none_after_its_requests_were_failed_either() {
    let mut supervisor = answering(waiting(), &Event::Fail);
    assert_eq!(supervisor.apply(&Event::FailDone), [Action::KillOwner]);
    assert_eq!(supervisor.apply(&DEAD), []);
    assert_eq!(supervisor.phase(), Phase::Waiting);
}

#[test]
fn a_spare_waits_while_requests_are_failed() {
    let mut supervisor = serving(RestartWhen::OnFailure);
    supervisor.keep_spare();
    supervisor.started_spare(2);
    supervisor.apply(&hello(2));
    supervisor.apply(&Event::Fail);
    let mut supervisor = answering(supervisor, &DEAD);
    supervisor.apply(&Event::FailDone);
    assert_eq!(supervisor.apply(&DEAD), [Action::Grant(2)]);
}

#[test]
fn a_stand_in_that_dies_before_its_work_is_done_is_reported_and_not_tried_again() {
    let mut supervisor = answering(waiting(), &Event::Fail);
    assert_eq!(supervisor.apply(&DEAD), [Action::FailFailed]);
    let mut supervisor = waiting();
    supervisor.apply(&Event::Fail);
    supervisor.started_stand_in(7);
    assert_eq!(supervisor.apply(&Event::Gone { peer: 7 }), [Action::FailFailed]);
    assert_eq!(supervisor.apply(&Event::Fail), [Action::StartStandIn]);
    assert_eq!(supervisor.apply(&Event::NoStandIn), [Action::FailFailed]);
}

#[test]
fn a_successor_that_waited_and_died_while_requests_were_failed_has_a_successor() {
    let mut supervisor = serving(RestartWhen::OnFailure);
    supervisor.apply(&Event::Fail);
    supervisor.apply(&DEAD);
    supervisor.started_stand_in(7);
    supervisor.started(2);
    supervisor.apply(&hello(7));
    supervisor.apply(&hello(2));
    let again = supervisor.apply(&Event::Gone { peer: 2 });
    assert!(matches!(again[..], [Action::StartAfter(_)]), "{again:?}");
}

#[test]
fn while_nobody_serves_requests_fail_until_a_backend_comes_which_needs_no_takeover() {
    let mut supervisor = answering(waiting(), &Event::Unserved);
    assert_eq!(supervisor.apply(&Event::Unserved), [], "there is one already");
    assert_eq!(supervisor.apply(&hello(9)), [Action::KillOwner]);
    assert_eq!(supervisor.apply(&hello(10)), [Action::Refuse(10, Refusal::Taken)]);
    assert_eq!(supervisor.apply(&DEAD), [Action::Grant(9)]);
}

#[test]
fn a_backend_that_was_faster_than_the_stand_in_is_left_alone() {
    let mut supervisor = waiting();
    assert_eq!(supervisor.apply(&Event::Unserved), [Action::StartStandIn]);
    supervisor.started_stand_in(7);
    assert_eq!(supervisor.apply(&hello(9)), [Action::Grant(9)]);
    assert_eq!(supervisor.apply(&hello(7)), [Action::Dismiss(7)]);
    assert_eq!(supervisor.owner(), Some(9));
}

#[test]
fn a_backend_that_lives_is_not_lost() {
    let mut supervisor = serving(RestartWhen::OnFailure);
    assert_eq!(supervisor.apply(&Event::Unserved), []);
    assert!(!supervisor.is_unserved());
}

#[test]
fn nobody_is_granted_the_lanes_of_a_paused_device() {
    let mut supervisor = serving(RestartWhen::Always);
    assert_eq!(supervisor.apply(&Event::Pause), [Action::KillOwner]);
    assert_eq!(supervisor.apply(&DEAD), []);
    assert_eq!(supervisor.phase(), Phase::Paused);
    assert_eq!(supervisor.apply(&Event::Unserved), []);
    assert_eq!(supervisor.apply(&hello(5)), []);
    assert_eq!(supervisor.apply(&Event::Resume), [Action::Grant(5)]);
}

#[test]
fn a_paused_device_gets_its_program_back() {
    let mut supervisor = serving(RestartWhen::Never);
    supervisor.apply(&Event::Pause);
    // It is resumed before the old one is dead, or after.
    let mut impatient = serving(RestartWhen::OnFailure);
    impatient.apply(&Event::Pause);
    assert_eq!(impatient.apply(&Event::Resume), []);
    assert_eq!(impatient.apply(&DEAD), [Action::Start]);
    supervisor.apply(&DEAD);
    assert_eq!(supervisor.apply(&Event::Resume), [Action::Start]);
}

#[test]
fn requests_of_a_paused_device_can_be_failed_and_it_stays_paused() {
    let mut supervisor = serving(RestartWhen::OnFailure);
    supervisor.apply(&Event::Pause);
    supervisor.apply(&DEAD);
    let mut supervisor = answering(supervisor, &Event::Fail);
    supervisor.apply(&Event::FailDone);
    assert_eq!(supervisor.apply(&DEAD), []);
    assert_eq!(supervisor.phase(), Phase::Paused);
}

#[test]
fn an_adopted_stand_in_makes_room_for_the_program() {
    let mut supervisor = Supervisor::new(RestartWhen::OnFailure, Some(3), true);
    supervisor.set_attached(4);
    supervisor.adopt(3, Kind::Program);
    assert_eq!(supervisor.apply(&Event::FailDone), [Action::KillOwner]);
    assert_eq!(supervisor.apply(&DEAD), [Action::Start]);
}
