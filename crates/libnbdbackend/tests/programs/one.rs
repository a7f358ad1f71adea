//! Programs that serve one device.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use nbd_control::backend::{EXPORT_VARIABLE, HOLDER_FD};
use nbd_proto::{CommandFlags, CommandType, NbdError, Request};

use crate::compile::{Program, compile, examples, include, printed};
use crate::holder::{Directory, Holder, request};

const SIZE: u64 = 1 << 20;

fn mirror(directory: &Directory) -> [String; 3] {
    let program = compile("cc", &examples().join("c/mirror.c"), directory);
    directory.file("a.img", SIZE);
    directory.file("b.img", SIZE);
    [program.display().to_string(), "a.img".into(), "b.img".into()]
}

fn start(directory: &Directory, command: &[String]) -> Program {
    Program::start(directory, command, &[("NBD_JOIN", "nbd0")])
}

#[test]
fn the_mirror_serves_and_ends_with_the_device() {
    let directory = Directory::new();
    let command = mirror(&directory);
    let mut holder = Holder::new(&directory, 0);
    let program = start(&directory, &command);
    let hello = holder.hear();
    assert_eq!(hello.description, "mirror:");
    assert_eq!((hello.export.size, hello.export.block_size), (SIZE, 512));
    assert_eq!(holder.grant(), Ok(0));
    let data: Vec<u8> = (0..8192).map(|byte| byte as u8).collect();
    holder.write(4096, &data);
    assert_eq!(holder.read(4096, 8192), data);
    assert_eq!(holder.ask(request(CommandType::FLUSH, 0, 0)), NbdError::SUCCESS);
    // What the kernel sends although it was not offered.
    assert_eq!(holder.ask(request(CommandType::WRITE_ZEROES, 4096, 4096)), NbdError::SUCCESS);
    assert_eq!(holder.ask(request(CommandType::TRIM, 0, 4096)), NbdError::SUCCESS);
    holder.disconnect();
    holder.is_left();
    assert!(program.end().success(), "{}", printed(&directory));
    let files = ["a.img", "b.img"].map(|name| fs::read(directory.path().join(name)).unwrap());
    assert!(files[0] == files[1]);
    assert!(files[0][4096..8192] == [0; 4096] && files[0][8192..12288] == data[4096..]);
}

#[test]
fn a_successor_of_a_killed_program_answers_what_was_not() {
    let directory = Directory::new();
    let command = mirror(&directory);
    let mut holder = Holder::new(&directory, 0);
    let program = start(&directory, &command);
    holder.serve();
    holder.write(0, &[7; 4096]);
    program.kill();
    // Two requests while there is no backend.
    holder.send(request(CommandType::WRITE, 4096, 4096), &[8; 4096]);
    holder.send(request(CommandType::READ, 0, 512), &[]);
    let program = start(&directory, &command);
    holder.serve();
    let mut cookies = Vec::new();
    for _ in 0..2 {
        let (cookie, error) = holder.reply();
        assert_eq!(error, NbdError::SUCCESS);
        if cookie == 0 {
            assert_eq!(holder.data(512), [7; 512]);
        }
        cookies.push(cookie);
    }
    cookies.sort_unstable();
    assert_eq!(cookies, [0, 4096]);
    assert_eq!(holder.read(4096, 4096), [8; 4096]);
    holder.disconnect();
    assert!(program.end().success(), "{}", printed(&directory));
}

#[test]
fn a_refusal_is_an_error_with_the_holders_words() {
    let directory = Directory::new();
    let command = mirror(&directory);
    let mut holder = Holder::new(&directory, 0);
    let program = start(&directory, &command);
    holder.hear();
    holder.refuse("process 7 serves nbd0 already");
    assert_eq!(program.end().code(), Some(1));
    assert!(printed(&directory).contains("process 7 serves nbd0 already"));
}

