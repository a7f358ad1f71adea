//! Faults that are planted into the core, to show that the exploration finds them.

use super::super::{Command, Core, Reply, ownership};

/// A fault that is planted into the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A killed owner counts as dead.
    GrantBeforeDeath,
    /// A grant does not wait for the state.
    GrantBeforePersisted,
    /// The sitter goes before the state names it.
    SecondHolder,
    /// The client of a detach by force is forgotten.
    ForceNotAnswered,
    /// The end of the device does not end the wish for a spare.
    SpareDuringShutdown,
    /// A client that waits for a backend is not told that none comes.
    NoWordOfNone,
    /// Each answer is given twice.
    AnsweredTwice,
}

/// Changes the core's decision as the fault would.
pub(super) fn plant(fault: Fault, core: &mut Core, commands: &mut Vec<Command>) {
    match fault {
        Fault::GrantBeforeDeath if commands.contains(&Command::KillOwner) => {
            let dead = ownership::Event::OwnerDead { clean: false, progressed: true };
            core.apply(&dead);
            commands.append(&mut core.out);
        }
        Fault::GrantBeforePersisted => {
            if let Some(backend) = commands.iter().find_map(|command| match command {
                Command::PrepareGrant { backend } => Some(*backend),
                _ => None,
            }) {
                commands.push(Command::Grant { backend });
            }
        }
        Fault::SecondHolder => {
            if let Some(at) = commands.iter().position(|it| *it == Command::StartSitter) {
                commands.insert(at + 1, Command::LetSitterGo);
            }
        }
        Fault::ForceNotAnswered => {
            core.orders.detach.take_if(|order| order.force && !core.device.attached);
        }
        Fault::SpareDuringShutdown if commands.contains(&Command::EndLanes) => {
            let backend = core.new_backend();
            core.ownership.started_spare(backend);
            commands.push(Command::StartSpare { backend });
        }
        Fault::NoWordOfNone => {
            let is_word =
                |it: &Command| matches!(it, Command::Reply { reply: Reply::NoBackendComes, .. });
            commands.retain(|command| !is_word(command));
        }
        Fault::AnsweredTwice => {
            let replies = commands.iter().filter(|it| matches!(it, Command::Reply { .. }));
            let again: Vec<_> = replies.cloned().collect();
            commands.extend(again);
        }
        Fault::GrantBeforeDeath | Fault::SpareDuringShutdown => {}
    }
}
