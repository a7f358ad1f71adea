//! Reads that are sent from where the storage lies in memory, and writes that are received to there.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nbd_proto::handshake::ClientOptions;
use nbd_proto::{CommandFlags, CommandType as Type, NbdError, SimpleReply};
use nbd_server::testing::{Outcome, RawClient};

use crate::content::pattern;
use crate::server::Server;

const SIZE: usize = 8 << 20;
/// Only a hang takes as long.
const EVENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A file in memory, which is removed at the end.
struct InMemory(PathBuf);

impl InMemory {
    fn new(name: &str, content: &[u8]) -> Self {
        let path = Path::new("/dev/shm").join(format!("nbd-serve-{}-{name}", std::process::id()));
        fs::write(&path, content).unwrap();
        Self(path)
    }

    fn export(&self) -> String {
        format!("file:{}", self.0.display())
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A client that gets all data as it is, and never a hole.
fn simple(server: &Server) -> RawClient {
    let wishes = ClientOptions {
        structured: false,
        extended: false,
        allocation: false,
        ..ClientOptions::new("")
    };
    RawClient::shake_hands(server.connect(), wishes).unwrap()
}

/// How much of a file the process has touched where it is mapped, in bytes.
fn touched(server: &Server, name: &str) -> usize {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", server.pid())).unwrap();
    let mut lines = maps.lines().skip_while(|line| !line.contains(name));
    let resident = lines.find_map(|line| line.strip_prefix("Rss:"));
    let number = |line: &str| line.split_ascii_whitespace().next().unwrap().parse::<usize>();
    resident.map_or(0, |line| number(line).unwrap() << 10)
}

/// Reads of all lengths, at places of all kinds.
fn ranges() -> Vec<(usize, usize)> {
    let lengths = [512, 4096, 128 << 10, 5000, 64 << 10, 1 << 20, 700, 32 << 10, 300_001];
    let range = |at: usize| {
        let length = lengths[at % lengths.len()];
        ((at * 977_531) % (SIZE - length), length)
    };
    (0..90).map(range).chain((0..8).map(|at| (at << 20, 1 << 20))).collect()
}

/// Asks for all of them before it listens, so that the server has to wait in the middle of some.
fn read_all(server: &Server, is_simple: bool, content: &[u8]) {
    let mut client = if is_simple { simple(server) } else { server.client("") };
    for (cookie, (offset, length)) in ranges().into_iter().enumerate() {
        client.ask(Type::READ, cookie as u64, offset as u64, length as u64);
    }
    let ranges = ranges();
    for _ in 0..ranges.len() {
        let answer = client.answer_to(|cookie| ranges[cookie as usize].1);
        let (offset, length) = ranges[answer.cookie as usize];
        let Outcome::Data(_, data) = answer.outcome else {
            panic!("{offset}+{length}: {:?}", answer.outcome)
        };
        assert!(data == content[offset..offset + length], "{offset}+{length} is wrong");
    }
}

#[test]
fn they_come_whole_whoever_asks_and_wherever_the_data_lies() {
    let content = pattern(SIZE);
    let memory = InMemory::new("whole", &content);
    for server in [Server::of_content(&content), Server::new(&[&memory.export()])] {
        read_all(&server, true, &content);
        read_all(&server, false, &content);
    }
    let server = Server::new(&[&memory.export()]);
    read_all(&server, true, &content);
    let name = memory.0.file_name().unwrap().to_str().unwrap();
    assert!(touched(&server, name) > SIZE / 2, "it was copied: {}", touched(&server, name));
    let server = Server::new(&["mem:8M"]);
    let mut client = server.client("");
    client.write(1, 0, &content);
    assert_eq!(client.answer(0).outcome, Outcome::Done);
    read_all(&server, true, &content);
    read_all(&server, false, &content);
}

#[test]
fn holes_stay_holes() {
    let memory = InMemory::new("holes", &[]);
    fs::File::options().write(true).open(&memory.0).unwrap().set_len(SIZE as u64).unwrap();
    let server = Server::new(&[&memory.export()]);
    let mut client = simple(&server);
    for length in [4096, 128 << 10, 1 << 20] {
        let zeroes = Outcome::Data(0, vec![0; length]);
        assert_eq!(client.call(Type::READ, 0, length as u64), zeroes);
    }
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&memory.0).unwrap());
    assert_eq!(blocks, 0, "reading has filled them");
}

