use super::super::{Event, Kind, Phase, Refusal};
use super::*;
use crate::args::RestartWhen;
use crate::core::BackendId;

const DEAD: Event = Event::OwnerDead { clean: false, progressed: true };

fn hello(backend: u64) -> Event {
    Event::Hello { backend: BackendId(backend), takeover: false }
}

/// Peer 1 serves, started by us.
fn serving(when: RestartWhen) -> Ownership {
    let mut ownership = Ownership::new(when, Some(3), true);
    ownership.started(BackendId(1));
    ownership.apply(&hello(1));
    ownership.apply(&Event::Ready { backend: BackendId(1) });
    ownership.set_attached(0);
    ownership
}

/// No backend serves, and none is started.
fn waiting() -> Ownership {
    let mut ownership = serving(RestartWhen::Never);
    assert_eq!(ownership.apply(&DEAD), []);
    ownership
}

/// Peer 7 answers with EIO.
fn answering(mut ownership: Ownership, event: &Event) -> Ownership {
    assert_eq!(ownership.apply(event), [Action::StartEioBackend]);
    ownership.started_eio_backend(BackendId(7));
    assert_eq!(ownership.phase(), Phase::Failing);
    assert_eq!(ownership.apply(&hello(7)), [Action::Grant(BackendId(7))]);
    ownership.apply(&Event::Ready { backend: BackendId(7) });
    assert_eq!(ownership.phase(), Phase::Failing);
    assert!(!ownership.is_ready(), "it is no backend");
    ownership
}

#[test]
fn the_eio_backend_is_started_only_once_the_backend_is_dead() {
    let mut ownership = serving(RestartWhen::OnFailure);
    assert_eq!(ownership.apply(&Event::Fail), [Action::KillOwner]);
    // The backend's successor comes at the same time, and waits until the work is done.
    assert_eq!(ownership.apply(&DEAD), [Action::StartEioBackend, Action::Start]);
    ownership.started_eio_backend(BackendId(7));
    ownership.started(BackendId(2));
    assert_eq!(ownership.apply(&hello(2)), []);
    assert_eq!(ownership.apply(&hello(7)), [Action::Grant(BackendId(7))]);
    assert_eq!(ownership.apply(&Event::FailDone), [Action::KillOwner]);
    assert_eq!(ownership.apply(&DEAD), [Action::Grant(BackendId(2))]);
    assert_eq!(ownership.restarts(), 1, "the EIO backend does not count");
}

#[test]
fn a_withdrawn_fail_leaves_what_is_in_flight_to_the_successor() {
    let mut ownership = serving(RestartWhen::OnFailure);
    assert_eq!(ownership.apply(&Event::Fail), [Action::KillOwner]);
    assert_eq!(ownership.apply(&Event::FailWithdrawn), []);
    assert!(ownership.is_fencing(), "it has the lanes until it is dead");
    assert_eq!(ownership.apply(&DEAD), [Action::Start]);
}

#[test]
fn a_device_without_backend_has_none_after_its_requests_were_failed_either() {
    let mut ownership = answering(waiting(), &Event::Fail);
    assert_eq!(ownership.apply(&Event::FailDone), [Action::KillOwner]);
    assert_eq!(ownership.apply(&DEAD), []);
    assert_eq!(ownership.phase(), Phase::Waiting);
}

#[test]
fn a_spare_waits_while_requests_are_failed() {
    let mut ownership = serving(RestartWhen::OnFailure);
    ownership.keep_spare();
    ownership.started_spare(BackendId(2));
    ownership.apply(&hello(2));
    ownership.apply(&Event::Fail);
    let mut ownership = answering(ownership, &DEAD);
    ownership.apply(&Event::FailDone);
    assert_eq!(ownership.apply(&DEAD), [Action::Grant(BackendId(2))]);
}

#[test]
fn a_eio_backend_that_dies_before_its_work_is_done_is_reported_and_not_tried_again() {
    let mut ownership = answering(waiting(), &Event::Fail);
    assert_eq!(ownership.apply(&DEAD), [Action::FailAborted]);
    let mut ownership = waiting();
    ownership.apply(&Event::Fail);
    ownership.started_eio_backend(BackendId(7));
    assert_eq!(ownership.apply(&Event::Gone { backend: BackendId(7) }), [Action::FailAborted]);
    assert_eq!(ownership.apply(&Event::Fail), [Action::StartEioBackend]);
    assert_eq!(ownership.apply(&Event::EioBackendFailed), [Action::FailAborted]);
}

