//! Wrong uses of the library, and that none of them touches memory that it must not.

use std::fs;
use std::path::Path;

use nbd_proto::{CommandType, NbdError};

use crate::compile::{Program, compile, printed};
use crate::holder::{Directory, Holder, request};

/// What valgrind's memcheck exits with if it finds anything.
const FOUND: &str = "--error-exitcode=99";

#[test]
fn wrong_uses_are_errors_and_the_device_goes_on() {
    let directory = Directory::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/misuse.c");
    let program = compile("cc", &source, &directory).display().to_string();
    let mut holder = Holder::new(&directory, 0);
    let lock = fs::File::open(&source).unwrap();
    holder.stored.push(("lock".into(), lock.into()));
    let command = ["valgrind", "-q", FOUND, &program];
    let program = Program::start(&directory, &command, &[]);
    let hello = holder.hear();
    assert_eq!(hello.description, "misuse:");
    assert_eq!(holder.grant(), Ok(0), "{}", printed(&directory));
    let stored: Vec<_> = holder.stored.iter().map(|(name, _)| &**name).collect();
    assert_eq!(stored, ["lock", "memory"]);

    holder.write(0, &[7; 4096]);
    assert_eq!(holder.read(4096, 512), [9; 512]);
    assert_eq!(holder.ask(request(CommandType::READ, 0, 512)), NbdError::EIO);
    assert_eq!(holder.ask(request(CommandType::READ, 0, 512)), NbdError::EIO);
    // The last one is in flight when the device is detached.
    holder.send(request(CommandType::WRITE, 512, 512), &[1; 512]);
    holder.disconnect();
    assert_eq!(holder.reply(), (512, NbdError::SUCCESS));
    holder.is_left();
    assert!(program.end().success(), "{}", printed(&directory));
    assert!(printed(&directory).contains("all as expected"));
}

#[test]
fn the_examples_are_clean_under_valgrind() {
    let directory = Directory::new();
    let source = crate::compile::examples().join("c/async_epoll.c");
    let program = compile("cc", &source, &directory).display().to_string();
    let mut holders = [Holder::new(&directory, 0), Holder::new(&directory, 1)];
    for index in 0..2 {
        directory.file(&format!("{index}.img"), 1 << 20);
    }
    let command = ["valgrind", "-q", FOUND, &program, "nbd0=0.img", "nbd1=1.img"];
    let program = Program::start(&directory, &command, &[]);
    for holder in &mut holders {
        assert_eq!(holder.serve(), 0);
        holder.write(4096, &[5; 8192]);
        assert_eq!(holder.read(0, 8192), [[0; 4096], [5; 4096]].concat());
        assert_eq!(holder.ask(request(CommandType::TRIM, 0, 4096)), NbdError::SUCCESS);
        assert_eq!(holder.ask(request(CommandType::WRITE_ZEROES, 4096, 4096)), NbdError::SUCCESS);
        assert_eq!(holder.ask(request(CommandType::FLUSH, 0, 0)), NbdError::SUCCESS);
        assert_eq!(holder.read(4096, 8192), [[0; 4096], [5; 4096]].concat());
        holder.disconnect();
        holder.is_left();
    }
    assert!(program.end().success(), "{}", printed(&directory));
}
