use super::super::{BackendId, Event, Kind, Phase};
use super::*;

const CRASHED_AT_ONCE: Event = Event::OwnerDead { clean: false, progressed: false };
const KILLED: Event = Event::OwnerDead { clean: false, progressed: true };

fn hello(backend: u64) -> Event {
    Event::Hello { backend: BackendId(backend), takeover: false }
}

fn serving(limit: Option<u32>) -> Ownership {
    let mut ownership = Ownership::new(RestartWhen::OnFailure, limit, true);
    ownership.started(BackendId(1));
    ownership.apply(&hello(1));
    ownership.apply(&Event::Ready { backend: BackendId(1) });
    ownership.set_attached(0);
    ownership
}

fn pause_of(actions: &[Action]) -> Duration {
    match actions {
        [Action::StartAfter(pause)] => *pause,
        other => panic!("no pause: {other:?}"),
    }
}

/// The program cannot be started so many times in a row; the pauses before the next tries.
fn fail_to_start(ownership: &mut Ownership, times: usize, shortage: bool) -> Vec<Duration> {
    let failed = Event::StartFailed { shortage };
    let mut pauses = Vec::new();
    for _ in 0..times {
        pauses.push(pause_of(&ownership.apply(&failed)));
        assert_eq!(ownership.phase(), Phase::Restarting);
        assert_eq!(ownership.apply(&Event::Due), [Action::Start]);
    }
    pauses
}

#[test]
fn without_a_limit_the_holder_tries_for_ever_and_at_least_twice_a_minute() {
    let mut ownership = serving(None);
    assert_eq!(ownership.apply(&KILLED), [Action::Start]);
    let pauses = fail_to_start(&mut ownership, 1000, false);
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses[0], Duration::from_millis(20));
    assert_eq!(pauses[999], Duration::from_secs(30));
    assert_eq!(ownership.tries(), 1000);
    ownership.started(BackendId(2));
    assert_eq!(ownership.apply(&hello(2)), [Action::Grant(BackendId(2))]);
}

#[test]
fn a_backend_that_crashes_before_it_answers_is_started_again_for_ever() {
    let mut ownership = serving(None);
    for backend in 2..100 {
        pause_of(&ownership.apply(&CRASHED_AT_ONCE));
        assert_eq!(ownership.apply(&Event::Due), [Action::Start]);
        ownership.started(BackendId(backend));
        assert_eq!(ownership.apply(&hello(backend)), [Action::Grant(BackendId(backend))]);
        ownership.apply(&Event::Ready { backend: BackendId(backend) });
    }
}

#[test]
fn a_shortage_uses_up_no_limit_and_lengthens_the_pauses() {
    let mut ownership = serving(Some(3));
    ownership.apply(&KILLED);
    let pauses = fail_to_start(&mut ownership, 20, true);
    assert_eq!(pauses[19], Duration::from_secs(30));
    fail_to_start(&mut ownership, 3, false);
    let failed = Event::StartFailed { shortage: false };
    assert_eq!(ownership.apply(&failed), [Action::GiveUp], "these were its own");
    assert_eq!(ownership.phase(), Phase::Down);
}

#[test]
fn a_backend_that_stays_has_no_failures_behind_it() {
    let mut ownership = serving(None);
    ownership.apply(&KILLED);
    fail_to_start(&mut ownership, 20, false);
    ownership.started(BackendId(2));
    ownership.apply(&hello(2));
    ownership.apply(&Event::Ready { backend: BackendId(2) });
    ownership.apply(&Event::Stable);
    assert_eq!(pause_of(&ownership.apply(&CRASHED_AT_ONCE)), Duration::from_millis(20));
}

#[test]
fn an_order_or_a_joiner_ends_the_pause_at_once() {
    let mut ownership = serving(None);
    ownership.apply(&KILLED);
    fail_to_start(&mut ownership, 20, false);
    ownership.apply(&Event::StartFailed { shortage: false });
    assert_eq!(ownership.apply(&Event::Restart), [Action::Start]);
    assert_eq!(ownership.tries(), 0);
    fail_to_start(&mut ownership, 20, false);
    ownership.apply(&Event::StartFailed { shortage: false });
    assert_eq!(ownership.apply(&hello(9)), [Action::Grant(BackendId(9))]);
    assert_eq!(ownership.apply(&Event::Due), [], "there is one");
}

#[test]
fn a_holder_in_a_pause_can_be_upgraded() {
    let mut ownership = serving(None);
    ownership.apply(&KILLED);
    ownership.started(BackendId(2));
    assert!(!ownership.is_settled(), "one is on its way");
    ownership.apply(&Event::Gone { backend: BackendId(2) });
    assert!(ownership.is_settled());
}

#[test]
fn an_order_that_fails_is_not_repeated_where_nothing_is_started_by_itself() {
    let mut ownership = Ownership::new(RestartWhen::Never, None, true);
    ownership.adopt(BackendId(1), Kind::Program);
    ownership.set_attached(0);
    ownership.apply(&KILLED);
    assert_eq!(ownership.apply(&Event::Restart), [Action::Start]);
    let failed = Event::StartFailed { shortage: false };
    assert_eq!(ownership.apply(&failed), [Action::GiveUp]);
}

#[test]
fn a_spare_that_keeps_failing_is_tried_again_after_ever_longer_pauses() {
    let mut ownership = serving(None);
    ownership.keep_spare();
    let mut pauses = vec![ownership.spare_pause()];
    for backend in 2..20 {
        assert!(ownership.wants_spare());
        ownership.started_spare(BackendId(backend));
        assert_eq!(ownership.apply(&Event::Gone { backend: BackendId(backend) }), []);
        pauses.push(ownership.spare_pause());
    }
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses[..2], [SPARE_PAUSE, FIRST_SPARE_PAUSE]);
    assert_eq!(pauses[18], LONGEST_PAUSE);
    assert_eq!(ownership.apply(&KILLED), [Action::Start], "nothing waits for a spare");
}