/// How many of some bytes come before the end of the stream.
fn read_to(stream: &mut impl Read, buffer: &mut [u8]) -> usize {
    let mut have = 0;
    while have < buffer.len() {
        match stream.read(&mut buffer[have..]) {
            // That is how a socket closes in which something was not read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            count => match count.unwrap() {
                0 => break,
                count => have += count,
            },
        }
    }
    have
}

/// Whoever was promised data that is gone is left; all other reads are told.
#[test]
fn a_file_that_is_cut_off_meanwhile() {
    let content = pattern(SIZE);
    let memory = InMemory::new("cut", &content);
    let server = Server::new(&[&memory.export()]);
    // From now on the server believes that all of it is there.
    read_all(&server, true, &content);
    let mut client = simple(&server);
    let length = 128 << 10;
    let count = SIZE / length;
    for cookie in 0..count as u64 {
        client.ask(Type::READ, cookie, cookie * length as u64, length as u64);
    }
    // Something has come, and more than the socket takes was asked for.
    let first = client.answer(length);
    assert_eq!(first.outcome, Outcome::Data(0, content[..length].into()));
    fs::File::options().write(true).open(&memory.0).unwrap().set_len(0).unwrap();
    let (mut errors, mut is_left) = (0, false);
    for expected in content[length..].chunks(length) {
        let (mut head, mut data) = ([0; SimpleReply::LEN], vec![0; length]);
        let have = read_to(&mut client.stream, &mut head);
        if have < head.len() {
            is_left = true;
            break;
        }
        match SimpleReply::decode(&head).unwrap().error {
            NbdError::SUCCESS => {
                assert_eq!(errors, 0, "data after an error");
                let have = read_to(&mut client.stream, &mut data);
                assert!(data[..have] == expected[..have]);
                is_left = have < length;
            }
            error => {
                assert_eq!(error, NbdError::EIO);
                errors += 1;
            }
        }
        if is_left {
            break;
        }
    }
    assert!(is_left || errors > 0, "all {count} answers had gone out before");
    if is_left {
        server.line("that were announced to a client are gone");
    }
    let mut client = simple(&server);
    for length in [512, 4096, 128 << 10] {
        let outcome = client.call(Type::READ, 0, length);
        assert_eq!(outcome, Outcome::Failed(NbdError::EIO, String::new()));
    }
    server.line("was truncated while it was served");
}

