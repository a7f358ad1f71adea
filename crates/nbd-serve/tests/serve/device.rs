//! Block devices; needs root and a free loop device.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use nbd_proto::{CommandFlags, CommandType, NbdError};

use crate::holder::{Directory, Fate, Holder, wait_for};

/// A loop device over a file, given back at the end.
struct Loop(String);

impl Loop {
    /// Says why, if there is none to be had.
    fn new(backing: &Path) -> Option<Self> {
        let setup = Command::new("losetup").args(["--find", "--show"]).arg(backing).output();
        match setup {
            Ok(output) if output.status.success() => {
                let name = String::from_utf8(output.stdout).unwrap();
                Some(Self(name.trim().into()))
            }
            other => {
                println!("skipped: no loop device: {other:?}");
                None
            }
        }
    }

    fn open_exclusively(&self) -> std::io::Result<File> {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_EXCL);
        options.open(&self.0)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_is_served_like_a_file() {
    let directory = Directory::new();
    directory.file("backing");
    let Some(device) = Loop::new(&directory.path("backing")) else {
        return;
    };
    for options in ["", ",direct", ",block=4096"] {
        let mut holder = Holder::new();
        let server = holder.serve(&format!("file:{}{options}", device.0));
        holder.write(65536, &[0x5a; 65536]);
        for command in [CommandType::FLUSH, CommandType::TRIM, CommandType::WRITE_ZEROES] {
            let (offset, length) = match command {
                CommandType::FLUSH => (0, 0),
                _ => (65536, 4096),
            };
            let flags = match command {
                CommandType::FLUSH => CommandFlags::NONE,
                _ => CommandFlags::FUA,
            };
            let answer = holder.ask(command, flags, offset, length);
            assert_eq!(answer, NbdError::SUCCESS, "{command:?} {options}");
        }
        let flags = CommandFlags::NO_HOLE;
        let answer = holder.ask(CommandType::WRITE_ZEROES, flags, 69632, 4096);
        assert_eq!(answer, NbdError::SUCCESS, "{options}");
        server.kill();
        let server = holder.serve(&format!("file:{}{options}", device.0));
        assert_eq!(holder.read(65536, 8192), [0; 8192], "{options}");
        assert_eq!(holder.read(73728, 4096), [0x5a; 4096], "{options}");
        holder.detach();
        let (status, words) = server.end();
        assert_eq!(status.code(), Some(0), "{words}");
    }
}

#[test]
fn a_device_in_use_is_refused_and_one_that_is_served_cannot_be_mounted() {
    let directory = Directory::new();
    directory.file("backing");
    let Some(device) = Loop::new(&directory.path("backing")) else {
        return;
    };
    let spec = format!("file:{}", device.0);
    let mounted = device.open_exclusively().unwrap();
    let complaint = Holder::new().serve_in_vain(&spec);
    assert!(complaint.contains("is in use: it is mounted"), "{complaint}");
    let mut reader = Holder::new();
    reader.serve(&format!("{spec},ro")).kill();
    drop((reader, mounted));

    let mut holder = Holder::new();
    holder.serve(&spec).kill();
    assert!(device.open_exclusively().is_err());
    // The claim is the predecessor's, which must not keep its successor out.
    let server = holder.start(&[&spec]);
    let (_, fate) = holder.receive();
    assert_eq!(fate, Fate::Ready { replayed: 0 });
    drop((server, holder));
    // A program that another test is about to start has copies of our descriptors until it is executed.
    wait_for("the claim is gone", || device.open_exclusively().is_ok());
    fs::metadata(&device.0).unwrap();
}
