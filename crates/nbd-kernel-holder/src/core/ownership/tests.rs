use std::time::Duration;

use super::*;
use crate::args::RestartWhen;

const KILLED: Event = Event::OwnerDead { clean: false, progressed: true };
const CRASHED_AT_ONCE: Event = Event::OwnerDead { clean: false, progressed: false };

fn serving(when: RestartWhen) -> Ownership {
    let mut ownership = Ownership::new(when, Some(3), true);
    ownership.started(BackendId(1));
    let hello = Event::Hello { backend: BackendId(1), takeover: false };
    assert_eq!(ownership.apply(&hello), [Action::Grant(BackendId(1))]);
    ownership.apply(&Event::Ready { backend: BackendId(1) });
    ownership.set_attached(0);
    assert_eq!(ownership.phase(), Phase::Running);
    ownership
}

#[test]
fn a_killed_backend_is_started_again_at_once() {
    let mut ownership = serving(RestartWhen::OnFailure);
    assert_eq!(ownership.apply(&KILLED), [Action::Start]);
    ownership.started(BackendId(2));
    let hello = Event::Hello { backend: BackendId(2), takeover: false };
    assert_eq!(ownership.apply(&hello), [Action::Grant(BackendId(2))]);
    assert_eq!(ownership.restarts(), 1);
}

#[test]
fn a_backend_that_keeps_crashing_gets_longer_pauses_and_then_none() {
    let mut ownership = serving(RestartWhen::Always);
    let pause = |ms| vec![Action::StartAfter(Duration::from_millis(ms))];
    let mut backend = 1;
    for expected in [pause(20), pause(40), pause(80), vec![Action::GiveUp]] {
        assert_eq!(ownership.apply(&CRASHED_AT_ONCE), expected);
        if expected != [Action::GiveUp] {
            backend += 1;
            assert_eq!(ownership.apply(&Event::Due), [Action::Start]);
            ownership.started(BackendId(backend));
            ownership.apply(&Event::Hello { backend: BackendId(backend), takeover: false });
        }
    }
    assert_eq!(ownership.phase(), Phase::Down);
    assert_eq!(ownership.apply(&Event::Restart), [Action::Start]);
}

#[test]
fn a_clean_exit_is_respected_on_failure_and_never_means_never() {
    let clean = Event::OwnerDead { clean: true, progressed: true };
    let mut ownership = serving(RestartWhen::OnFailure);
    assert_eq!(ownership.apply(&clean), []);
    assert_eq!(ownership.phase(), Phase::Waiting);
    assert_eq!(serving(RestartWhen::Never).apply(&KILLED), []);
    assert_eq!(serving(RestartWhen::Always).apply(&clean), [Action::Start]);
}

#[test]
fn nobody_is_granted_the_lanes_before_the_owner_is_dead() {
    let mut ownership = serving(RestartWhen::Always);
    assert_eq!(ownership.apply(&Event::Restart), [Action::Start]);
    ownership.started(BackendId(2));
    let hello = Event::Hello { backend: BackendId(2), takeover: false };
    assert_eq!(ownership.apply(&hello), [Action::KillOwner]);
    assert_eq!(ownership.phase(), Phase::Restarting);
    let late = Event::Hello { backend: BackendId(3), takeover: true };
    assert_eq!(ownership.apply(&late), [Action::Refuse(BackendId(3), Refusal::Taken)]);
    assert_eq!(ownership.apply(&KILLED), [Action::Grant(BackendId(2))]);
}

#[test]
fn a_second_backend_is_refused_unless_it_asks_to_take_over() {
    let mut ownership = serving(RestartWhen::Always);
    let hello = |takeover| Event::Hello { backend: BackendId(5), takeover };
    assert_eq!(ownership.apply(&hello(false)), [Action::Refuse(BackendId(5), Refusal::Served)]);
    assert_eq!(ownership.apply(&hello(true)), [Action::KillOwner]);
    // It gives up before its time comes: then the policy decides again.
    assert_eq!(ownership.apply(&Event::Gone { backend: BackendId(5) }), []);
    assert_eq!(ownership.apply(&KILLED), [Action::Start]);
}

