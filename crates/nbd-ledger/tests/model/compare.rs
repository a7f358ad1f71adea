//! The code and the model side by side: at every crash point both must have the same ledger.
//!
//! What to do next, what the kernel passes and where a backend dies is drawn. The code does it
//! first, with a socket that has a small buffer; then the model takes the same steps, up to each
//! crash point that the code has passed, and there the code's ledger is compared word by word.

use std::cell::RefCell;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

use nbd_ledger::receive::Ticket;
use nbd_ledger::{Answer, CrashPoint, Ledger, Receiver, Transmitter, observe_crash_points};
use nbd_proto::{CommandFlags, CommandType, NbdError, Request, SimpleReply};
use nix::sys::socket::{setsockopt, sockopt};

use crate::act::Act;
use crate::invariant;
use crate::state::{Config, Name, State};
use crate::step::Effect;
use crate::words::{LAYOUT, Words};

/// What a crash point has seen: where it is, and the ledger there.
type Log = Rc<RefCell<Vec<(CrashPoint, Words)>>>;

/// Unwinds out of a backend that dies at a crash point.
struct Death;

/// The code: a backend in this process, and the other end of its lane.
pub(crate) struct Code {
    file: File,
    lane: UnixStream,
    peer: UnixStream,
    stream: Vec<u8>,
    written: usize,
    replies: Vec<u8>,
    backend: Option<(Receiver, Transmitter)>,
    tickets: Vec<Ticket>,
    log: Log,
}

/// How the code has ended what it was told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Returned,
    Died,
}

impl Code {
    fn new(config: &Config) -> Self {
        let (lane, peer) = UnixStream::pair().expect("a socket pair");
        setsockopt(&lane, sockopt::SndBuf, &1).expect("the smallest buffer");
        lane.set_nonblocking(true).expect("a socket can be made nonblocking");
        peer.set_nonblocking(true).expect("a socket can be made nonblocking");
        Self {
            file: Ledger::create(&LAYOUT).expect("a ledger").into(),
            lane,
            peer,
            stream: config.names().flat_map(|name| bytes_of(config, name)).collect(),
            written: 0,
            replies: Vec::new(),
            backend: None,
            tickets: Vec::new(),
            log: Log::default(),
        }
    }

    /// Does what the model is about to do, and dies at the `fatal`th crash point from now.
    fn run(&mut self, config: &Config, act: Act, fatal: Option<usize>) -> End {
        self.log.borrow_mut().clear();
        let (log, file) = (Rc::clone(&self.log), self.file.try_clone().expect("a duplicate"));
        observe_crash_points(move |point| {
            let mut log = log.borrow_mut();
            log.push((point, Words::read(&file)));
            if Some(log.len()) == fatal {
                drop(log);
                resume_unwind(Box::new(Death));
            }
        });
        let result = catch_unwind(AssertUnwindSafe(|| self.act(config, act)));
        match result {
            Ok(()) => return End::Returned,
            Err(cause) if cause.is::<Death>() => {}
            Err(cause) => resume_unwind(cause),
        }
        self.backend = None;
        self.tickets.clear();
        End::Died
    }

    fn act(&mut self, config: &Config, act: Act) {
        let Some((receiver, transmitter)) = &mut self.backend else {
            assert_eq!(act, Act::Recover, "without a backend nothing else can be done");
            let [file, lane] = [
                OwnedFd::from(self.file.try_clone().expect("a duplicate")),
                OwnedFd::from(self.lane.try_clone().expect("a duplicate")),
            ];
            let opened = Ledger::open(file, &LAYOUT).and_then(|ledger| ledger.open_lane(0, lane));
            let (receiver, transmitter, recovery) = opened.expect("a sound ledger");
            self.tickets = recovery.tickets;
            self.backend = Some((receiver, transmitter));
            return;
        };
        match act {
            Act::Recover => unreachable!("it is alive"),
            Act::Receive => drop(receiver.receive().expect("there are bytes")),
            Act::Take => drop(receiver.take(1, &mut self.tickets).expect("requests only")),
            Act::Stage(index) => {
                let ticket = self.tickets.remove(index);
                let name = (ticket.request().cookie - 1) as Name;
                let is_kept = config.kept(name) > 0;
                let start = config.start(name) as usize + Request::LEN;
                let payload = if is_kept { config.request(name).payload as usize } else { 0 };
                let data = data_of(config, name);
                assert!(ticket.payload() == &self.stream[start..start + payload], "the payload");
                let is_read = ticket.request().command == CommandType::READ;
                let answer = if is_read { Answer::Data(&data) } else { Answer::Done };
                transmitter.stage(ticket, answer);
            }
            Act::Send => match transmitter.send() {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}"),
            },
        }
    }

    /// The kernel sends at most so many bytes.
    fn supply(&mut self, most: usize) {
        let end = self.stream.len().min(self.written + most);
        self.peer.write_all(&self.stream[self.written..end]).expect("room for all requests");
        self.written = end;
    }

    /// The kernel reads at most so many bytes; returns how many there were.
    fn drain(&mut self, most: usize) -> usize {
        let mut buffer = vec![0; most];
        let count = self.peer.read(&mut buffer).unwrap_or(0);
        self.replies.extend_from_slice(&buffer[..count]);
        count
    }
}

