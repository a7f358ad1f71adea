//! The kernel's part: sends the requests of a capture and checks the replies.
//!
//! A request is sent once all requests are answered again that were answered before it was taken. So
//! requests that overlapped may overlap again, and others do not. The cookie is the request's index,
//! because cookies of a capture may repeat.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nbd_proto::{CommandFlags, CommandType, NbdError, Request, SimpleReply};
use nix::sys::socket::{MsgFlags, send};

use crate::capture::{Capture, CaptureEvent};

/// How to replay.
#[derive(Clone, Debug, Default)]
pub struct ReplayOptions {
    /// Send each request only after the one before it is answered.
    pub one_by_one: bool,
    /// How long a reply may take; `None` is without limit, for a program in a debugger.
    pub answer_timeout: Option<Duration>,
    /// Which requests to send; `None` for all.
    pub chosen: Option<Vec<bool>>,
    /// Discard the program's output.
    pub quiet: bool,
}

/// How a replay ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayEnd {
    /// Every request was sent and answered.
    Complete,
    /// The program closed a lane before that: it is dying, or gone.
    LaneClosed,
    /// There was no reply in time.
    TimedOut,
    /// The program sent bytes that are no reply to a request in flight.
    ProtocolError(String),
}

/// A result that differs from the captured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The request.
    pub index: usize,
    /// The captured result.
    pub then: NbdError,
    /// The result of the replay.
    pub now: NbdError,
}

/// The result of a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayReport {
    /// How it ended.
    pub end: ReplayEnd,
    /// Which requests were sent.
    pub sent: Vec<bool>,
    /// Those that were sent and not answered.
    pub in_flight: Vec<usize>,
    /// Those that ended otherwise than they did then.
    pub differences: Vec<Difference>,
}

impl ReplayReport {
    /// How many requests were sent.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sent.iter().filter(|sent| **sent).count()
    }
}

/// The most requests that a description lists.
const MAX_LISTED: usize = 10;

impl ReplayReport {
    /// The report in words.
    #[must_use]
    pub fn describe(&self, capture: &Capture) -> String {
        let total = capture.requests.len();
        let sent = self.count();
        let mut text = match &self.end {
            ReplayEnd::Complete => format!("{sent} of {total} requests replayed"),
            ReplayEnd::LaneClosed => {
                format!("{sent} of {total} requests sent, then the program has ended")
            }
            ReplayEnd::TimedOut => {
                format!("{sent} of {total} requests sent, then there was no answer")
            }
            ReplayEnd::ProtocolError(what) => {
                format!("{sent} of {total} requests sent, then {what}")
            }
        };
        let more = |count: usize| match count.saturating_sub(MAX_LISTED) {
            0 => String::new(),
            more => format!("\n  and {more} more"),
        };
        if !self.in_flight.is_empty() {
            text += "\nsent and not answered:";
            for &index in self.in_flight.iter().take(MAX_LISTED) {
                text = format!("{text}\n  {}", capture.describe(index));
            }
            text += &more(self.in_flight.len());
        }
        if !self.differences.is_empty() {
            text += "\nanswered otherwise than when it was recorded:";
            for Difference { index, then, now } in self.differences.iter().take(MAX_LISTED) {
                let what = capture.describe(*index);
                text = format!("{text}\n  {what}: {now} now, {then} then");
            }
            text += &more(self.differences.len());
        }
        text
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Unsent,
    Sent,
    Answered(NbdError),
}

struct ReplayState {
    requests: Vec<Progress>,
    end: Option<ReplayEnd>,
}

struct Replayer<'a> {
    capture: &'a Capture,
    options: &'a ReplayOptions,
    lanes: &'a [UnixStream],
    state: Mutex<ReplayState>,
    changed: Condvar,
}

/// Replays a capture on the other ends of a program's lanes, and disconnects them at the end.
pub fn replay(capture: &Capture, lanes: &[UnixStream], options: &ReplayOptions) -> ReplayReport {
    let requests = vec![Progress::Unsent; capture.requests.len()];
    let state = Mutex::new(ReplayState { requests, end: None });
    let replayer = Replayer { capture, options, lanes, state, changed: Condvar::new() };
    let replayer = &replayer;
    thread::scope(|scope| {
        for lane in lanes {
            scope.spawn(move || replayer.listen(lane));
        }
        if let Err(end) = replayer.send_all() {
            replayer.finish(end);
        }
        let end = replayer.finish(ReplayEnd::Complete);
        if end == ReplayEnd::Complete {
            replayer.disconnect();
        }
        // From a program that is dying, the listeners still receive the replies that it has sent.
        let how = if end == ReplayEnd::LaneClosed { Shutdown::Write } else { Shutdown::Both };
        lanes.iter().for_each(|lane| drop(lane.shutdown(how)));
    });
    replayer.report()
}

