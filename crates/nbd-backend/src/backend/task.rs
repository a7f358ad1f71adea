//! A command in execution, and its result.

use nbd_proto::{Command, NbdError};

use super::durability::Durability;
use super::geometry::Extent;

/// A command whose client waits for the reply.
///
/// The owner of a task must [`finish`](Self::finish) it, at any time and in any order: the client
/// waits as long as it takes. A task that is dropped is a request that only a successor of this
/// process answers.
pub trait Task: Send + Sync + 'static {
    /// The command.
    fn command(&self) -> &Command;

    /// A write's data; empty for other commands.
    fn payload(&self) -> &[u8];

    /// Notes that execution begins now.
    fn begin(&self);

    /// Whether the client still waits for the reply. A worker asks before it begins, and finishes
    /// an unwanted task without executing it. Must be true for commands that change something.
    fn is_wanted(&self) -> bool {
        true
    }

    /// More answers of the same client follow from the thread that finishes this task: they may be sent
    /// together.
    fn hold_back(&mut self) {}

    /// Where a failed flush is remembered.
    fn durability(&self) -> &dyn Durability;

    /// Answers the client.
    fn finish(self: Box<Self>, completion: Completion<'_>);
}

/// The result of a command.
#[derive(Clone, Copy, Debug)]
pub enum Completion<'a> {
    /// Success without data.
    Done,
    /// A read's data, all of it.
    Data(&'a [u8]),
    /// A block status: at least one extent.
    Extents(&'a [Extent]),
    /// The error that the client gets.
    Error(NbdError),
}
