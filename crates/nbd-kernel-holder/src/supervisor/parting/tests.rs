use super::*;
use crate::args::RestartWhen;

const LEFT: Event = Event::OwnerDead { clean: true, progressed: true };
const KILLED: Event = Event::OwnerDead { clean: false, progressed: true };

fn hello(peer: PeerId, takeover: bool) -> Event {
    Event::Hello { peer, takeover }
}

fn serving(when: RestartWhen) -> Supervisor {
    let mut supervisor = Supervisor::new(when, Some(3), true);
    supervisor.started(1);
    supervisor.apply(&hello(1, false));
    supervisor.apply(&Event::Ready { peer: 1 });
    supervisor.set_attached(0);
    supervisor
}

#[test]
fn nothing_is_granted_or_started_while_the_device_is_taken_down() {
    for death in [LEFT, KILLED] {
        let mut supervisor = serving(RestartWhen::Always);
        supervisor.keep_spare();
        assert_eq!(supervisor.apply(&Event::Part), []);
        assert!(!supervisor.wants_spare());
        assert_eq!(supervisor.owner(), Some(1), "it still has to end");
        let refused = Action::Refuse(5, Refusal::Parting);
        assert_eq!(supervisor.apply(&hello(5, true)), [refused]);
        assert_eq!(supervisor.apply(&Event::Restart), []);
        assert_eq!(supervisor.apply(&death), []);
        assert_eq!(supervisor.owner(), None);
        assert_eq!(supervisor.apply(&hello(6, false)), [Action::Refuse(6, Refusal::Parting)]);
        assert_eq!(supervisor.apply(&Event::Due), []);
    }
}

#[test]
fn whoever_waited_is_sent_away() {
    let mut supervisor = serving(RestartWhen::Always);
    supervisor.keep_spare();
    supervisor.started_spare(2);
    supervisor.apply(&hello(2, false));
    supervisor.apply(&hello(3, true));
    let actions = supervisor.apply(&Event::Part);
    // Ours is killed, somebody else's is told.
    assert_eq!(actions, [Action::Dismiss(2), Action::Refuse(3, Refusal::Parting)]);
    assert_eq!(supervisor.apply(&Event::Gone { peer: 2 }), []);
    assert_eq!(supervisor.apply(&KILLED), []);
}

#[test]
fn a_replacement_on_its_way_is_dismissed() {
    let mut supervisor = serving(RestartWhen::Always);
    supervisor.apply(&Event::Restart);
    supervisor.started(2);
    assert_eq!(supervisor.apply(&Event::Part), [Action::Dismiss(2)]);
    let mut supervisor = serving(RestartWhen::Always);
    supervisor.apply(&Event::Restart);
    supervisor.started(2);
    supervisor.apply(&hello(2, false));
    assert_eq!(supervisor.apply(&Event::Part), [Action::Dismiss(2)]);
}
