//! The thread behind a connection: connects, replays, receives, and begins again.

use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nbd_backend::{AbortOnPanic, chain};

use crate::connect::backoff::Backoff;
use crate::connect::dialer::DialEvents;
use crate::connect::error::Cause;
use crate::connect::export_shape;
use crate::connect::handshake::NegotiatedStream;
use crate::connection::Connection;
use crate::connection::old_connection::StoredFd;
use crate::connection::pool::PoolChange;
use crate::connection::recv_buffer::RecvBuffer;
use crate::connection::reply_reader::ReplyReader;
use crate::error::ConnectionLost;
use crate::options::{CONNECTION_FD_PREFIX, SERVER_FD_NAME};
use crate::shared::Shared;

/// How often a connection other than the first is tried, before it waits until the first one has come
/// up again.
const MAX_ATTEMPTS: u32 = 5;

/// The longest pause while no server listens on a unix socket: trying again is cheap.
const MAX_LOCAL_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The thread behind one of the connections.
pub(crate) struct ConnectionWorker {
    shared: Arc<Shared>,
    index: u32,
    left: Vec<StoredFd>,
    backoff: Backoff,
    /// The pool's epoch when this worker's last connection was made.
    epoch: u64,
}

/// Where the first worker reports how its very first attempt went.
pub(crate) type Report = mpsc::Sender<Result<(), Cause>>;

impl ConnectionWorker {
    pub(crate) fn new(shared: Arc<Shared>, index: u32) -> Self {
        Self { shared, index, left: Vec::new(), backoff: Backoff::new(), epoch: 0 }
    }

    /// Has this worker fence what a predecessor left before it connects.
    pub(crate) fn after(self, left: Vec<StoredFd>) -> Self {
        Self { left, ..self }
    }

