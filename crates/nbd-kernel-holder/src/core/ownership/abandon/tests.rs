use super::super::{Event, Phase, Refusal};
use super::*;
use crate::args::RestartWhen;
use crate::core::BackendId;

const DEAD: Event = Event::OwnerDead { clean: false, progressed: true };

fn hello(backend: u64) -> Event {
    Event::Hello { backend: BackendId(backend), takeover: true }
}

/// Peer 1 serves, started by us, and backend 2 is its spare.
fn serving() -> Ownership {
    let mut ownership = Ownership::new(RestartWhen::Always, Some(3), true);
    ownership.started(BackendId(1));
    ownership.apply(&hello(1));
    ownership.apply(&Event::Ready { backend: BackendId(1) });
    ownership.set_attached(0);
    ownership.keep_spare();
    ownership.started_spare(BackendId(2));
    ownership.apply(&hello(2));
    ownership
}

#[test]
fn only_the_eio_backend_follows_the_backend_of_a_device_that_is_given_up() {
    let mut ownership = serving();
    assert_eq!(
        ownership.apply(&Event::Abandon),
        [Action::Dismiss(BackendId(2)), Action::KillOwner]
    );
    assert_eq!(ownership.apply(&hello(5)), [Action::Refuse(BackendId(5), Refusal::ShuttingDown)]);
    assert_eq!(ownership.apply(&Event::Restart), []);
    assert_eq!(ownership.apply(&DEAD), [Action::StartEioBackend]);
    ownership.started_eio_backend(BackendId(7));
    assert_eq!(ownership.apply(&hello(7)), [Action::Grant(BackendId(7))]);
    ownership.apply(&Event::Ready { backend: BackendId(7) });
    assert_eq!(ownership.phase(), Phase::Failing);
    assert!(!ownership.wants_spare());
    assert_eq!(ownership.apply(&Event::Abandon), [], "it answers already");
    assert_eq!(ownership.apply(&Event::ShutDown), []);
    assert_eq!(ownership.owner(), Some(BackendId(7)), "it sees the end of its lanes");
    assert_eq!(ownership.apply(&DEAD), []);
}

#[test]
fn the_eio_backend_waits_until_a_backend_in_an_uninterruptible_call_is_dead() {
    let mut ownership = serving();
    ownership.apply(&Event::Abandon);
    assert!(ownership.is_fencing());
    // The operator tries again meanwhile.
    assert_eq!(ownership.apply(&Event::Abandon), [Action::KillOwner]);
    assert_eq!(ownership.apply(&DEAD), [Action::StartEioBackend]);
}

#[test]
fn a_eio_backend_that_dies_is_started_again_only_for_another_attempt() {
    let mut ownership = serving();
    ownership.apply(&Event::Abandon);
    ownership.apply(&DEAD);
    ownership.started_eio_backend(BackendId(7));
    ownership.apply(&hello(7));
    assert_eq!(ownership.apply(&DEAD), []);
    assert_eq!(ownership.apply(&Event::Abandon), [Action::StartEioBackend]);
    assert_eq!(ownership.apply(&Event::EioBackendFailed), []);
    assert_eq!(ownership.apply(&Event::Abandon), [Action::StartEioBackend]);
}

#[test]
fn a_eio_backend_that_was_about_to_leave_is_followed_by_another_one() {
    let mut ownership = serving();
    ownership.apply(&Event::Fail);
    ownership.apply(&DEAD);
    ownership.started_eio_backend(BackendId(7));
    ownership.apply(&hello(7));
    assert_eq!(ownership.apply(&Event::FailDone), [Action::KillOwner]);
    assert!(ownership.apply(&Event::Abandon).contains(&Action::KillOwner));
    assert_eq!(ownership.apply(&DEAD), [Action::StartEioBackend]);
}