/// Plays one life of a lane, with a few deaths. Returns how many crash points were compared.
pub(crate) fn play(config: &Config, draw: &mut dyn FnMut(u64) -> u64) -> usize {
    let mut code = Code::new(config);
    let mut model = State::new(config);
    let mut expected = Vec::new();
    let mut compared = 0;
    for _ in 0..10_000 {
        let alive = model.process.is_some();
        if model.is_complete(config) && alive {
            break;
        }
        // The kernel acts, a little or a lot.
        let most = [1, 30, 700, 9000];
        code.drain(most[draw(4) as usize]);
        if code.written <= model.kernel.taken as usize || draw(2) == 0 {
            code.supply(most[draw(4) as usize]);
        }
        let acts = model.acts(config);
        let act = acts[draw(acts.len() as u64) as usize];
        let fatal = (draw(16) == 0).then(|| 1 + draw(8) as usize);
        let end = code.run(config, act, fatal);
        model.begin(config, act);
        let log = std::mem::take(&mut *code.log.borrow_mut());
        for (point, words) in &log {
            follow(config, &mut model, *point, words, &mut expected);
            words.compare(config, &model.ledger, &code.stream, *point);
            compared += 1;
        }
        if end == End::Died {
            model.process = None;
        } else {
            follow_to_the_end(config, &mut model);
        }
        let violated = invariant::violated(config, &model).map(|invariant| invariant.name);
        assert_eq!(violated, None, "after {act:?}");
    }
    assert!(model.is_complete(config), "a drawn life comes to its end");
    while code.drain(9000) > 0 {}
    assert!(code.replies == expected, "the replies' bytes");
    compared
}

/// Takes the model's steps up to a crash point that the code has passed.
fn follow(
    config: &Config,
    model: &mut State,
    point: CrashPoint,
    words: &Words,
    sent: &mut Vec<u8>,
) {
    loop {
        let op =
            model.next_op().unwrap_or_else(|| panic!("the code is at {point:?}, the model done"));
        let count = match op.effect {
            Effect::Receive { .. } => words.ledger.receiving().msg_len,
            Effect::Send { .. } => words.ledger.transmitting().msg_len,
            _ => 0,
        };
        if let Effect::Send { from, .. } = op.effect {
            let bytes = &model.ledger.area[from as usize..(from + count) as usize];
            sent.extend(bytes.iter().map(|byte| byte_of(config, byte.expect("a reply's byte"))));
        }
        model.execute(config, op.effect, count);
        match op.point {
            Some(passed) if passed == point => return,
            Some(passed) => panic!("the code is at {point:?}, the model at {passed:?}"),
            None => {}
        }
    }
}

/// The code has returned: what the model has left to do must be nothing that can be seen, or the
/// system call that has failed.
fn follow_to_the_end(config: &Config, model: &mut State) {
    while let Some(op) = model.next_op() {
        let is_end = op.point.is_none() || matches!(op.effect, Effect::Send { .. });
        assert!(is_end, "the code has returned, the model is before {op:?}");
        model.execute(config, op.effect, 0);
    }
}

/// A request's bytes in the stream.
fn bytes_of(config: &Config, name: Name) -> Vec<u8> {
    let request = config.request(name);
    let (command, length) = match (request.payload, request.data) {
        (0, 0) => (CommandType::FLUSH, 0),
        (0, data) => (CommandType::READ, data),
        (payload, _) => (CommandType::WRITE, payload),
    };
    let flags = CommandFlags::NONE;
    let request = Request { flags, command, cookie: u64::from(name) + 1, offset: 0, length };
    let mut bytes = request.encode().to_vec();
    let start = config.start(name) as usize;
    bytes.extend((bytes.len()..config.length(name) as usize).map(|byte| noise(start + byte)));
    bytes
}

fn data_of(config: &Config, name: Name) -> Vec<u8> {
    let length = config.reply_length(name);
    (config.reply..length).map(|byte| byte_of(config, (name, byte))).collect()
}

/// A byte of a reply.
pub(crate) fn byte_of(config: &Config, (name, place): (Name, u32)) -> u8 {
    let reply = SimpleReply { error: NbdError::SUCCESS, cookie: u64::from(name) + 1 }.encode();
    match reply.get(place as usize) {
        Some(byte) => *byte,
        None => noise(config.start(name) as usize + 7 * place as usize),
    }
}

fn noise(place: usize) -> u8 {
    (place.wrapping_mul(0x9e37_79b1) >> 13) as u8
}
