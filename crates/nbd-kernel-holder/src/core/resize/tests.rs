use super::super::fixture::{CLIENT, feed, served};
use super::super::{HelperId, Order, OwnerEnd};
use super::*;

const GIB: u64 = 1 << 30;

/// Lets a backend with an export of this size take over.
fn take_over(core: &mut Core, started: &[Command], size: u64) -> Vec<Command> {
    let backend = started.iter().find_map(|command| match command {
        Command::StartProgram { backend, probe: true, .. } => Some(*backend),
        _ => None,
    });
    let backend = backend.expect("a backend that is asked for its size");
    feed(core, &Event::Hello { backend, takeover: false, size });
    let killed = OwnerEnd { orderly: false, clean: false, progressed: true, spare_is_old: false };
    feed(core, &Event::OwnerEnded(killed));
    feed(core, &Event::Ready { backend })
}

#[test]
fn a_refused_change_leaves_what_an_earlier_one_has_written() {
    let mut core = served();
    let order = Order::Resize { size: Some(3 * GIB), force: false };
    feed(&mut core, &Event::Order { client: CLIENT, order });
    // The driver has not done the change to 2 GiB yet, which is written down.
    let survey = Survey { served: true, size: GIB, written_size: 2 * GIB, ..Survey::default() };
    let started = feed(&mut core, &Event::Surveyed(survey));
    let grown = take_over(&mut core, &started, 3 * GIB);
    assert!(grown.contains(&Command::SetSize { size: 3 * GIB }), "{grown:?}");

    let busy = Survey { size_change: true, ..survey };
    let refused = feed(&mut core, &Event::Surveyed(busy));
    assert_eq!(refused[0], Command::SetSize { size: 2 * GIB }, "{refused:?}");
    let reply = Reply::NotResized(ResizeError::EarlierChange);
    assert!(refused.contains(&Command::Reply { client: CLIENT, reply }), "{refused:?}");
}

/// Grows to 2 GiB until the driver is told; the helper that tells it.
fn tell_driver(core: &mut Core) -> HelperId {
    let order = Order::Resize { size: Some(2 * GIB), force: false };
    feed(core, &Event::Order { client: CLIENT, order });
    let survey = Survey { served: true, size: GIB, written_size: GIB, ..Survey::default() };
    let started = feed(core, &Event::Surveyed(survey));
    take_over(core, &started, 2 * GIB);
    feed(core, &Event::Surveyed(survey));
    let told = feed(core, &Event::Seen { condition: Condition::NotedAnswered, holds: true });
    let helper = told.iter().find_map(|command| match command {
        Command::StartHelper { id, task: HelperTask::Resize { size, .. } } if *size == 2 * GIB => {
            Some(*id)
        }
        _ => None,
    });
    helper.expect("a helper that tells the driver")
}

#[test]
fn a_helper_that_was_killed_may_have_resized_the_device() {
    let mut core = served();
    let helper = tell_driver(&mut core);
    let report = Report::Resized(Resized::Unknown);
    let next = feed(&mut core, &Event::HelperEnded { id: helper, report });
    // The size that was written down is what successors serve: never less than the kernel may show.
    assert!(!next.contains(&Command::SetSize { size: GIB }), "{next:?}");
    let watched: Vec<_> = core.watches().iter().map(|watch| watch.condition).collect();
    assert!(watched.contains(&Condition::SizeIs(2 * GIB)), "{watched:?}");
}
