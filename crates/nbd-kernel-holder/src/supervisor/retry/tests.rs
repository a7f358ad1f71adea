use super::super::{Event, Kind, PeerId, Phase};
use super::*;

const CRASHED_AT_ONCE: Event = Event::OwnerDead { clean: false, progressed: false };
const KILLED: Event = Event::OwnerDead { clean: false, progressed: true };

fn hello(peer: PeerId) -> Event {
    Event::Hello { peer, takeover: false }
}

fn serving(limit: Option<u32>) -> Supervisor {
    let mut supervisor = Supervisor::new(RestartWhen::OnFailure, limit, true);
    supervisor.started(1);
    supervisor.apply(&hello(1));
    supervisor.apply(&Event::Ready { peer: 1 });
    supervisor.set_attached(0);
    supervisor
}

fn pause_of(actions: &[Action]) -> Duration {
    match actions {
        [Action::StartAfter(pause)] => *pause,
        other => panic!("no pause: {other:?}"),
    }
}

/// The program cannot be started so many times in a row; the pauses before the next tries.
fn fail_to_start(supervisor: &mut Supervisor, times: usize, shortage: bool) -> Vec<Duration> {
    let failed = Event::StartFailed { shortage };
    let mut pauses = Vec::new();
    for _ in 0..times {
        pauses.push(pause_of(&supervisor.apply(&failed)));
        assert_eq!(supervisor.phase(), Phase::Restarting);
        assert_eq!(supervisor.apply(&Event::Due), [Action::Start]);
    }
    pauses
}

#[test]
fn without_a_limit_the_holder_tries_for_ever_and_at_least_twice_a_minute() {
    let mut supervisor = serving(None);
    assert_eq!(supervisor.apply(&KILLED), [Action::Start]);
    let pauses = fail_to_start(&mut supervisor, 1000, false);
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses[0], Duration::from_millis(20));
    assert_eq!(pauses[999], Duration::from_secs(30));
    assert_eq!(supervisor.tries(), 1000);
    supervisor.started(2);
    assert_eq!(supervisor.apply(&hello(2)), [Action::Grant(2)]);
}

#[test]
fn a_backend_that_crashes_before_it_answers_is_started_again_for_ever() {
    let mut supervisor = serving(None);
    for peer in 2..100 {
        pause_of(&supervisor.apply(&CRASHED_AT_ONCE));
        assert_eq!(supervisor.apply(&Event::Due), [Action::Start]);
        supervisor.started(peer);
        assert_eq!(supervisor.apply(&hello(peer)), [Action::Grant(peer)]);
        supervisor.apply(&Event::Ready { peer });
    }
}

#[test]
fn a_shortage_uses_up_no_limit_and_lengthens_the_pauses() {
    let mut supervisor = serving(Some(3));
    supervisor.apply(&KILLED);
    let pauses = fail_to_start(&mut supervisor, 20, true);
    assert_eq!(pauses[19], Duration::from_secs(30));
    fail_to_start(&mut supervisor, 3, false);
    let failed = Event::StartFailed { shortage: false };
    assert_eq!(supervisor.apply(&failed), [Action::GiveUp], "these were its own");
    assert_eq!(supervisor.phase(), Phase::Down);
}

#[test]
fn a_backend_that_stays_has_no_failures_behind_it() {
    let mut supervisor = serving(None);
    supervisor.apply(&KILLED);
    fail_to_start(&mut supervisor, 20, false);
    supervisor.started(2);
    supervisor.apply(&hello(2));
    supervisor.apply(&Event::Ready { peer: 2 });
    supervisor.apply(&Event::Stable);
    assert_eq!(pause_of(&supervisor.apply(&CRASHED_AT_ONCE)), Duration::from_millis(20));
}

#[test]
fn an_order_or_a_joiner_ends_the_pause_at_once() {
    let mut supervisor = serving(None);
    supervisor.apply(&KILLED);
    fail_to_start(&mut supervisor, 20, false);
    supervisor.apply(&Event::StartFailed { shortage: false });
    assert_eq!(supervisor.apply(&Event::Restart), [Action::Start]);
    assert_eq!(supervisor.tries(), 0);
    fail_to_start(&mut supervisor, 20, false);
    supervisor.apply(&Event::StartFailed { shortage: false });
    assert_eq!(supervisor.apply(&hello(9)), [Action::Grant(9)]);
    assert_eq!(supervisor.apply(&Event::Due), [], "there is one");
}

#[test]
fn a_holder_in_a_pause_can_be_upgraded() {
    let mut supervisor = serving(None);
    supervisor.apply(&KILLED);
    supervisor.started(2);
    assert!(!supervisor.is_settled(), "one is on its way");
    supervisor.apply(&Event::Gone { peer: 2 });
    assert!(supervisor.is_settled());
}

#[test]
fn an_order_that_fails_is_not_repeated_where_nothing_is_started_by_itself() {
    let mut supervisor = Supervisor::new(RestartWhen::Never, None, true);
    supervisor.adopt(1, Kind::Program);
    supervisor.set_attached(0);
    supervisor.apply(&KILLED);
    assert_eq!(supervisor.apply(&Event::Restart), [Action::Start]);
    let failed = Event::StartFailed { shortage: false };
    assert_eq!(supervisor.apply(&failed), [Action::GiveUp]);
}

#[test]
fn a_spare_that_keeps_failing_is_tried_again_after_ever_longer_pauses() {
    let mut supervisor = serving(None);
    supervisor.keep_spare();
    let mut pauses = vec![supervisor.spare_pause()];
    for peer in 2..20 {
        assert!(supervisor.wants_spare());
        supervisor.started_spare(peer);
        assert_eq!(supervisor.apply(&Event::Gone { peer }), []);
        pauses.push(supervisor.spare_pause());
    }
    assert!(pauses.is_sorted(), "{pauses:?}");
    assert_eq!(pauses[..2], [SPARE_PAUSE, FIRST_SPARE_PAUSE]);
    assert_eq!(pauses[18], LONGEST_PAUSE);
    assert_eq!(supervisor.apply(&KILLED), [Action::Start], "nothing waits for a spare");
}
