//! The kernel's part: sends the requests of a recording and looks at the answers.
//!
//! What overlapped then may overlap again, and what did not does not: a request is sent once all
//! that had been answered before it was taken are answered again. Cookies are new, as those of a
//! recording may repeat.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nbd_proto::{CommandFlags, CommandType, NbdError, Request, SimpleReply};
use nix::sys::socket::{MsgFlags, send};

use crate::recording::{Event, Recording};

/// How to play.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Each request only after the one before it is answered.
    pub one_by_one: bool,
    /// How long an answer may take; `None` for a person with a debugger.
    pub patience: Option<Duration>,
    /// Which of the requests; `None` for all.
    pub chosen: Option<Vec<bool>>,
    /// Keep what the program writes to itself.
    pub quiet: bool,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every request was sent and answered.
    Complete,
    /// The program has closed a lane before that: it is dying, or gone.
    Gone,
    /// There was no answer in time.
    Stuck,
    /// It answered with something that is no answer.
    Nonsense(String),
}

/// A result that is not the recorded one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The request.
    pub index: usize,
    /// What was recorded.
    pub then: NbdError,
    /// And what it is now.
    pub now: NbdError,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How it ended.
    pub end: End,
    /// Which requests were sent.
    pub sent: Vec<bool>,
    /// Those that were sent and not answered.
    pub in_flight: Vec<usize>,
    /// Those that ended otherwise than they did then.
    pub differences: Vec<Difference>,
}

impl Report {
    /// How many requests were sent.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sent.iter().filter(|sent| **sent).count()
    }
}

/// So many requests are named at most.
const NAMED: usize = 10;