/// Waits until a file contains this at a place.
fn wait_for(path: &Path, offset: u64, data: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::open(path).unwrap();
    let began = Instant::now();
    let mut found = vec![0; data.len()];
    while file.read_exact_at(&mut found, offset).is_err() || found != data {
        assert!(began.elapsed() < EVENT_TIMEOUT, "the beginning of a write never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Long and short writes, of which a part comes each time, with reads and flushes between them.
fn write_all(server: &Server, mut client: RawClient) {
    let mut content = vec![0; SIZE];
    let source = pattern(SIZE + 256);
    let mut stream = Vec::new();
    for (cookie, (offset, length)) in ranges().into_iter().enumerate() {
        let data = &source[cookie..cookie + length];
        content[offset..offset + length].copy_from_slice(data);
        stream.extend(client.write_message(cookie as u64, offset as u64, data));
        if cookie % 7 == 0 {
            stream.extend(client.request(Type::FLUSH, CommandFlags::NONE, 1000, 0, 0));
        }
    }
    let mut sender = client.stream.try_clone().unwrap();
    let mut answers = std::thread::scope(|scope| {
        let pieces = [1, 27, 28, 29, 70_000, 3, 131_100, 5000, 262_144];
        scope.spawn(move || {
            let mut rest = &stream[..];
            for length in pieces.iter().cycle() {
                let (piece, later) = rest.split_at(rest.len().min(*length));
                sender.write_all(piece).unwrap();
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
        });
        let count = ranges().len() + ranges().len().div_ceil(7);
        let answers: Vec<_> = (0..count).map(|_| client.answer(0)).collect();
        answers
    });
    assert!(answers.iter().all(|answer| answer.outcome == Outcome::Done), "{answers:?}");
    answers.retain(|answer| answer.cookie != 1000);
    let cookies: Vec<_> = answers.iter().map(|answer| answer.cookie).collect();
    assert_eq!(cookies, (0..ranges().len() as u64).collect::<Vec<_>>());
    let mut client = server.client("");
    for (offset, length) in ranges() {
        let data = Outcome::Data(offset as u64, content[offset..offset + length].into());
        assert!(client.call(Type::READ, offset as u64, length as u64) == data, "{offset}+{length}");
    }
}

#[test]
fn writes_arrive_where_they_belong_however_they_are_cut() {
    let before = 4 << 20;
    let whole = InMemory::new("writes", &vec![0xee; SIZE]);
    let longer = InMemory::new("shifted", &vec![0xee; before + SIZE]);
    let shifted = format!("offset:4M@{}", longer.export());
    for export in [whole.export(), shifted, "mem:8M".into(), "offset:4M@mem:12M".into()] {
        let server = Server::new(&[&export]);
        let mut client = server.client("");
        client.write(1, 0, &vec![0xee; SIZE]);
        assert_eq!(client.answer(0).outcome, Outcome::Done);
        write_all(&server, simple(&server));
        write_all(&server, client);
    }
    assert!(
        fs::read(&longer.0).unwrap()[..before] == vec![0xee; before],
        "written before its place"
    );
}

#[test]
fn a_file_that_is_cut_off_while_a_write_comes() {
    let memory = InMemory::new("cut-write", &vec![0xee; SIZE]);
    let server = Server::new(&[&memory.export()]);
    let mut client = server.client("");
    let data = pattern(1 << 20);
    let message = client.write_message(5, 4 << 20, &data);
    let (now, later) = message.split_at(300_000);
    client.send(now);
    wait_for(&memory.0, 4 << 20, &data[..299_000]);
    fs::File::options().write(true).open(&memory.0).unwrap().set_len(4096).unwrap();
    client.send(later);
    // Whoever asks next must not be mistaken for a part of the data.
    client.ask(Type::READ, 6, 0, 512);
    let answer = client.answer(0);
    assert!(matches!(answer.outcome, Outcome::Failed(NbdError::EIO, _)), "{answer:?}");
    assert_eq!(answer.cookie, 5);
    assert_eq!(client.answer(512).outcome, Outcome::Data(0, vec![0xee; 512]));
    assert_eq!(fs::metadata(&memory.0).unwrap().len(), 4096, "it has grown back");
    server.line("was truncated while it was served");
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_write() {
    let memory = InMemory::new("leaves", &vec![0xee; SIZE]);
    let server = Server::new(&[&memory.export()]);
    let mut client = server.client("");
    let data = pattern(1 << 20);
    let message = client.write_message(5, 0, &data);
    client.send(&message[..500_000]);
    wait_for(&memory.0, 0, &data[..499_000]);
    drop(client);
    server.line("closed the connection in the middle of a request");
    let expected = Outcome::Data(0, data[..4096].into());
    assert_eq!(server.client("").call(Type::READ, 0, 4096), expected);
    let found = fs::read(&memory.0).unwrap();
    assert!(found[500_000..] == vec![0xee; SIZE - 500_000], "more was written than was sent");
}

/// The last page of a file is mapped as a whole: what lies behind the file's end in it reads as zeroes
/// and takes what is written, which goes nowhere.
#[test]
fn a_file_that_is_cut_off_within_a_page() {
    let content = pattern(SIZE);
    let memory = InMemory::new("within", &content);
    let server = Server::new(&[&memory.export()]);
    read_all(&server, true, &content);
    let mut client = server.client("");
    let page = 5 << 20;
    let data = pattern((1 << 20) + 4096);
    let message = client.write_message(5, 4 << 20, &data);
    let (now, later) = message.split_at(300_000);
    client.send(now);
    wait_for(&memory.0, 4 << 20, &data[..299_000]);
    fs::File::options().write(true).open(&memory.0).unwrap().set_len(page + 100).unwrap();
    // A file that had its whole size is believed to have it for a millisecond.
    std::thread::sleep(Duration::from_millis(2));
    client.send(later);
    let answer = client.answer(0);
    assert!(matches!(answer.outcome, Outcome::Failed(NbdError::EIO, _)), "{answer:?}");
    for length in [4096, 128 << 10] {
        let outcome = client.call(Type::READ, page + 4096 - length, length);
        assert!(matches!(outcome, Outcome::Failed(NbdError::EIO, _)), "{length} bytes");
        let mut client = simple(&server);
        let outcome = client.call(Type::READ, page + 4096 - length, length);
        assert!(matches!(outcome, Outcome::Failed(NbdError::EIO, _)), "{length} bytes");
    }
}
