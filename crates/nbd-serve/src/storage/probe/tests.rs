use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use super::*;
use crate::testing::{Directory, probe};

fn complaint(text: &str) -> String {
    nbd_backend::chain(&probe(text).expect_err(text))
}

fn spec(path: &Path, options: &str) -> String {
    format!("file:{}{options}", path.display())
}

#[test]
fn a_file_is_a_writable_device_of_its_size() {
    let directory = Directory::new();
    let found = probe(&spec(&directory.file("disk", 10 << 20), "")).unwrap();
    let capabilities = Capabilities {
        flush: true,
        fua: true,
        trim: true,
        write_zeroes: true,
        fast_zero: true,
        cache: true,
        extents: true,
        unaligned: true,
        ..Capabilities::default()
    };
    let expected = Geometry { size: 10 << 20, block_size: 512, capabilities };
    assert_eq!(found.geometry, expected);
    assert!(found.notes.is_empty(), "{:?}", found.notes);
}

#[test]
fn read_only_promises_nothing_else() {
    let directory = Directory::new();
    let found = probe(&spec(&directory.file("disk", 4096), ",ro")).unwrap();
    let capabilities = Capabilities {
        read_only: true,
        cache: true,
        extents: true,
        unaligned: true,
        ..Capabilities::default()
    };
    assert_eq!(found.geometry.capabilities, capabilities);
}

#[test]
fn a_tail_shorter_than_a_block_is_left_out_and_mentioned() {
    let directory = Directory::new();
    let path = directory.file("disk", 4096 + 1000);
    for (options, size, tail) in [("", 4608, "488"), (",block=4096", 4096, "1000")] {
        let found = probe(&spec(&path, options)).unwrap();
        assert_eq!(found.geometry.size, size);
        assert!(found.notes[0].contains(&format!("last {tail} bytes")), "{:?}", found.notes);
    }
}

#[test]
fn block_sizes() {
    let directory = Directory::new();
    let path = directory.file("disk", 1 << 20);
    for block in [512, 1024, 2048, 4096] {
        let found = probe(&spec(&path, &format!(",block={block}"))).unwrap();
        assert_eq!(found.geometry.block_size, block);
    }
}

#[test]
fn direct_io_has_the_file_s_block_size_or_a_larger_one() {
    let directory = Directory::new();
    let path = directory.file("disk", 1 << 20);
    let found = match probe(&spec(&path, ",direct")) {
        Err(error @ ProbeError::NoDirect) => {
            return println!("skipped: {}: {error}", path.display());
        }
        found => found.unwrap(),
    };
    let block = found.geometry.block_size;
    let needed = system::direct_alignment(found.file.as_ref().unwrap()).unwrap_or(DIRECT_BLOCK);
    assert_eq!(block, needed.max(512));
    assert_eq!(found.notes.is_empty(), block == 512, "{:?}", found.notes);
    if block > 512 {
        let complaint = complaint(&spec(&path, ",direct,block=512"));
        assert!(complaint.contains("leave out `block=512`"), "{complaint}");
    }
    assert_eq!(probe(&spec(&path, ",direct,block=4096")).unwrap().geometry.block_size, 4096);
}

#[test]
fn a_new_file_has_the_shape_that_it_will_have() {
    let directory = Directory::new();
    let path = directory.path("disk");
    for options in [",create=1M", ",create=1M,direct", ",create=1M,block=2048"] {
        let text = spec(&path, options);
        let before = probe(&text).unwrap();
        assert!(before.file.is_none());
        assert!(!path.exists());
        directory.file("disk", 1 << 20);
        match probe(&text) {
            Ok(after) => assert_eq!(after.geometry, before.geometry, "{text}"),
            Err(ProbeError::NoDirect) => println!("skipped: no direct I/O: {text}"),
            Err(error) => panic!("{text}: {error}"),
        }
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_cannot_be_served_is_named() {
    let directory = Directory::new();
    let fifo = directory.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let socket = directory.path("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (text, cause) in [
        (spec(&std::env::temp_dir(), ""), "is a directory: only files"),
        (spec(&fifo, ""), "is a named pipe: only files"),
        (spec(&socket, ""), "is a socket: only files"),
        ("file:/dev/null".into(), "is a character device: only files"),
        (spec(&directory.file("empty", 0), ""), "is empty: give it a size"),
        (spec(&directory.file("tiny", 511), ""), "has 511 bytes, less than one block of 512"),
        (spec(&directory.path("none"), ""), "there is no such file; `create=SIZE` makes one"),
        (spec(&directory.path("none,rofl"), ""), "(and `rofl`, if that was meant as an option"),
        (spec(&directory.file("disk", 4096), "/x"), "cannot examine it: Not a directory"),
        (
            spec(&directory.file("old", 4096), ",create=1M"),
            "exists and has 4096 bytes instead of the 1048576 of `create=1M`",
        ),
        ("file:/dev/loop0,create=1M".into(), "`create` cannot make"),
    ] {
        if text.contains("/dev/loop0") && !Path::new("/dev/loop0").exists() {
            println!("skipped: there is no /dev/loop0");
            continue;
        }
        let complaint = complaint(&text);
        assert!(complaint.contains(cause), "{text}: {complaint}");
    }
}

#[test]
fn a_file_that_cannot_be_written_to_can_be_served_read_only() {
    let text = if nix::unistd::geteuid().is_root() {
        // Permissions are nothing to root, but a running program cannot be written to.
        spec(&std::env::current_exe().unwrap(), "")
    } else {
        let directory = Directory::new();
        let path = directory.file("disk", 4096);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        let complaint = complaint(&spec(&path, ""));
        assert!(complaint.contains("add the option `ro`"), "{complaint}");
        probe(&spec(&path, ",ro")).unwrap();
        return;
    };
    assert!(complaint(&text).contains("add the option `ro`"), "{}", complaint(&text));
    probe(&format!("{text},ro")).unwrap();
}