impl Report {
    /// All of it in words.
    #[must_use]
    pub fn tell(&self, recording: &Recording) -> String {
        let total = recording.requests.len();
        let sent = self.count();
        let mut text = match &self.end {
            End::Complete => format!("{sent} of {total} requests replayed"),
            End::Gone => format!("{sent} of {total} requests sent, then the program has ended"),
            End::Stuck => format!("{sent} of {total} requests sent, then there was no answer"),
            End::Nonsense(what) => format!("{sent} of {total} requests sent, then {what}"),
        };
        let more = |count: usize| match count.saturating_sub(NAMED) {
            0 => String::new(),
            more => format!("\n  and {more} more"),
        };
        if !self.in_flight.is_empty() {
            text += "\nsent and not answered:";
            for &index in self.in_flight.iter().take(NAMED) {
                text = format!("{text}\n  {}", recording.describe(index));
            }
            text += &more(self.in_flight.len());
        }
        if !self.differences.is_empty() {
            text += "\nanswered otherwise than when it was recorded:";
            for Difference { index, then, now } in self.differences.iter().take(NAMED) {
                let what = recording.describe(*index);
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

struct Board {
    requests: Vec<Progress>,
    end: Option<End>,
}

struct Player<'a> {
    recording: &'a Recording,
    options: &'a Options,
    lanes: &'a [UnixStream],
    board: Mutex<Board>,
    changed: Condvar,
}

/// Plays on the other ends of a program's lanes, and disconnects them at the end.
pub fn play(recording: &Recording, lanes: &[UnixStream], options: &Options) -> Report {
    let requests = vec![Progress::Unsent; recording.requests.len()];
    let board = Mutex::new(Board { requests, end: None });
    let player = Player { recording, options, lanes, board, changed: Condvar::new() };
    let player = &player;
    thread::scope(|scope| {
        for lane in lanes {
            scope.spawn(move || player.listen(lane));
        }
        if let Err(end) = player.send_all() {
            player.finish(end);
        }
        let end = player.finish(End::Complete);
        if end == End::Complete {
            player.disconnect();
        }
        // Of one that is dying, the listeners still take what it has answered.
        let how = if end == End::Gone { Shutdown::Write } else { Shutdown::Both };
        lanes.iter().for_each(|lane| drop(lane.shutdown(how)));
    });
    player.report()
}

impl Player<'_> {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first end counts.
    fn finish(&self, end: End) -> End {
        let mut board = self.board();
        let end = board.end.get_or_insert(end).clone();
        self.changed.notify_all();
        end
    }

    fn send_all(&self) -> Result<(), End> {
        let is_chosen =
            |index: usize| self.options.chosen.as_ref().is_none_or(|chosen| chosen[index]);
        for event in &self.recording.events {
            match *event {
                Event::Request(index) if is_chosen(index) => {
                    self.send(index)?;
                    if self.options.one_by_one {
                        self.wait_for(index)?;
                    }
                }
                Event::Answer(index) if is_chosen(index) => self.wait_for(index)?,
                _ => {}
            }
        }
        let sent = |(index, _): (usize, &_)| is_chosen(index).then_some(index);
        let mut all = self.recording.requests.iter().enumerate().filter_map(sent);
        all.try_for_each(|index| self.wait_for(index))
    }

    fn send(&self, index: usize) -> Result<(), End> {
        let recorded = &self.recording.requests[index];
        let unreadable = |error| End::Nonsense(format!("the recording cannot be read: {error}"));
        let data = self.recording.data(index).map_err(unreadable)?;
        {
            let mut board = self.board();
            if let Some(end) = &board.end {
                return Err(end.clone());
            }
            board.requests[index] = Progress::Sent;
        }
        let request = Request { cookie: index as u64, ..recorded.request };
        let lane = &self.lanes[usize::from(recorded.lane)];
        lane.set_write_timeout(self.options.patience).map_err(ended)?;
        send_all(lane, &request.encode()).and_then(|()| send_all(lane, &data)).map_err(ended)
    }

    fn wait_for(&self, index: usize) -> Result<(), End> {
        let deadline = self.options.patience.map(|patience| Instant::now() + patience);
        let mut board = self.board();
        loop {
            if matches!(board.requests[index], Progress::Answered(_)) {
                return Ok(());
            }
            if let Some(end) = &board.end {
                return Err(end.clone());
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            board = match left {
                None => self.changed.wait(board).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => return Err(End::Stuck),
                Some(left) => {
                    let waited = self.changed.wait_timeout(board, left);
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

    fn take_answer(&self, lane: &mut &UnixStream) -> Result<(), End> {
        let mut header = [0; SimpleReply::LEN];
        lane.read_exact(&mut header).map_err(ended)?;
        let nonsense = || End::Nonsense(format!("it answered with {header:02x?}"));
        let reply = SimpleReply::decode(&header).map_err(|_| nonsense())?;
        let index = usize::try_from(reply.cookie).map_err(|_| nonsense())?;
        if self.board().requests.get(index) != Some(&Progress::Sent) {
            return Err(End::Nonsense(format!(
                "it answered a request that it has not, or no longer: cookie {index}"
            )));
        }
        let request = &self.recording.requests[index].request;
        if request.command == CommandType::READ && reply.error.is_success() {
            let length = u64::from(request.length);
            let taken = io::copy(&mut lane.take(length), &mut io::sink()).map_err(ended)?;
            if taken < length {
                return Err(End::Gone);
            }
        }
        self.board().requests[index] = Progress::Answered(reply.error);
        self.changed.notify_all();
        Ok(())
    }

    fn report(&self) -> Report {
        let board = self.board();
        let all = || board.requests.iter().copied().enumerate();
        let differs = |(index, progress): (usize, Progress)| {
            let recorded = &self.recording.requests[index];
            let (Progress::Answered(now), Some(then)) = (progress, recorded.error) else {
                return None;
            };
            // One that crashed its backends was given up in the end: that is no result of theirs.
            let differs = now != then && recorded.backends == 1;
            differs.then_some(Difference { index, then, now })
        };
        let in_flight = all().filter(|(_, progress)| *progress == Progress::Sent);
        Report {
            end: board.end.clone().unwrap_or(End::Complete),
            sent: all().map(|(_, progress)| progress != Progress::Unsent).collect(),
            in_flight: in_flight.map(|(index, _)| index).collect(),
            differences: all().filter_map(differs).collect(),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn ended(error: io::Error) -> End {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => End::Stuck,
        _ => End::Gone,
    }
}

/// Sends all bytes, and gets an error and no signal if nobody takes them.
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