#[test]
fn an_error_of_a_callback_arrives_and_a_failed_flush_stays_failed() {
    let directory = Directory::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/errors.c");
    let program = compile("cc", &source, &directory).display().to_string();
    let mut holder = Holder::new(&directory, 0);
    let program = start(&directory, &[program]);
    holder.serve();
    // The program returns what the block's number is in the list of returns.
    let read = |block: u64| request(CommandType::READ, block * 512, 512);
    for (block, expected) in [
        (1, NbdError::ENOSPC),
        (2, NbdError::ENOSPC), // the same, negative
        (3, NbdError::EIO),    // no errno at all
        (4, NbdError::EIO),    // INT_MIN
        (5, NbdError::EIO),    // one that NBD does not have
    ] {
        assert_eq!(holder.ask(read(block)), expected, "block {block}");
    }
    assert_eq!(holder.read(0, 512), [0xab; 512]);
    let flags = CommandFlags::FUA;
    let durable = Request { flags, ..request(CommandType::WRITE, 512, 512) };
    holder.send(durable, &[1; 512]);
    assert_eq!(holder.reply().1, NbdError::SUCCESS);
    assert_eq!(holder.ask(request(CommandType::FLUSH, 0, 0)), NbdError::EIO);
    assert_eq!(holder.ask(request(CommandType::FLUSH, 0, 0)), NbdError::EIO);
    holder.disconnect();
    assert!(program.end().success());
    let words = printed(&directory);
    assert!(words.contains("flags 1") && words.contains("1 flush"), "{words}");
}

#[test]
fn a_callback_that_throws_ends_the_process_and_nothing_is_answered() {
    let directory = Directory::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/throws.cpp");
    let program = compile("c++", &source, &directory).display().to_string();
    let mut holder = Holder::new(&directory, 0);
    let program = start(&directory, &[program]);
    holder.serve();
    holder.send(request(CommandType::READ, 0, 512), &[]);
    assert_eq!(program.end().signal(), Some(libc::SIGABRT), "{}", printed(&directory));
    assert!(holder.has_no_reply());
}

#[test]
fn a_program_that_the_holder_started_opens_its_device_once() {
    let directory = Directory::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/inherited.c");
    let program = compile("cc", &source, &directory);
    let mut holder = Holder::new(&directory, 0);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "exec \"$0\" 3<&0 </dev/null"])
        .arg(program)
        .env(HOLDER_FD, "3")
        .env(EXPORT_VARIABLE, format!("{SIZE}:512:3"))
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    assert_eq!(holder.converse(ours).description, "inherited:");
    assert_eq!(holder.grant(), Ok(0));
    assert_eq!(holder.read(0, 512).len(), 512);
    holder.disconnect();
    holder.is_left();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_static_library_links_with_what_the_pkg_config_file_names() {
    let directory = Directory::new();
    let here = std::env::current_exe().unwrap();
    let library = here.parent().unwrap().join("libnbdbackend.a");
    let text = fs::read_to_string(include().join("../nbdbackend.pc")).unwrap();
    let private = text.lines().find_map(|line| line.strip_prefix("Libs.private: ")).unwrap();
    let program = directory.path().join("mirror");
    let status = Command::new("cc")
        .args(["-D_GNU_SOURCE", "-I"])
        .arg(include())
        .arg("-o")
        .args([&program, &examples().join("c/mirror.c"), &library])
        .args(private.split_whitespace())
        .status();
    assert!(status.unwrap().success());
    // It is run without its files, and says so.
    assert_eq!(Program::start(&directory, &[program], &[]).end().code(), Some(2));
    assert!(printed(&directory).contains("usage: mirror"));
}

#[test]
fn cxx_takes_the_header_and_links() {
    let directory = Directory::new();
    let source = directory.path().join("version.cpp");
    let text = "#include <nbdbackend.h>\nint main() { return nbdb_version() == 0; }\n";
    fs::write(&source, text).unwrap();
    let program = compile("c++", &source, &directory);
    assert!(Program::start(&directory, &[program], &[]).end().success());
    assert!(include().join("nbdbackend.h").exists());
}
