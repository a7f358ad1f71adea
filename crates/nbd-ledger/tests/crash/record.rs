//! Ledgers that dead backends of earlier releases have left, and that a backend of this one recovers.
//!
//! A file of `recorded/RELEASE/` has the words of a ledger that are not 0, each line beginning with the
//! offset of its first word, and behind an empty line what that release itself recovered from it. A file
//! `recorded/layout-VERSION.txt` has the offsets of a ledger version.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nbd_ledger::layout::{
    FlightRecord, Header, Histogram, LaneControl, MAGIC, MARKS, Message, ReceiveRecord, Slot,
    Totals, TransmitRecord, VERSION,
};
use nbd_ledger::receive::Ticket;
use nbd_ledger::{Answer, Layout, Ledger};
use nbd_proto::{CommandType, NbdError, Request};

use crate::backend::Order;
use crate::run::{Run, Setting};
use crate::script::{LAYOUT, few_of_every_kind};
use crate::situation::{Situation, situations};

const WORD: usize = size_of::<u64>();

/// What is recorded. The other situations take more bytes than a file of text should have.
const RECORDED: [Situation; 6] = [
    Situation::Unanswered,
    Situation::Untaken,
    Situation::Uncommitted,
    Situation::Staged,
    Situation::Unsent,
    Situation::HalfSent,
];

fn folder() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/crash/recorded"].iter().collect()
}

/// The words of a ledger that are not 0.
pub(crate) fn words(ledger: &File) -> String {
    let mut bytes = vec![0; LAYOUT.size() as usize];
    ledger.read_exact_at(&mut bytes, 0).expect("the ledger is as long as its layout");
    let mut text = String::new();
    let mut next = None;
    for (index, word) in bytes.chunks_exact(WORD).enumerate() {
        let word = u64::from_ne_bytes(word.try_into().expect("eight bytes"));
        if word == 0 {
            continue;
        }
        if next != Some(index) {
            write!(text, "\n{}", index * WORD).expect("text");
        }
        write!(text, " {word:x}").expect("text");
        next = Some(index + 1);
    }
    text.trim_start().to_owned() + "\n"
}

/// A ledger with these words.
fn ledger(words: &str) -> File {
    let file = File::from(Ledger::create(&LAYOUT).expect("a ledger"));
    for line in words.lines() {
        let (offset, words) = line.split_once(' ').expect("an offset and words");
        let mut offset: u64 = offset.parse().expect("an offset");
        for word in words.split(' ') {
            let word = u64::from_str_radix(word, 16).expect("a word");
            file.write_all_at(&word.to_ne_bytes(), offset).expect("room for it");
            offset += WORD as u64;
        }
    }
    file
}

/// FNV-1a: enough to tell bytes from others.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn told(bytes: &[u8]) -> String {
    format!("{} bytes {:016x}", bytes.len(), hash(bytes))
}

/// Has a backend take the ledger over, and answer with EINVAL. What it finds, and all that it sends.
fn recover(ledger: &File) -> String {
    let (lane, mut kernel) = UnixStream::pair().expect("a socket pair");
    kernel.set_nonblocking(true).expect("a socket can be made nonblocking");
    let ledger = Ledger::open(ledger.try_clone().expect("a duplicate").into(), &LAYOUT);
    let ledger = ledger.expect("a ledger in order");
    let (mut receiver, mut transmitter, recovery) =
        ledger.open_lane(0, lane.into()).expect("a lane in order");
    let mut read = || {
        let mut bytes = Vec::new();
        match kernel.read_to_end(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => bytes,
            other => panic!("{other:?}"),
        }
    };
    transmitter.finish().expect("a peer with room");
    let mut text = format!("finished with {}\n", told(&read()));
    let mut tickets = recovery.tickets;
    list(&mut text, "to execute again", &tickets);
    let known = tickets.len();
    receiver.take(1, &mut tickets).expect("requests");
    list(&mut text, "not taken before", &tickets[known..]);
    for ticket in tickets {
        transmitter.stage(ticket, Answer::Error(NbdError::EINVAL));
        transmitter.send().expect("a peer with room");
    }
    writeln!(text, "answered with {}", told(&read())).expect("text");
    text
}

