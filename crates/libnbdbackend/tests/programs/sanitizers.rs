//! The examples in C with the compiler's sanitizers, which see the memory that library and program share.
//!
//! Not with the one for threads: it does not know the locks of Rust's standard library, which are futexes,
//! and takes what they protect for races.

use std::fs;

use nbd_proto::{CommandType, NbdError};

use crate::compile::{Program, compile_with, examples, printed};
use crate::holder::{Directory, Holder, request};

const SIZE: u64 = 1 << 20;

/// Serves requests of all kinds with an example, is killed, and serves on to the end.
fn serves_cleanly(example: &str, disks: &[&str]) {
    let directory = Directory::new();
    let options =
        ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"];
    let program = compile_with("cc", &options, &examples().join(example), &directory);
    for name in ["a.img", "b.img"] {
        directory.file(name, SIZE);
    }
    let program = program.display().to_string();
    let command: Vec<_> = [&*program].into_iter().chain(disks.iter().copied()).collect();
    let environment = [("NBD_JOIN", "nbd0")];
    let mut holder = Holder::new(&directory, 0);
    let first = Program::start(&directory, &command, &environment);
    assert_eq!(holder.serve(), 0, "{}", printed(&directory));
    holder.write(4096, &[7; 8192]);
    first.kill();
    holder.send(request(CommandType::WRITE, 65536, 4096), &[9; 4096]);
    let second = Program::start(&directory, &command, &environment);
    holder.serve();
    assert_eq!(holder.reply(), (65536, NbdError::SUCCESS));
    // Several at once, which callbacks execute in several threads.
    for block in 0..32 {
        holder.send(request(CommandType::WRITE, block * 4096, 4096), &[block as u8; 4096]);
    }
    (0..32).for_each(|_| assert_eq!(holder.reply().1, NbdError::SUCCESS));
    assert_eq!(holder.read(31 * 4096, 4096), [31; 4096]);
    for command in [CommandType::TRIM, CommandType::WRITE_ZEROES] {
        assert_eq!(holder.ask(request(command, 0, 4096)), NbdError::SUCCESS);
    }
    assert_eq!(holder.ask(request(CommandType::FLUSH, 0, 0)), NbdError::SUCCESS);
    holder.disconnect();
    holder.is_left();
    let status = second.end();
    let words = printed(&directory);
    assert!(status.success(), "{status}: {words}");
    assert!(!words.contains("Sanitizer") && !words.contains("runtime error"), "{words}");
    assert!(fs::read(directory.path().join("a.img")).unwrap()[4096..8192] == [1; 4096]);
}

#[test]
fn examples_use_no_memory_that_is_not_theirs_and_nothing_undefined() {
    serves_cleanly("c/mirror.c", &["a.img", "b.img"]);
    serves_cleanly("c/async_epoll.c", &["nbd0=a.img"]);
}