    /// Starts the thread. With a report, the first attempt is the last if it fails.
    pub(crate) fn start(mut self, report: Option<Report>) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        shared.pool.thread_started();
        let name = format!("remote-{}", self.index);
        let run = move || {
            let _abort = AbortOnPanic;
            self.run(report);
            // A program that this thread has started ends with it; see `child`.
            self.shared.pool.thread_ended();
        };
        let started = std::thread::Builder::new().name(name).spawn(run);
        started.map(drop).inspect_err(|_| shared.pool.thread_ended())
    }

    fn run(&mut self, report: Option<Report>) {
        self.shared.fence_predecessor(std::mem::take(&mut self.left));
        let mut agreed = match &report {
            None => self.connect(None),
            Some(failures) => match self.attempt() {
                Ok(agreed) => {
                    let _ = self.shared.geometry.set(agreed.shape.geometry);
                    Some(agreed)
                }
                Err(cause) => {
                    let _ = failures.send(Err(cause));
                    return;
                }
            },
        };
        let mut report = report;
        while let Some(connected) = agreed {
            let was_useful = self.serve(connected, report.take());
            agreed = self.connect(Some(was_useful));
        }
    }

    fn is_first(&self) -> bool {
        self.index == 0
    }

    /// Connects, however often that has to be tried; nothing when all is over. If there was a
    /// connection before, `was_useful` says whether anything was answered over it.
    fn connect(&mut self, was_useful: Option<bool>) -> Option<NegotiatedStream> {
        let mut pause = was_useful.map(|useful| self.backoff.pause(useful));
        let mut attempts = 0;
        loop {
            if !self.is_first() && (attempts == MAX_ATTEMPTS || !self.shared.pool.is_up()) {
                self.epoch = self.shared.pool.next_epoch(self.epoch)?;
                attempts = 0;
            }
            if !self.shared.pool.sleep(pause.unwrap_or_default()) {
                return None;
            }
            self.shared.expire();
            let cause = match self.attempt() {
                Ok(agreed) => return Some(agreed),
                Err(_) if self.shared.pool.is_closing() => return None,
                Err(cause) => cause,
            };
            self.log_failure(&cause);
            attempts += 1;
            self.shared.expire();
            let longest =
                if cause.is_local_absence() { MAX_LOCAL_RETRY_INTERVAL } else { Duration::MAX };
            pause = Some(self.backoff.pause(false).min(longest));
        }
    }

    /// Connects and agrees, once.
    fn attempt(&self) -> Result<NegotiatedStream, Cause> {
        let shared = &*self.shared;
        let deadline = Instant::now() + shared.options.connect_limit;
        let deadline = shared.pool.retry_deadline().map_or(deadline, |end| deadline.min(end));
        let mut events = DialEvents::default();
        let result = shared.dialer.dial(deadline, self.is_first(), &mut events);
        if let Some(status) = events.ended {
            tracing::warn!("{}: the program ended ({status})", shared.dialer.name());
        }
        if let Some(process) = &events.started {
            shared.keep(SERVER_FD_NAME, process.as_fd());
        }
        let agreed = result?;
        if let Some(attached) = shared.geometry.get() {
            export_shape::check_change(attached, &agreed.shape.geometry)?;
        }
        if self.is_first() && shared.pool.is_new() {
            agreed.shape.notes.iter().for_each(|note| shared.log_info(note));
        }
        let socket = agreed.stream.socket();
        // A detach by force waits for no server, and nothing may arrive there after it.
        socket.forget_unsent_at_end().map_err(Cause::Io)?;
        // Before the first request: a successor must be able to fence whatever we have sent.
        shared.keep(&format!("{CONNECTION_FD_PREFIX}{}", self.index), socket.as_fd());
        Ok(agreed)
    }

    /// Prints why connecting failed, unless that is known.
    fn log_failure(&self, cause: &Cause) {
        let text = chain(cause);
        if self.is_first() && self.shared.pool.is_new_complaint(&text) {
            tracing::warn!("{}: {text}; trying again", self.shared.dialer.name());
        }
    }

    /// Uses a connection until it is lost, and leaves nothing of it. Returns whether anything was
    /// answered over it.
    fn serve(&mut self, agreed: NegotiatedStream, report: Option<Report>) -> bool {
        let shared = Arc::clone(&self.shared);
        let (receiver, sender) = agreed.stream.split();
        let connection = Arc::new(Connection::new(agreed.negotiated, sender));
        let sender_thread = {
            let connection = Arc::clone(&connection);
            let name = format!("remote-{}-send", self.index);
            std::thread::Builder::new().name(name).spawn(move || connection.send_when_writable())
        };
        let sender_thread = match sender_thread {
            Ok(thread) => thread,
            Err(error) => {
                // The fd store may keep a duplicate, so dropping ours does not close it.
                connection.socket().shutdown();
                self.log_failure(&Cause::Thread(error));
                return false;
            }
        };
        self.join(&connection);
        if let Some(report) = report {
            // `Remote::connect` waits for it; if it is gone, the report is of no use.
            let _ = report.send(Ok(()));
        }
        let recv_buffer = RecvBuffer::new(receiver, &agreed.rest);
        let name = shared.dialer.name();
        let mut reader =
            ReplyReader { connection: &connection, recv_buffer, name, was_useful: false };
        let lost = reader.run();
        let was_useful = reader.was_useful;
        drop(reader);
        self.leave(&connection, lost);
        connection.socket().shutdown();
        // It ends with the connection; if it has panicked, then so has the process.
        let _ = sender_thread.join();
        was_useful
    }

    fn join(&self, connection: &Arc<Connection>) {
        let (jobs, change) = self.shared.pool.join(connection, self.is_first());
        let count = jobs.len();
        for job in jobs {
            if let Err(job) = connection.submit(job) {
                self.shared.pool.dispatch(job);
            }
        }
        if self.shared.pool.is_closing() {
            // `Remote::end` closed the connections of the pool before this one joined.
            connection.send_disconnect();
        }
        if let PoolChange::Reconnected { after, is_first: false } = change {
            self.shared.log_info(&format!(
                "connected again after {after:.1?}; {count} requests sent (again)"
            ));
        }
    }

    fn leave(&self, connection: &Arc<Connection>, lost: ConnectionLost) {
        let pool = &self.shared.pool;
        let change = pool.leave(connection);
        let (jobs, error) = connection.close();
        if pool.is_closing() {
            return;
        }
        let lost = match (error, lost) {
            // The server has closed its end because we had closed ours.
            (Some(error), ConnectionLost::Closed | ConnectionLost::UnexpectedEof) => {
                ConnectionLost::Send(error)
            }
            (_, lost) => lost,
        };
        let name = self.shared.dialer.name();
        if let PoolChange::AllLost { waiting } = change {
            let waiting = waiting + jobs.len();
            tracing::warn!(
                event = "connection-lost",
                waiting,
                "{name}: connection lost: {}; {waiting} requests wait",
                chain(&lost)
            );
        }
        let is_out = matches!(change, PoolChange::AllLost { .. });
        let jobs = match lost {
            ConnectionLost::Closed | ConnectionLost::UnexpectedEof => jobs,
            _ => self.shared.await_close(connection.socket().as_fd(), jobs),
        };
        if !is_out && !jobs.is_empty() && pool.is_up() {
            let count = jobs.len();
            tracing::warn!(
                "{name}: one of several connections is lost: {}; {count} requests use the others",
                chain(&lost)
            );
        }
        for job in jobs {
            job.reset();
            pool.dispatch(job);
        }
    }
}