#[test]
fn a_failed_replacement_leaves_the_owner_alone() {
    let mut ownership = serving(RestartWhen::Always);
    ownership.apply(&Event::Restart);
    ownership.started(BackendId(2));
    let gone = Event::Gone { backend: BackendId(2) };
    assert_eq!(ownership.apply(&gone), [Action::ReplacementFailed]);
    assert_eq!(ownership.phase(), Phase::Running);
}

#[test]
fn whoever_joins_by_hand_is_also_restarted_by_hand() {
    let mut ownership = serving(RestartWhen::Never);
    ownership.apply(&KILLED);
    let hello = Event::Hello { backend: BackendId(9), takeover: false };
    assert_eq!(ownership.apply(&hello), [Action::Grant(BackendId(9))]);
    assert_eq!(ownership.apply(&KILLED), []);
    assert_eq!(ownership.phase(), Phase::Waiting);
}

#[test]
fn the_first_failure_before_the_device_exists_is_the_last() {
    let mut ownership = Ownership::new(RestartWhen::Always, Some(3), true);
    ownership.started(BackendId(1));
    assert_eq!(ownership.apply(&Event::Gone { backend: BackendId(1) }), [Action::GiveUp]);
}

fn with_spare() -> Ownership {
    let mut ownership = serving(RestartWhen::OnFailure);
    ownership.keep_spare();
    assert!(ownership.wants_spare());
    ownership.started_spare(BackendId(2));
    assert!(!ownership.wants_spare());
    assert_eq!(ownership.apply(&Event::Hello { backend: BackendId(2), takeover: false }), []);
    assert_eq!(ownership.phase(), Phase::Running);
    ownership
}

#[test]
fn a_spare_takes_over_the_moment_the_owner_is_dead() {
    let mut ownership = with_spare();
    assert_eq!(ownership.apply(&KILLED), [Action::Grant(BackendId(2))]);
    assert!(!ownership.wants_spare(), "not before the new owner is ready");
    ownership.apply(&Event::Ready { backend: BackendId(2) });
    assert!(ownership.wants_spare());
}

#[test]
fn a_spare_that_is_still_on_its_way_is_granted_when_it_arrives() {
    let mut ownership = serving(RestartWhen::OnFailure);
    ownership.keep_spare();
    ownership.started_spare(BackendId(2));
    assert_eq!(ownership.apply(&KILLED), []);
    let hello = Event::Hello { backend: BackendId(2), takeover: false };
    assert_eq!(ownership.apply(&hello), [Action::Grant(BackendId(2))]);
}

#[test]
fn a_restart_wants_a_fresh_program_and_no_spare() {
    let mut ownership = with_spare();
    assert_eq!(ownership.apply(&Event::Restart), [Action::Dismiss(BackendId(2)), Action::Start]);
}

#[test]
fn a_restart_does_not_wait_for_a_program_that_does_not_come() {
    let mut ownership = serving(RestartWhen::OnFailure);
    ownership.apply(&KILLED);
    ownership.started(BackendId(2));
    assert_eq!(ownership.apply(&Event::Restart), [Action::Dismiss(BackendId(2)), Action::Start]);
}

#[test]
fn a_backend_that_ended_cleanly_takes_its_spare_along() {
    let mut ownership = with_spare();
    let clean = Event::OwnerDead { clean: true, progressed: true };
    assert_eq!(ownership.apply(&clean), [Action::Dismiss(BackendId(2))]);
    assert_eq!(ownership.phase(), Phase::Waiting);
}

#[test]
fn a_joiner_makes_a_program_on_its_way_superfluous() {
    let mut ownership = serving(RestartWhen::Always);
    ownership.apply(&KILLED);
    ownership.started(BackendId(2));
    let hello = Event::Hello { backend: BackendId(3), takeover: false };
    assert_eq!(
        ownership.apply(&hello),
        [Action::Grant(BackendId(3)), Action::Dismiss(BackendId(2))]
    );
}
