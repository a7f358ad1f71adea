use super::*;
use crate::args::RestartWhen;
use crate::core::BackendId;

const LEFT: Event = Event::OwnerDead { clean: true, progressed: true };
const KILLED: Event = Event::OwnerDead { clean: false, progressed: true };

fn hello(backend: u64, takeover: bool) -> Event {
    Event::Hello { backend: BackendId(backend), takeover }
}

fn serving(when: RestartWhen) -> Ownership {
    let mut ownership = Ownership::new(when, Some(3), true);
    ownership.started(BackendId(1));
    ownership.apply(&hello(1, false));
    ownership.apply(&Event::Ready { backend: BackendId(1) });
    ownership.set_attached(0);
    ownership
}

#[test]
fn nothing_is_granted_or_started_while_the_device_is_taken_down() {
    for death in [LEFT, KILLED] {
        let mut ownership = serving(RestartWhen::Always);
        ownership.keep_spare();
        assert_eq!(ownership.apply(&Event::ShutDown), []);
        assert!(!ownership.wants_spare());
        assert_eq!(ownership.owner(), Some(BackendId(1)), "it still has to end");
        let refused = Action::Refuse(BackendId(5), Refusal::ShuttingDown);
        assert_eq!(ownership.apply(&hello(5, true)), [refused]);
        assert_eq!(ownership.apply(&Event::Restart), []);
        assert_eq!(ownership.apply(&death), []);
        assert_eq!(ownership.owner(), None);
        assert_eq!(
            ownership.apply(&hello(6, false)),
            [Action::Refuse(BackendId(6), Refusal::ShuttingDown)]
        );
        assert_eq!(ownership.apply(&Event::Due), []);
    }
}

#[test]
fn whoever_waited_is_sent_away() {
    let mut ownership = serving(RestartWhen::Always);
    ownership.keep_spare();
    ownership.started_spare(BackendId(2));
    ownership.apply(&hello(2, false));
    ownership.apply(&hello(3, true));
    let actions = ownership.apply(&Event::ShutDown);
    // Ours is killed, one from outside is told.
    assert_eq!(
        actions,
        [Action::Dismiss(BackendId(2)), Action::Refuse(BackendId(3), Refusal::ShuttingDown)]
    );
    assert_eq!(ownership.apply(&Event::Gone { backend: BackendId(2) }), []);
    assert_eq!(ownership.apply(&KILLED), []);
}

#[test]
fn a_replacement_on_its_way_is_dismissed() {
    let mut ownership = serving(RestartWhen::Always);
    ownership.apply(&Event::Restart);
    ownership.started(BackendId(2));
    assert_eq!(ownership.apply(&Event::ShutDown), [Action::Dismiss(BackendId(2))]);
    let mut ownership = serving(RestartWhen::Always);
    ownership.apply(&Event::Restart);
    ownership.started(BackendId(2));
    ownership.apply(&hello(2, false));
    assert_eq!(ownership.apply(&Event::ShutDown), [Action::Dismiss(BackendId(2))]);
}
