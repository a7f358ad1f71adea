use super::super::fixture::{CLIENT, feed, served};
use super::super::{Order, OwnerEnd};
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
