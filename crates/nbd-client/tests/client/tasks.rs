//! Tasks that can be waited for.

use std::sync::{Arc, mpsc};

use nbd_backend::{AsyncBackend, Command, Completion, Durability, Extent, ProcessDurability, Task};
use nbd_client::Remote;
use nbd_proto::NbdError;

use crate::script::EVENT_TIMEOUT;

/// What came of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Data(Vec<u8>),
    Extents(Vec<Extent>),
    Error(NbdError),
}

pub(crate) struct TestTask {
    command: Command,
    payload: Vec<u8>,
    outcome: mpsc::Sender<Outcome>,
    pub(crate) durability: Arc<ProcessDurability>,
}

/// Where an outcome arrives.
pub(crate) struct Pending(mpsc::Receiver<Outcome>);

impl Pending {
    pub(crate) fn wait(&self) -> Outcome {
        self.0.recv_timeout(EVENT_TIMEOUT).expect("the task was not finished")
    }

    /// Whether the task is still waiting.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.0.try_recv(), Err(mpsc::TryRecvError::Empty))
    }
}

impl Task for TestTask {
    fn command(&self) -> &Command {
        &self.command
    }

    fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn begin(&self) {}

    fn durability(&self) -> &dyn Durability {
        &*self.durability
    }

    fn finish(self: Box<Self>, completion: Completion<'_>) {
        let _ = self.outcome.send(match completion {
            Completion::Done => Outcome::Done,
            Completion::Data(data) => Outcome::Data(data.into()),
            Completion::Extents(extents) => Outcome::Extents(extents.into()),
            Completion::Error(error) => Outcome::Error(error),
        });
    }
}

pub(crate) fn start_with(
    remote: &Remote,
    command: Command,
    payload: Vec<u8>,
    durability: &Arc<ProcessDurability>,
) -> Pending {
    let (outcome, outcomes) = mpsc::channel();
    let durability = Arc::clone(durability);
    let task = TestTask { command, payload, outcome, durability };
    remote.submit_async(Box::new(task));
    Pending(outcomes)
}

pub(crate) fn start(remote: &Remote, command: Command) -> Pending {
    start_with(remote, command, Vec::new(), &Arc::default())
}

pub(crate) fn read(remote: &Remote, offset: u64, length: u32) -> Pending {
    start(remote, Command::Read { offset, length })
}

pub(crate) fn write(remote: &Remote, offset: u64, payload: &[u8]) -> Pending {
    let command = Command::Write { offset, length: payload.len() as u32, fua: false };
    start_with(remote, command, payload.into(), &Arc::default())
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}
