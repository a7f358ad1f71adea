use super::*;

const KILLED: Event = Event::OwnerDead { clean: false, progressed: true };
const CRASHED_AT_ONCE: Event = Event::OwnerDead { clean: false, progressed: false };

fn serving(when: RestartWhen) -> Supervisor {
    let mut supervisor = Supervisor::new(when, Some(3), true);
    supervisor.started(1);
    let hello = Event::Hello { peer: 1, takeover: false };
    assert_eq!(supervisor.apply(&hello), [Action::Grant(1)]);
    supervisor.apply(&Event::Ready { peer: 1 });
    supervisor.set_attached(0);
    assert_eq!(supervisor.phase(), Phase::Running);
    supervisor
}

#[test]
fn a_killed_backend_is_started_again_at_once() {
    let mut supervisor = serving(RestartWhen::OnFailure);
    assert_eq!(supervisor.apply(&KILLED), [Action::Start]);
    supervisor.started(2);
    let hello = Event::Hello { peer: 2, takeover: false };
    assert_eq!(supervisor.apply(&hello), [Action::Grant(2)]);
    assert_eq!(supervisor.restarts(), 1);
}

#[test]
fn a_backend_that_keeps_crashing_gets_longer_pauses_and_then_none() {
    let mut supervisor = serving(RestartWhen::Always);
    let pause = |ms| vec![Action::StartAfter(Duration::from_millis(ms))];
    let mut peer = 1;
    for expected in [pause(20), pause(40), pause(80), vec![Action::GiveUp]] {
        assert_eq!(supervisor.apply(&CRASHED_AT_ONCE), expected);
        if expected != [Action::GiveUp] {
            peer += 1;
            assert_eq!(supervisor.apply(&Event::Due), [Action::Start]);
            supervisor.started(peer);
            supervisor.apply(&Event::Hello { peer, takeover: false });
        }
    }
    assert_eq!(supervisor.phase(), Phase::Down);
    assert_eq!(supervisor.apply(&Event::Restart), [Action::Start]);
}

#[test]
fn a_clean_exit_is_respected_on_failure_and_never_means_never() {
    let clean = Event::OwnerDead { clean: true, progressed: true };
    let mut supervisor = serving(RestartWhen::OnFailure);
    assert_eq!(supervisor.apply(&clean), []);
    assert_eq!(supervisor.phase(), Phase::Waiting);
    assert_eq!(serving(RestartWhen::Never).apply(&KILLED), []);
    assert_eq!(serving(RestartWhen::Always).apply(&clean), [Action::Start]);
}

#[test]
fn nobody_is_granted_the_lanes_before_the_owner_is_dead() {
    let mut supervisor = serving(RestartWhen::Always);
    assert_eq!(supervisor.apply(&Event::Restart), [Action::Start]);
    supervisor.started(2);
    let hello = Event::Hello { peer: 2, takeover: false };
    assert_eq!(supervisor.apply(&hello), [Action::KillOwner]);
    assert_eq!(supervisor.phase(), Phase::Restarting);
    let late = Event::Hello { peer: 3, takeover: true };
    assert_eq!(supervisor.apply(&late), [Action::Refuse(3, Refusal::Taken)]);
    assert_eq!(supervisor.apply(&KILLED), [Action::Grant(2)]);
}

#[test]
fn a_second_backend_is_refused_unless_it_asks_to_take_over() {
    let mut supervisor = serving(RestartWhen::Always);
    let hello = |takeover| Event::Hello { peer: 5, takeover };
    assert_eq!(supervisor.apply(&hello(false)), [Action::Refuse(5, Refusal::Served)]);
    assert_eq!(supervisor.apply(&hello(true)), [Action::KillOwner]);
    // It gives up before its time comes: then the policy decides again.
    assert_eq!(supervisor.apply(&Event::Gone { peer: 5 }), []);
    assert_eq!(supervisor.apply(&KILLED), [Action::Start]);
}

#[test]
fn a_failed_replacement_leaves_the_owner_alone() {
    let mut supervisor = serving(RestartWhen::Always);
    supervisor.apply(&Event::Restart);
    supervisor.started(2);
    let gone = Event::Gone { peer: 2 };
    assert_eq!(supervisor.apply(&gone), [Action::ReplacementFailed]);
    assert_eq!(supervisor.phase(), Phase::Running);
}

#[test]
fn whoever_joins_by_hand_is_also_restarted_by_hand() {
    let mut supervisor = serving(RestartWhen::Never);
    supervisor.apply(&KILLED);
    let hello = Event::Hello { peer: 9, takeover: false };
    assert_eq!(supervisor.apply(&hello), [Action::Grant(9)]);
    assert_eq!(supervisor.apply(&KILLED), []);
    assert_eq!(supervisor.phase(), Phase::Waiting);
}

#[test]
fn the_first_failure_before_the_device_exists_is_the_last() {
    let mut supervisor = Supervisor::new(RestartWhen::Always, Some(3), true);
    supervisor.started(1);
    assert_eq!(supervisor.apply(&Event::Gone { peer: 1 }), [Action::GiveUp]);
}

fn with_spare() -> Supervisor {
    let mut supervisor = serving(RestartWhen::OnFailure);
    supervisor.keep_spare();
    assert!(supervisor.wants_spare());
    supervisor.started_spare(2);
    assert!(!supervisor.wants_spare());
    assert_eq!(supervisor.apply(&Event::Hello { peer: 2, takeover: false }), []);
    assert_eq!(supervisor.phase(), Phase::Running);
    supervisor
}

#[test]
fn a_spare_takes_over_the_moment_the_owner_is_dead() {
    let mut supervisor = with_spare();
    assert_eq!(supervisor.apply(&KILLED), [Action::Grant(2)]);
    assert!(!supervisor.wants_spare(), "not before the new owner is ready");
    supervisor.apply(&Event::Ready { peer: 2 });
    assert!(supervisor.wants_spare());
}

#[test]
fn a_spare_that_is_still_on_its_way_is_granted_when_it_arrives() {
    let mut supervisor = serving(RestartWhen::OnFailure);
    supervisor.keep_spare();
    supervisor.started_spare(2);
    assert_eq!(supervisor.apply(&KILLED), []);
    let hello = Event::Hello { peer: 2, takeover: false };
    assert_eq!(supervisor.apply(&hello), [Action::Grant(2)]);
}

#[test]
fn a_restart_wants_a_fresh_program_and_no_spare() {
    let mut supervisor = with_spare();
    assert_eq!(supervisor.apply(&Event::Restart), [Action::Dismiss(2), Action::Start]);
}

#[test]
fn a_restart_does_not_wait_for_a_program_that_does_not_come() {
    let mut supervisor = serving(RestartWhen::OnFailure);
    supervisor.apply(&KILLED);
    supervisor.started(2);
    assert_eq!(supervisor.apply(&Event::Restart), [Action::Dismiss(2), Action::Start]);
}

#[test]
fn a_backend_that_ended_cleanly_takes_its_spare_along() {
    let mut supervisor = with_spare();
    let clean = Event::OwnerDead { clean: true, progressed: true };
    assert_eq!(supervisor.apply(&clean), [Action::Dismiss(2)]);
    assert_eq!(supervisor.phase(), Phase::Waiting);
}

#[test]
fn a_joiner_makes_a_program_on_its_way_superfluous() {
    let mut supervisor = serving(RestartWhen::Always);
    supervisor.apply(&KILLED);
    supervisor.started(2);
    let hello = Event::Hello { peer: 3, takeover: false };
    assert_eq!(supervisor.apply(&hello), [Action::Grant(3), Action::Dismiss(2)]);
}
