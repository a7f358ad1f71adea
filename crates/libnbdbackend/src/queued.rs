//! An asynchronous device: requests go to a queue, and are answered when the program completes them.

use std::ffi::c_int;
use std::io;
use std::sync::{Arc, mpsc};

use nbd_backend::{
    AsyncBackend, Backend, Command, Completion, Durability, Geometry, ProcessDurability, Task,
    remember, reply_error,
};

use crate::context::Context;
use crate::error::{Failure, Outcome, of_program};
use crate::outstanding::Outstanding;
use crate::queue::{Entry, Queue, Waiting};
use crate::requests::{self, Request, Work};

/// A device whose requests the program takes from a queue.
pub(crate) struct Queued {
    pub(crate) device: c_int,
    pub(crate) context: Context,
    pub(crate) queue: Arc<Queue>,
    pub(crate) geometry: Geometry,
    pub(crate) outstanding: Arc<Outstanding>,
}

impl Queued {
    pub(crate) fn push(&self, entry: Entry) {
        self.queue.push(Waiting { device: self.device, context: self.context, entry });
    }

    fn submit(&self, work: Work) {
        let request = Request::new(work, &self.outstanding);
        self.push(Entry::Request(requests::insert(self.device, request)));
    }

    /// Asks the program whether it serves the device, which was granted.
    pub(crate) fn granted(&self) -> c_int {
        let (answer, answers) = mpsc::channel();
        self.submit(Work::Grant(answer));
        // The sender is in the table until the program completes the event.
        answers.recv().unwrap_or(libc::EIO)
    }

    /// Executes a command of the engine's own, and waits for the program.
    fn execute(&self, command: Command, payload: Vec<u8>, data: &mut [u8]) -> io::Result<()> {
        let (answer, answers) = mpsc::channel();
        let durability = ProcessDurability::default();
        self.submit(Work::Task(Box::new(OwnTask { command, payload, durability, answer })));
        match answers.recv() {
            Ok(Ok(read)) => {
                let count = read.len().min(data.len());
                data[..count].copy_from_slice(&read[..count]);
                Ok(())
            }
            Ok(Err(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Err(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }
}

impl AsyncBackend for Queued {
    fn submit_async(&self, task: Box<dyn Task>) {
        self.submit(Work::Task(task));
    }
}

/// The methods are for what the kernel sends without having been offered it, which the engine makes
/// writes of.
impl Backend for Queued {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let length = u32::try_from(buffer.len()).map_err(io::Error::other)?;
        self.execute(Command::Read { offset, length }, Vec::new(), buffer)
    }

    fn write_at(&self, data: &[u8], offset: u64, fua: bool) -> io::Result<()> {
        let length = u32::try_from(data.len()).map_err(io::Error::other)?;
        self.execute(Command::Write { offset, length, fua }, data.to_vec(), &mut [])
    }

    fn flush(&self) -> io::Result<()> {
        self.execute(Command::Flush, Vec::new(), &mut [])
    }

    fn max_threads(&self) -> usize {
        1
    }

    fn as_async(&self) -> Option<&dyn AsyncBackend> {
        Some(self)
    }
}

/// A command of the engine's own.
struct OwnTask {
    command: Command,
    payload: Vec<u8>,
    durability: ProcessDurability,
    answer: mpsc::Sender<Result<Vec<u8>, c_int>>,
}

impl Task for OwnTask {
    fn command(&self) -> &Command {
        &self.command
    }

    fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn begin(&self) {}

    fn durability(&self) -> &dyn Durability {
        &self.durability
    }

    fn finish(self: Box<Self>, completion: Completion<'_>) {
        let answer = match completion {
            Completion::Data(data) => Ok(data.to_vec()),
            Completion::Done | Completion::Extents(_) => Ok(Vec::new()),
            Completion::Error(error) => Err(error.to_errno()),
        };
        // The worker that waits for it is never gone.
        let _ = self.answer.send(answer);
    }
}

/// Where the data of a read is.
pub(crate) enum Source<'a> {
    /// In the buffer that the library gave, if it did.
    Buffer,
    /// In the program's memory.
    Program(&'a [u8]),
}

/// Answers a request that the program has executed.
pub(crate) fn complete(handle: u64, code: c_int, source: &Source<'_>) -> Outcome<()> {
    if let Source::Program(data) = source {
        check_data(handle, data.len())?;
    }
    let Some((work, buffer, finished)) = requests::take(handle) else {
        return Err(unknown(handle));
    };
    let result = match work {
        Work::Grant(answer) => {
            // The device's thread waits for it.
            let _ = answer.send(code);
            Ok(())
        }
        Work::Task(task) => match (source, &buffer) {
            (Source::Program(data), _) => answer(task, code, data),
            (Source::Buffer, Some(buffer)) => answer(task, code, buffer.bytes()),
            (Source::Buffer, None) => answer(task, code, &[]),
        },
    };
    drop(finished);
    result
}

fn answer(task: Box<dyn Task>, code: c_int, data: &[u8]) -> Outcome<()> {
    let command = *task.command();
    let done = of_program(code);
    match (done, command) {
        (Ok(()), Command::Read { length, .. }) if data.len() != length as usize => {
            task.finish(Completion::Error(nbd_proto::NbdError::EIO));
            return Err(Failure::new(
                libc::EINVAL,
                "a read was completed without data, so it failed with EIO: fill nbdb_buffer() first",
            ));
        }
        (Ok(()), Command::Read { .. }) => task.finish(Completion::Data(data)),
        (Ok(()), _) => task.finish(Completion::Done),
        (Err(error), _) => {
            let error = reply_error(&command, &error);
            remember(task.durability(), &command, error);
            task.finish(Completion::Error(error));
        }
    }
    Ok(())
}

/// Whether a request is a read of so many bytes. It stays as it is if not.
fn check_data(handle: u64, count: usize) -> Outcome<()> {
    let length = requests::with(handle, |request| match &request.work {
        Work::Task(task) => match task.command() {
            Command::Read { length, .. } => Some(*length as usize),
            _ => None,
        },
        Work::Grant(_) => None,
    });
    match length {
        None => Err(unknown(handle)),
        Some(None) => Err(Failure::new(libc::EINVAL, "only a read is completed with data")),
        Some(Some(length)) if length != count => {
            let message = format!("{count} bytes for a read of {length}");
            Err(Failure::new(libc::EINVAL, message))
        }
        Some(Some(_)) => Ok(()),
    }
}

pub(crate) fn unknown(handle: u64) -> Failure {
    let message = format!("there is no request {handle:#x}: was it completed already?");
    Failure::new(libc::ENOENT, message)
}