impl Replayer<'_> {
    fn state(&self) -> MutexGuard<'_, ReplayState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores how the replay ended, unless that is known: the first end counts.
    fn finish(&self, end: ReplayEnd) -> ReplayEnd {
        let mut state = self.state();
        let end = state.end.get_or_insert(end).clone();
        self.changed.notify_all();
        end
    }

    fn send_all(&self) -> Result<(), ReplayEnd> {
        let is_chosen =
            |index: usize| self.options.chosen.as_ref().is_none_or(|chosen| chosen[index]);
        for event in &self.capture.events {
            match *event {
                CaptureEvent::Request(index) if is_chosen(index) => {
                    self.send(index)?;
                    if self.options.one_by_one {
                        self.wait_for(index)?;
                    }
                }
                CaptureEvent::Answer(index) if is_chosen(index) => self.wait_for(index)?,
                _ => {}
            }
        }
        let sent = |(index, _): (usize, &_)| is_chosen(index).then_some(index);
        let mut all = self.capture.requests.iter().enumerate().filter_map(sent);
        all.try_for_each(|index| self.wait_for(index))
    }

    fn send(&self, index: usize) -> Result<(), ReplayEnd> {
        let recorded = &self.capture.requests[index];
        let unreadable =
            |error| ReplayEnd::ProtocolError(format!("the recording cannot be read: {error}"));
        let data = self.capture.data(index).map_err(unreadable)?;
        {
            let mut state = self.state();
            if let Some(end) = &state.end {
                return Err(end.clone());
            }
            state.requests[index] = Progress::Sent;
        }
        let request = Request { cookie: index as u64, ..recorded.request };
        let lane = &self.lanes[usize::from(recorded.lane)];
        lane.set_write_timeout(self.options.answer_timeout).map_err(ended)?;
        send_all(lane, &request.encode()).and_then(|()| send_all(lane, &data)).map_err(ended)
    }

    fn wait_for(&self, index: usize) -> Result<(), ReplayEnd> {
        let deadline =
            self.options.answer_timeout.map(|answer_timeout| Instant::now() + answer_timeout);
        let mut state = self.state();
        loop {
            if matches!(state.requests[index], Progress::Answered(_)) {
                return Ok(());
            }
            if let Some(end) = &state.end {
                return Err(end.clone());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Err(ReplayEnd::TimedOut),
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn disconnect(&self) {
        let disconnect = Request {
            flags: CommandFlags::NONE,
            command: CommandType::DISC,
            cookie: u64::MAX,
            offset: 0,
            length: 0,
        };
        for lane in self.lanes {
            // A lane that the program has closed meanwhile needs no disconnect.
            let _ = send_all(lane, &disconnect.encode());
        }
    }

    /// Takes answers until the lane is closed.
    fn listen(&self, mut lane: &UnixStream) {
        let end = loop {
            match self.take_answer(&mut lane) {
                Ok(()) => {}
                Err(end) => break end,
            }
        };
        self.finish(end);
    }

    fn take_answer(&self, lane: &mut &UnixStream) -> Result<(), ReplayEnd> {
        let mut header = [0; SimpleReply::LEN];
        lane.read_exact(&mut header).map_err(ended)?;
        let nonsense = || ReplayEnd::ProtocolError(format!("it answered with {header:02x?}"));
        let reply = SimpleReply::decode(&header).map_err(|_| nonsense())?;
        let index = usize::try_from(reply.cookie).map_err(|_| nonsense())?;
        if self.state().requests.get(index) != Some(&Progress::Sent) {
            return Err(ReplayEnd::ProtocolError(format!(
                "it answered a request that it has not, or no longer: cookie {index}"
            )));
        }
        let request = &self.capture.requests[index].request;
        if request.command == CommandType::READ && reply.error.is_success() {
            let length = u64::from(request.length);
            let taken = io::copy(&mut lane.take(length), &mut io::sink()).map_err(ended)?;
            if taken < length {
                return Err(ReplayEnd::LaneClosed);
            }
        }
        self.state().requests[index] = Progress::Answered(reply.error);
        self.changed.notify_all();
        Ok(())
    }

    fn report(&self) -> ReplayReport {
        let state = self.state();
        let all = || state.requests.iter().copied().enumerate();
        let differs = |(index, progress): (usize, Progress)| {
            let recorded = &self.capture.requests[index];
            let (Progress::Answered(now), Some(then)) = (progress, recorded.error) else {
                return None;
            };
            // A request that had several backends may have been failed by the holder as poison: that
            // is no result of a backend.
            let differs = now != then && recorded.backends == 1;
            differs.then_some(Difference { index, then, now })
        };
        let in_flight = all().filter(|(_, progress)| *progress == Progress::Sent);
        ReplayReport {
            end: state.end.clone().unwrap_or(ReplayEnd::Complete),
            sent: all().map(|(_, progress)| progress != Progress::Unsent).collect(),
            in_flight: in_flight.map(|(index, _)| index).collect(),
            differences: all().filter_map(differs).collect(),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn ended(error: io::Error) -> ReplayEnd {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ReplayEnd::TimedOut,
        _ => ReplayEnd::LaneClosed,
    }
}

/// Sends all bytes; MSG_NOSIGNAL turns a closed lane into an error instead of SIGPIPE.
fn send_all(lane: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(lane.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(count) => bytes = &bytes[count..],
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
