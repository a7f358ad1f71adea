//! The thread behind a connection: connects, replays, receives, and begins again.

use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use nbd_backend::{AbortOnPanic, chain};

use crate::connection::Connection;
use crate::dial::{Cause, News};
use crate::error::Lost;
use crate::inbox::Inbox;
use crate::options::{CONNECTION, SERVER};
use crate::predecessor::Left;
use crate::receive::Reception;
use crate::remote::Shared;
use crate::retry::Backoff;
use crate::roster::Change;
use crate::shake::Agreed;
use crate::shape;

/// How often a connection beside the first is tried before it is left alone until the first one
/// has come up anew.
const ATTEMPTS: u32 = 5;

/// The longest pause while nobody listens on a unix socket: asking again costs nothing.
const LOCAL_PAUSE: Duration = Duration::from_millis(100);

/// One of the connections.
pub(crate) struct Link {
    shared: Arc<Shared>,
    index: u32,
    left: Vec<Left>,
    backoff: Backoff,
    /// Of the first link, when the last connection of this one was made.
    epoch: u64,
}

/// Where the first link reports how its very first attempt went.
pub(crate) type Report = mpsc::Sender<Result<(), Cause>>;

impl Link {
    pub(crate) fn new(shared: Arc<Shared>, index: u32) -> Self {
        Self { shared, index, left: Vec::new(), backoff: Backoff::new(), epoch: 0 }
    }

    /// Has this link fence what a predecessor left before it connects.
    pub(crate) fn after(self, left: Vec<Left>) -> Self {
        Self { left, ..self }
    }

    /// Starts the thread. With a report, the first attempt is the last if it fails.
    pub(crate) fn start(mut self, report: Option<Report>) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        shared.roster.thread_started();
        let name = format!("remote-{}", self.index);
        let run = move || {
            let _abort = AbortOnPanic;
            self.run(report);
            // A program that this thread has started ends with it; see `child`.
            self.shared.roster.thread_ended();
        };
        let started = std::thread::Builder::new().name(name).spawn(run);
        started.map(drop).inspect_err(|_| shared.roster.thread_ended())
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
    fn connect(&mut self, was_useful: Option<bool>) -> Option<Agreed> {
        let mut pause = was_useful.map(|useful| self.backoff.pause(useful));
        let mut attempts = 0;
        loop {
            if !self.is_first() && (attempts == ATTEMPTS || !self.shared.roster.is_up()) {
                self.epoch = self.shared.roster.next_epoch(self.epoch)?;
                attempts = 0;
            }
            if !self.shared.roster.sleep(pause.unwrap_or_default()) {
                return None;
            }
            self.shared.expire();
            let cause = match self.attempt() {
                Ok(agreed) => return Some(agreed),
                Err(_) if self.shared.roster.is_closing() => return None,
                Err(cause) => cause,
            };
            self.complain(&cause);
            attempts += 1;
            self.shared.expire();
            let longest = if cause.is_local_absence() { LOCAL_PAUSE } else { Duration::MAX };
            pause = Some(self.backoff.pause(false).min(longest));
        }
    }

    /// Connects and agrees, once.
    fn attempt(&self) -> Result<Agreed, Cause> {
        let shared = &*self.shared;
        let deadline = Instant::now() + shared.options.connect_limit;
        let deadline = shared.roster.patience_ends().map_or(deadline, |end| deadline.min(end));
        let mut news = News::default();
        let result = shared.dialer.dial(deadline, self.is_first(), &mut news);
        if let Some(status) = news.ended {
            tracing::warn!("{}: the program ended ({status})", shared.dialer.name());
        }
        if let Some(process) = &news.started {
            shared.keep(SERVER, process.as_fd());
        }
        let agreed = result?;
        if let Some(attached) = shared.geometry.get() {
            shape::check_change(attached, &agreed.shape.geometry)?;
        }
        if self.is_first() && shared.roster.is_new() {
            agreed.shape.notes.iter().for_each(|note| shared.note(note));
        }
        // Before the first request: a successor must be able to fence whatever we have sent.
        shared.keep(&format!("{CONNECTION}{}", self.index), agreed.stream.socket().as_fd());
        Ok(agreed)
    }

    /// Prints why connecting failed, unless that is known.
    fn complain(&self, cause: &Cause) {
        let text = chain(cause);
        if self.is_first() && self.shared.roster.is_news(&text) {
            tracing::warn!("{}: {text}; trying again", self.shared.dialer.name());
        }
    }

    /// Uses a connection until it is lost, and leaves nothing of it. Returns whether anything was
    /// answered over it.
    fn serve(&mut self, agreed: Agreed, report: Option<Report>) -> bool {
        let shared = Arc::clone(&self.shared);
        let (receiver, sender) = agreed.stream.split();
        let connection = Arc::new(Connection::new(agreed.terms, sender));
        let pump = {
            let connection = Arc::clone(&connection);
            let name = format!("remote-{}-send", self.index);
            std::thread::Builder::new().name(name).spawn(move || connection.pump())
        };
        let pump = match pump {
            Ok(pump) => pump,
            Err(error) => {
                // Somebody may keep a duplicate.
                connection.socket().shutdown();
                self.complain(&Cause::Thread(error));
                return false;
            }
        };
        self.join(&connection);
        if let Some(report) = report {
            // Whoever has asked waits for it.
            let _ = report.send(Ok(()));
        }
        let inbox = Inbox::new(receiver, &agreed.rest);
        let name = shared.dialer.name();
        let mut reception = Reception { connection: &connection, inbox, name, was_useful: false };
        let lost = reception.run();
        let was_useful = reception.was_useful;
        drop(reception);
        self.leave(&connection, lost);
        connection.socket().shutdown();
        // It ends with the connection; if it has panicked, then so has the process.
        let _ = pump.join();
        was_useful
    }

    fn join(&self, connection: &Arc<Connection>) {
        let (jobs, change) = self.shared.roster.join(connection, self.is_first());
        let count = jobs.len();
        for job in jobs {
            if let Err(job) = connection.submit(job) {
                self.shared.roster.dispatch(job);
            }
        }
        if self.shared.roster.is_closing() {
            // Whoever closes all connections has not seen this one.
            connection.say_goodbye();
        }
        if let Change::Back { after, is_first: false } = change {
            self.shared
                .note(&format!("connected again after {after:.1?}; {count} requests sent (again)"));
        }
    }

    fn leave(&self, connection: &Arc<Connection>, lost: Lost) {
        let roster = &self.shared.roster;
        let change = roster.leave(connection);
        let (jobs, error) = connection.close();
        if roster.is_closing() {
            return;
        }
        let lost = match (error, lost) {
            // The server has closed its end because we had closed ours.
            (Some(error), Lost::Closed | Lost::Torn) => Lost::Send(error),
            (_, lost) => lost,
        };
        let name = self.shared.dialer.name();
        if let Change::Out { waiting } = change {
            let waiting = waiting + jobs.len();
            tracing::warn!(
                event = "connection-lost",
                waiting,
                "{name}: connection lost: {}; {waiting} requests wait",
                chain(&lost)
            );
        }
        let is_out = matches!(change, Change::Out { .. });
        let jobs = match lost {
            Lost::Closed | Lost::Torn => jobs,
            _ => self.shared.await_close(connection.socket().as_fd(), jobs),
        };
        if !is_out && !jobs.is_empty() && roster.is_up() {
            let count = jobs.len();
            tracing::warn!(
                "{name}: one of several connections lost: {}; {count} requests go over \
                 the others",
                chain(&lost)
            );
        }
        for job in jobs {
            job.reset();
            roster.dispatch(job);
        }
    }
}
