//! The threads on which commands that may block are executed, shared by all lanes.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::perform::{self, Buffer};
use crate::backend::Backend;
use crate::backend::Task;
use crate::panics::{AbortOnPanic, lock};

/// Threads of one backend, started on demand, as many as it [allows](Backend::max_threads). Further
/// tasks wait in the queue.
pub struct Workers {
    backend: Arc<dyn Backend>,
    queue: Mutex<Queue>,
    work: Condvar,
    ended: Condvar,
}

#[derive(Default)]
struct Queue {
    tasks: VecDeque<Box<dyn Task>>,
    idle: usize,
    threads: usize,
    /// No task comes any more, and threads end.
    is_closed: bool,
}

impl Workers {
    /// Workers without a thread yet.
    pub fn new(backend: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self {
            backend,
            queue: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
        })
    }

    /// The backend that they execute tasks of.
    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Executes a task: by the backend itself if that takes it, else by a thread.
    pub fn submit(self: &Arc<Self>, task: Box<dyn Task>) {
        if let Some(task) = perform::start(&*self.backend, task) {
            self.enqueue(task);
        }
    }

    fn enqueue(self: &Arc<Self>, task: Box<dyn Task>) {
        let mut queue = lock(&self.queue);
        queue.tasks.push_back(task);
        if queue.idle >= queue.tasks.len() || queue.threads >= self.backend.max_threads().max(1) {
            self.work.notify_one();
            return;
        }
        let workers = Arc::clone(self);
        let name = format!("worker-{}", queue.threads);
        match std::thread::Builder::new().name(name).spawn(move || workers.run()) {
            Ok(_) => queue.threads += 1,
            Err(error) if queue.threads == 0 => {
                // No thread would ever execute the task. A successor executes it.
                tracing::error!("cannot start a worker thread: {error}");
                std::process::abort();
            }
            Err(_) => self.work.notify_one(),
        }
    }

    /// Executes what is queued and ends all threads, however long that takes. Nothing must be submitted
    /// afterwards.
    pub(crate) fn close(&self) {
        let mut queue = lock(&self.queue);
        queue.is_closed = true;
        self.work.notify_all();
        while queue.threads > 0 {
            queue = self.ended.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self) {
        let _abort = AbortOnPanic;
        let mut buffer = Buffer::default();
        while let Some(task) = self.next() {
            perform::perform(&*self.backend, task, &mut buffer);
            buffer.shrink();
        }
    }

    /// The next task; `None` if this thread must end.
    fn next(&self) -> Option<Box<dyn Task>> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(task) = queue.tasks.pop_front() {
                return Some(task);
            }
            if queue.is_closed {
                queue.threads -= 1;
                self.ended.notify_all();
                return None;
            }
            queue.idle += 1;
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }
}
