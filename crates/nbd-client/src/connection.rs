//! One connection as long as it lasts: jobs go in, replies come back.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbd_backend::AbortOnPanic;
use nbd_net::liveness;
use nbd_net::socket::Socket;
use nbd_net::stream::Sender;
use nbd_proto::Command;

use crate::flow::{Flow, Message, Mode};
use crate::job::Job;
use crate::lock;
use crate::table::{Pending, Table};
use crate::terms::Terms;

/// How long a server may take to close a connection that we cannot send over any more, while we
/// still take its replies.
const LAST_REPLIES: Duration = Duration::from_secs(5);

/// What those who send and the one who receives share.
pub(crate) struct Connection {
    pub(crate) terms: Terms,
    socket: Arc<Socket>,
    /// Taken before `table` by those who take both.
    flow: Mutex<Flow>,
    /// The mode of `flow` has changed.
    changed: Condvar,
    table: Mutex<Table>,
}

impl Connection {
    pub(crate) fn new(terms: Terms, sender: Sender) -> Self {
        let socket = Arc::clone(sender.socket());
        let flow = Mutex::new(Flow::new(sender));
        Self { terms, socket, flow, changed: Condvar::new(), table: Mutex::default() }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends the requests of a job, as many as it may have under way. A job that comes too late
    /// is given back.
    pub(crate) fn submit(&self, job: Arc<Job>) -> Result<(), Arc<Job>> {
        let mut flow = lock(&self.flow);
        {
            let mut table = lock(&self.table);
            if table.is_closed() {
                return Err(job);
            }
            while let Some((command, at)) = job.issue(&self.terms) {
                let cookie = table.insert(Arc::clone(&job), command, at);
                let Some(mut message) = Message::new(&command, cookie, self.terms.style) else {
                    continue;
                };
                if let Command::Write { length, .. } = command {
                    let at = at as usize;
                    message = message.with_payload(Arc::clone(&job), at..at + length as usize);
                }
                flow.push(message);
            }
        }
        self.send(flow);
        // If everything was answered meanwhile, this is the last share.
        drop(job);
        Ok(())
    }

    /// Takes the request out that a reply is for.
    pub(crate) fn take(&self, cookie: u64) -> Option<Pending> {
        lock(&self.table).take(cookie)
    }

    /// There is more of its reply to come.
    pub(crate) fn put_back(&self, pending: Pending) {
        lock(&self.table).put_back(pending);
    }

    /// Its reply is complete.
    pub(crate) fn remove(&self, cookie: u64) {
        lock(&self.table).remove(cookie);
    }

    /// Ends the connection for those who send. Returns the jobs that were not answered, and why
    /// sending failed, if it did.
    pub(crate) fn close(&self) -> (Vec<Arc<Job>>, Option<io::Error>) {
        let jobs = lock(&self.table).close();
        let (unsent, mode) = lock(&self.flow).end();
        self.changed.notify_all();
        drop(unsent);
        let error = match mode {
            Mode::Failed(error) => Some(error),
            _ => None,
        };
        (jobs, error)
    }

    /// Tells the server that there is nothing more to come. The connection is over when it has
    /// closed its end.
    pub(crate) fn say_goodbye(&self) {
        let mut flow = lock(&self.flow);
        if let Some(message) = Message::new(&Command::Disconnect, 0, self.terms.style) {
            flow.push(message);
        }
        self.send(flow);
        let mut flow = lock(&self.flow);
        if matches!(flow.mode, Mode::Open) {
            flow.close();
        }
    }

    /// Sends for a server that takes its time, and notices when its machine has vanished. Returns
    /// when the connection is closed.
    pub(crate) fn pump(&self) {
        let _abort = AbortOnPanic;
        let mut flow = lock(&self.flow);
        loop {
            match flow.mode {
                Mode::Open => flow = wait(&self.changed, flow),
                Mode::Blocked => {
                    drop(flow);
                    // Whether it failed shows when sending does.
                    let is_writable = self.socket.wait_writable(Some(liveness::INTERVAL));
                    flow = lock(&self.flow);
                    if matches!((&flow.mode, is_writable), (Mode::Blocked, Ok(true) | Err(_))) {
                        let sent = flow.send();
                        drop(flow);
                        drop(sent);
                        flow = lock(&self.flow);
                    }
                }
                Mode::Failed(_) => return self.await_last_replies(flow),
                Mode::Ended => return,
            }
            if matches!(flow.mode, Mode::Open | Mode::Blocked) && self.is_out_of_reach() {
                flow.mode = Mode::Failed(io::ErrorKind::TimedOut.into());
                // Whoever receives sees the end of the stream.
                self.socket.shutdown_receive();
            }
        }
    }

    /// Whether the machine at the other end has vanished.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        liveness::is_gone(self.socket.as_fd(), liveness::SILENCE)
    }

    /// The server takes no requests any more. It may still answer those that it has, but then it
    /// has to close the connection: whoever receives waits for that.
    fn await_last_replies(&self, flow: MutexGuard<'_, Flow>) {
        self.socket.shutdown_send();
        let waited = self
            .changed
            .wait_timeout_while(flow, LAST_REPLIES, |flow| matches!(flow.mode, Mode::Failed(_)));
        let (flow, result) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(flow);
        if result.timed_out() {
            self.socket.shutdown();
        }
    }

    /// Sends what is queued, unless somebody else is to do that.
    fn send(&self, mut flow: MutexGuard<'_, Flow>) {
        match flow.mode {
            Mode::Open => {
                let sent = flow.send();
                let is_open = matches!(flow.mode, Mode::Open);
                drop(flow);
                if !is_open {
                    self.changed.notify_all();
                }
                drop(sent);
            }
            Mode::Blocked | Mode::Failed(_) => {}
            Mode::Ended => {
                let (unsent, _) = flow.end();
                drop(flow);
                drop(unsent);
            }
        }
    }
}

fn wait<'a>(changed: &Condvar, flow: MutexGuard<'a, Flow>) -> MutexGuard<'a, Flow> {
    changed.wait_timeout(flow, liveness::INTERVAL).unwrap_or_else(PoisonError::into_inner).0
}
