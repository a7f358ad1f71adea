//! One connection as long as it lasts: jobs go in, replies come back.

pub(crate) mod in_flight;
pub(crate) mod old_connection;
pub(crate) mod pool;
pub(crate) mod recv_buffer;
pub(crate) mod reply_reader;
pub(crate) mod send_queue;
pub(crate) mod worker;

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nbd_backend::AbortOnPanic;
use nbd_net::liveness;
use nbd_net::socket::Socket;
use nbd_net::stream::Sender;
use nbd_proto::Command;

use crate::connect::negotiated::Negotiated;
use crate::connection::in_flight::{InFlightTable, Pending};
use crate::connection::send_queue::{Message, SendQueue, SendState};
use crate::job::Job;
use crate::sync::lock;

/// How long a server may take to close a connection on which sending failed. Its replies are still
/// received meanwhile.
const LAST_REPLIES_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection, shared by the threads that send and the one that receives.
pub(crate) struct Connection {
    pub(crate) negotiated: Negotiated,
    socket: Arc<Socket>,
    /// Lock order: `queue` before `in_flight`.
    queue: Mutex<SendQueue>,
    /// The state of `queue` has changed.
    changed: Condvar,
    in_flight: Mutex<InFlightTable>,
}

impl Connection {
    pub(crate) fn new(negotiated: Negotiated, sender: Sender) -> Self {
        let socket = Arc::clone(sender.socket());
        let queue = Mutex::new(SendQueue::new(sender));
        Self { negotiated, socket, queue, changed: Condvar::new(), in_flight: Mutex::default() }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends the requests of a job, as many as it may have under way. A job that comes too late
    /// is given back.
    pub(crate) fn submit(&self, job: Arc<Job>) -> Result<(), Arc<Job>> {
        let mut queue = lock(&self.queue);
        {
            let mut in_flight = lock(&self.in_flight);
            if in_flight.is_closed() {
                return Err(job);
            }
            while let Some((command, at)) = job.issue(&self.negotiated) {
                let cookie = in_flight.insert(Arc::clone(&job), command, at);
                let Some(mut message) = Message::new(&command, cookie, self.negotiated.style)
                else {
                    continue;
                };
                if let Command::Write { length, .. } = command {
                    let at = at as usize;
                    message = message.with_payload(Arc::clone(&job), at..at + length as usize);
                }
                queue.push(message);
            }
        }
        self.send(queue);
        // This may be the last share, whose drop finishes the task: not under a lock.
        drop(job);
        Ok(())
    }

    /// Takes the request out that a reply is for.
    pub(crate) fn take(&self, cookie: u64) -> Option<Pending> {
        lock(&self.in_flight).take(cookie)
    }

    /// There is more of its reply to come.
    pub(crate) fn put_back(&self, pending: Pending) {
        lock(&self.in_flight).put_back(pending);
    }

    /// Its reply is complete.
    pub(crate) fn remove(&self, cookie: u64) {
        lock(&self.in_flight).remove(cookie);
    }

    /// Ends the connection for senders. Returns the jobs that were not answered, and why
    /// sending failed, if it did.
    pub(crate) fn close(&self) -> (Vec<Arc<Job>>, Option<io::Error>) {
        let jobs = lock(&self.in_flight).close();
        let (unsent, state) = lock(&self.queue).end();
        self.changed.notify_all();
        drop(unsent);
        let error = match state {
            SendState::Failed(error) => Some(error),
            _ => None,
        };
        (jobs, error)
    }

    /// Sends a disconnect request. The connection is over when the server has closed its end.
    pub(crate) fn send_disconnect(&self) {
        let mut queue = lock(&self.queue);
        if let Some(message) = Message::new(&Command::Disconnect, 0, self.negotiated.style) {
            queue.push(message);
        }
        self.send(queue);
        let mut queue = lock(&self.queue);
        if matches!(queue.state, SendState::Open) {
            queue.close();
        }
    }

    /// Sends whenever the socket takes more, and notices when the server's machine has vanished.
    /// Returns when the connection is closed.
    pub(crate) fn send_when_writable(&self) {
        let _abort = AbortOnPanic;
        let mut queue = lock(&self.queue);
        loop {
            match queue.state {
                SendState::Open => queue = wait(&self.changed, queue),
                SendState::Blocked => {
                    drop(queue);
                    // An error of the wait shows again when sending.
                    let is_writable = self.socket.wait_writable(Some(liveness::INTERVAL));
                    queue = lock(&self.queue);
                    if matches!(
                        (&queue.state, is_writable),
                        (SendState::Blocked, Ok(true) | Err(_))
                    ) {
                        let sent = queue.send();
                        drop(queue);
                        drop(sent);
                        queue = lock(&self.queue);
                    }
                }
                SendState::Failed(_) => return self.await_last_replies(queue),
                SendState::Ended => return,
            }
            if matches!(queue.state, SendState::Open | SendState::Blocked) && self.is_out_of_reach()
            {
                queue.state = SendState::Failed(io::ErrorKind::TimedOut.into());
                // The receiving thread sees the end of the stream and ends the connection.
                self.socket.shutdown_receive();
            }
        }
    }

    /// Whether the machine at the other end has vanished.
    pub(crate) fn is_out_of_reach(&self) -> bool {
        liveness::is_gone(self.socket.as_fd(), liveness::SILENCE)
    }

    /// The server takes no requests any more. It may still answer those that it has, but then it
    /// has to close the connection: the receiving thread waits for that.
    fn await_last_replies(&self, queue: MutexGuard<'_, SendQueue>) {
        self.socket.shutdown_send();
        let waited = self.changed.wait_timeout_while(queue, LAST_REPLIES_TIMEOUT, |queue| {
            matches!(queue.state, SendState::Failed(_))
        });
        let (queue, result) = waited.unwrap_or_else(PoisonError::into_inner);
        drop(queue);
        if result.timed_out() {
            self.socket.shutdown();
        }
    }

    /// Sends what is queued, unless another thread does (see [`SendState`]).
    fn send(&self, mut queue: MutexGuard<'_, SendQueue>) {
        match queue.state {
            SendState::Open => {
                let sent = queue.send();
                let is_open = matches!(queue.state, SendState::Open);
                drop(queue);
                if !is_open {
                    self.changed.notify_all();
                }
                drop(sent);
            }
            SendState::Blocked | SendState::Failed(_) => {}
            SendState::Ended => {
                let (unsent, _) = queue.end();
                drop(queue);
                drop(unsent);
            }
        }
    }
}

fn wait<'a>(changed: &Condvar, queue: MutexGuard<'a, SendQueue>) -> MutexGuard<'a, SendQueue> {
    changed.wait_timeout(queue, liveness::INTERVAL).unwrap_or_else(PoisonError::into_inner).0
}
