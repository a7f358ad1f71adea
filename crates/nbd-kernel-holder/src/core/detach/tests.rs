use super::super::fixture::{CLIENT, feed, served};
use super::super::{Order, Report};
use super::flushing::FLUSH_INTERVAL;
use super::*;

/// The helper process that was started for a task.
fn helper(commands: &[Command], wanted: &HelperTask) -> HelperId {
    let mut ids = commands.iter().filter_map(|command| match command {
        Command::StartHelper { id, task } if task == wanted => Some(*id),
        _ => None,
    });
    ids.next_back().expect("a helper process for the task")
}

/// A device that is written back and disconnected by the helper process that is returned.
fn flushing(core: &mut Core) -> HelperId {
    let order = Order::Detach { force: false };
    let begun = feed(core, &Event::Order { client: CLIENT, order });
    let id = helper(&begun, &HelperTask::FindUsers);
    let unused = feed(core, &Event::HelperEnded { id, report: Report::Users(Ok(Vec::new())) });
    let id = helper(&unused, &HelperTask::TellUdev { leaving: true });
    let told = feed(core, &Event::HelperEnded { id, report: Report::Status(0) });
    helper(&told, &HelperTask::FlushAndDisconnect)
}

fn surveys(commands: &[Command]) -> usize {
    commands.iter().filter(|command| matches!(command, Command::Survey { .. })).count()
}

#[test]
fn looks_that_take_longer_than_their_interval_leave_time_for_other_events() {
    let mut core = served();
    flushing(&mut core);
    let asked = Instant::now() + FLUSH_INTERVAL;
    assert_eq!(surveys(&core.handle(&Event::Time, asked)), 1);
    // The answer comes late, and is not followed by the next question at once.
    let answered = asked + 2 * FLUSH_INTERVAL;
    let survey = Survey { served: true, ..Survey::default() };
    assert_eq!(surveys(&core.handle(&Event::Time, answered)), 0);
    assert_eq!(surveys(&core.handle(&Event::Surveyed(survey), answered)), 0);
    assert_eq!(core.next_deadline(), Some(answered + FLUSH_INTERVAL));
    assert_eq!(surveys(&core.handle(&Event::Time, answered + FLUSH_INTERVAL)), 1);
}
