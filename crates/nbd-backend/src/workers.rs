//! The threads on which commands that may block are executed, shared by all lanes.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};

use nbd_ledger::Answer;
use nbd_ledger::receive::Ticket;
use nbd_proto::Command;

use crate::backend::Backend;
use crate::execute::{execute, to_nbd};
use crate::lane::{AbortOnPanic, LaneState, lock};
use crate::system::now;

/// Most threads. More requests than that wait in the queue.
const MOST: usize = 32;
/// A worker whose buffer has grown beyond this gives it back.
const KEEP: usize = 256 << 10;
/// Alignment that direct I/O asks of buffers.
const ALIGNMENT: usize = 4096;

/// A command to execute off the lane's thread.
pub(crate) struct Job {
    pub(crate) ticket: Ticket,
    pub(crate) command: Command,
    pub(crate) lane: Arc<LaneState>,
}

/// The pool. Threads are started as they are needed and then stay.
pub(crate) struct Workers {
    backend: Arc<dyn Backend>,
    queue: Mutex<Queue>,
    work: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

impl Workers {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self { backend, queue: Mutex::default(), work: Condvar::new() })
    }

    pub(crate) fn submit(self: &Arc<Self>, job: Job) {
        let mut queue = lock(&self.queue);
        queue.jobs.push_back(job);
        if queue.idle >= queue.jobs.len() || queue.threads == MOST {
            self.work.notify_one();
            return;
        }
        let workers = Arc::clone(self);
        let name = format!("worker-{}", queue.threads);
        match std::thread::Builder::new().name(name).spawn(move || workers.run()) {
            Ok(_) => queue.threads += 1,
            Err(error) if queue.threads == 0 => {
                // Nobody would ever execute the job. A successor may find more room.
                eprintln!("nbd-backend: cannot start a worker thread: {error}");
                std::process::abort();
            }
            Err(_) => self.work.notify_one(),
        }
    }

    fn run(&self) {
        let _abort = AbortOnPanic;
        let mut buffer = Vec::new();
        loop {
            let job = self.next();
            self.serve(job, &mut buffer);
            if buffer.len() > KEEP {
                buffer = Vec::new();
            }
        }
    }

    fn next(&self) -> Job {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return job;
            }
            queue.idle += 1;
            queue = self.work.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    fn serve(&self, job: Job, buffer: &mut Vec<u8>) {
        let Job { ticket, command, lane } = job;
        ticket.begin(now());
        if let Command::Read { offset, length } = command {
            let data = aligned(buffer, length as usize);
            match self.backend.read_at(data, offset) {
                Ok(()) => lane.answer(ticket, Answer::Data(data)),
                Err(error) => lane.answer(ticket, Answer::Error(to_nbd(&command, &error))),
            }
            return;
        }
        let ledger = ticket.lane().ledger();
        match execute(&*self.backend, ledger, &command, ticket.payload()) {
            Ok(()) => lane.answer(ticket, Answer::Done),
            Err(error) => lane.answer(ticket, Answer::Error(error)),
        }
    }
}

/// `length` bytes of the buffer, at an address that direct I/O accepts.
fn aligned(buffer: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if buffer.len() < length + ALIGNMENT {
        buffer.resize(length + ALIGNMENT, 0);
    }
    let start = buffer.as_ptr().align_offset(ALIGNMENT);
    &mut buffer[start..start + length]
}
