//! Reads that are sent from where the storage lies in memory.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use nbd_proto::handshake::Wishes;
use nbd_proto::{CommandType as Type, NbdError};
use nbd_server::testing::{Outcome, RawClient};

use crate::world::{Server, pattern};

const SIZE: usize = 8 << 20;

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
    let wishes =
        Wishes { structured: false, extended: false, allocation: false, ..Wishes::new("") };
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
    (0..90).map(range).collect()
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

/// Whoever was promised data that is gone is left; all later reads are told.
#[test]
fn a_file_that_is_cut_off_meanwhile() {
    let content = pattern(SIZE);
    let memory = InMemory::new("cut", &content);
    let server = Server::new(&[&memory.export()]);
    let mut client = simple(&server);
    let length = 128 << 10;
    for cookie in 0..(SIZE / length) as u64 {
        client.ask(Type::READ, cookie, cookie * length as u64, length as u64);
    }
    // Something has come, and more than the socket takes was asked for.
    let first = client.answer(length);
    assert_eq!(first.outcome, Outcome::Data(0, content[..length].into()));
    fs::File::options().write(true).open(&memory.0).unwrap().set_len(0).unwrap();
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest);
    assert!(rest.len() < SIZE - length, "{} bytes of {SIZE} had gone out before", rest.len());
    for (answer, expected) in rest.chunks(16 + length).zip(content[length..].chunks(length)) {
        let data = answer.get(16..).unwrap_or_default();
        assert!(data == &expected[..data.len()]);
    }
    server.line("was to be sent and is gone");
    let mut client = simple(&server);
    for length in [512, 4096, 128 << 10] {
        let outcome = client.call(Type::READ, 0, length);
        assert_eq!(outcome, Outcome::Failed(NbdError::EIO, String::new()));
    }
    server.line("was truncated while it was served");
}