fn list(text: &mut String, title: &str, tickets: &[Ticket]) {
    for ticket in tickets {
        let Request { command, flags, cookie, offset, length } = *ticket.request();
        let (command, flags) = (command.0, flags.bits());
        let (attempts, crashes) = (ticket.attempts(), ticket.crashes());
        let payload = told(if command == CommandType::WRITE.0 { ticket.payload() } else { &[] });
        let line =
            format!("{command} flags {flags} cookie {cookie:x} offset {offset} length {length}");
        let counts = format!("attempts {attempts} crashes {crashes} payload {payload}");
        writeln!(text, "{title}: command {line} {counts}").expect("text");
    }
}

#[test]
fn what_backends_of_earlier_releases_left_is_recovered() {
    let mut seen = BTreeSet::new();
    let list = |folder: PathBuf| {
        let entries = fs::read_dir(&folder).expect("a folder");
        entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    for release in list(folder()).into_iter().filter(|path| path.is_dir()) {
        for path in list(release) {
            let text = fs::read_to_string(&path).expect("a recorded ledger");
            let (words, recovered) = text.split_once("\n\n").expect("words, and what came of them");
            let ledger = ledger(words);
            seen.extend(situations(&ledger));
            assert_eq!(recover(&ledger), recovered, "{}", path.display());
        }
    }
    assert!(RECORDED.iter().all(|situation| seen.contains(situation)), "{seen:?}");
}

/// Not a test: writes the files for the present release.
#[test]
#[ignore = "writes the files that the test of the releases to come reads"]
fn record_the_ledgers_of_this_release() {
    let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
    let folder = folder().join(format!("{major}.{minor}"));
    fs::create_dir_all(&folder).expect("a folder");
    if !agreed_layout().exists() {
        fs::write(agreed_layout(), layout()).expect("a file");
    }
    for situation in RECORDED {
        let orders = [Order::OldestLast, Order::AsReceived];
        let setting = Setting { orders, narrow: situation == Situation::HalfSent };
        let words = (1..1000).find_map(|point| die_in(setting, situation, point));
        let words = words.expect("a backend dies in it");
        let text = format!("{words}\n{}", recover(&ledger(&words)));
        let name = format!("{situation:?}.txt");
        fs::write(folder.join(name), text).expect("a file");
    }
}

/// The ledger of a backend that died at a crash point, if it was in that situation there.
fn die_in(setting: Setting, situation: Situation, point: u64) -> Option<String> {
    let mut run = Run::new(setting, &[point], "recording");
    run.records = true;
    run.play(&few_of_every_kind());
    let left = run.leave().left?;
    let left = ledger(&left);
    situations(&left).contains(&situation).then(|| words(&left))
}

/// The offsets that releases of one ledger version agree on, of all that they write down.
fn layout() -> String {
    let mut text = String::new();
    macro_rules! fields {
        ($($type:ident: $($field:ident)*;)*) => { $(
            writeln!(text, "{}: {} bytes", stringify!($type), size_of::<$type>()).expect("text");
            $(writeln!(text, "    {} {}", offset_of!($type, $field), stringify!($field)).expect("text");)*
        )* };
    }
    fields! {
        Header: magic version lanes ring transmit max_payload flush_error generation ready_at
            first_answer_at left_generation;
        LaneControl: receive_epoch parsed transmit_epoch last_received_at recorded marks receive
            transmit totals latencies;
        ReceiveRecord: received base wanted message;
        TransmitRecord: sequence length sent message;
        Message: msg_len;
        Totals: reads writes flushes trims others errors read_bytes written_bytes;
        Histogram: sum buckets;
        Slot: state cookie offset length kind position received_at started_at attempts crashes;
        FlightRecord: cookie offset length kind received_at started_at finished_at attempts error
            generation;
    }
    let usual = Layout::with_lanes(2);
    let places = [
        ("slots", usual.slots()),
        ("flight records", usual.flight_records()),
        ("receive ring", usual.ring_offset()),
        ("transmit area", usual.transmit_offset()),
        ("second lane", usual.lane(1)),
        ("end", usual.size()),
    ];
    for (name, at) in places {
        writeln!(text, "{name} at {at}").expect("text");
    }
    writeln!(text, "marks: {MARKS}, magic: {MAGIC:x}").expect("text");
    text
}

fn agreed_layout() -> PathBuf {
    folder().join(format!("layout-{VERSION}.txt"))
}

#[test]
fn the_layout_is_the_one_of_its_version() {
    let path = agreed_layout();
    let agreed = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        layout(),
        agreed,
        "{}: attached devices have ledgers like that, and backends of this build would take them over. Raise \
         layout::VERSION, and have record_the_ledgers_of_this_release write the file of the new version",
        path.display()
    );
}