#[test]
fn a_successor_that_waited_and_died_while_requests_were_failed_has_a_successor() {
    let mut ownership = serving(RestartWhen::OnFailure);
    ownership.apply(&Event::Fail);
    ownership.apply(&DEAD);
    ownership.started_eio_backend(BackendId(7));
    ownership.started(BackendId(2));
    ownership.apply(&hello(7));
    ownership.apply(&hello(2));
    let again = ownership.apply(&Event::Gone { backend: BackendId(2) });
    assert!(matches!(again[..], [Action::StartAfter(_)]), "{again:?}");
}

#[test]
fn while_nobody_serves_requests_fail_until_a_backend_comes_which_needs_no_takeover() {
    let mut ownership = answering(waiting(), &Event::Unserved);
    assert_eq!(ownership.apply(&Event::Unserved), [], "there is one already");
    assert_eq!(ownership.apply(&hello(9)), [Action::KillOwner]);
    assert_eq!(ownership.apply(&hello(10)), [Action::Refuse(BackendId(10), Refusal::Taken)]);
    assert_eq!(ownership.apply(&DEAD), [Action::Grant(BackendId(9))]);
}

#[test]
fn a_backend_that_was_faster_than_the_eio_backend_is_left_alone() {
    let mut ownership = waiting();
    assert_eq!(ownership.apply(&Event::Unserved), [Action::StartEioBackend]);
    ownership.started_eio_backend(BackendId(7));
    assert_eq!(ownership.apply(&hello(9)), [Action::Grant(BackendId(9))]);
    assert_eq!(ownership.apply(&hello(7)), [Action::Dismiss(BackendId(7))]);
    assert_eq!(ownership.owner(), Some(BackendId(9)));
}

#[test]
fn a_backend_that_lives_is_not_lost() {
    let mut ownership = serving(RestartWhen::OnFailure);
    assert_eq!(ownership.apply(&Event::Unserved), []);
    assert!(!ownership.is_unserved());
}

#[test]
fn nobody_is_granted_the_lanes_of_a_paused_device() {
    let mut ownership = serving(RestartWhen::Always);
    assert_eq!(ownership.apply(&Event::Pause), [Action::KillOwner]);
    assert_eq!(ownership.apply(&DEAD), []);
    assert_eq!(ownership.phase(), Phase::Paused);
    assert_eq!(ownership.apply(&Event::Unserved), []);
    assert_eq!(ownership.apply(&hello(5)), []);
    assert_eq!(ownership.apply(&Event::Resume), [Action::Grant(BackendId(5))]);
}

#[test]
fn a_paused_device_gets_its_program_back() {
    let mut ownership = serving(RestartWhen::Never);
    ownership.apply(&Event::Pause);
    // It is resumed before the old one is dead, or after.
    let mut impatient = serving(RestartWhen::OnFailure);
    impatient.apply(&Event::Pause);
    assert_eq!(impatient.apply(&Event::Resume), []);
    assert_eq!(impatient.apply(&DEAD), [Action::Start]);
    ownership.apply(&DEAD);
    assert_eq!(ownership.apply(&Event::Resume), [Action::Start]);
}

#[test]
fn requests_of_a_paused_device_can_be_failed_and_it_stays_paused() {
    let mut ownership = serving(RestartWhen::OnFailure);
    ownership.apply(&Event::Pause);
    ownership.apply(&DEAD);
    let mut ownership = answering(ownership, &Event::Fail);
    ownership.apply(&Event::FailDone);
    assert_eq!(ownership.apply(&DEAD), []);
    assert_eq!(ownership.phase(), Phase::Paused);
}

#[test]
fn an_adopted_eio_backend_makes_room_for_the_program() {
    let mut ownership = Ownership::new(RestartWhen::OnFailure, Some(3), true);
    ownership.set_attached(4);
    ownership.adopt(BackendId(3), Kind::Program);
    assert_eq!(ownership.apply(&Event::FailDone), [Action::KillOwner]);
    assert_eq!(ownership.apply(&DEAD), [Action::Start]);
}
