//! One backend after the other on one device: stored descriptors, locks, takeovers.

use std::fs;
use std::net::Shutdown;

use nbd_proto::{CommandType, NbdError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::holder::{Directory, Fate, Holder};

#[test]
fn memory_outlives_the_process() {
    let mut holder = Holder::new();
    let first = holder.serve("mem:64M");
    assert_eq!(holder.stored_fd_names(), ["memory"]);
    holder.write(4096, &[7; 8192]);
    first.kill();
    let _second = holder.serve("mem:64M");
    assert_eq!(holder.stored_fd_names(), ["memory"]);
    assert_eq!(holder.read(4096, 8192), [7; 8192]);
    assert_eq!(holder.read(0, 4096), [0; 4096]);
}

#[test]
fn a_request_sent_while_nobody_is_there_waits() {
    let mut holder = Holder::new();
    let directory = Directory::new();
    let spec = directory.file("disk");
    holder.serve(&spec).kill();
    holder.send(CommandType::WRITE, 512, 512, &[9; 512]);
    let _second = holder.serve(&spec);
    assert_eq!(holder.reply(), NbdError::SUCCESS);
    assert_eq!(fs::read(directory.path("disk")).unwrap()[512..1024], [9; 512]);
}

#[test]
fn a_detached_device_ends_its_backend_with_success() {
    let mut holder = Holder::new();
    let server = holder.serve("mem:1M");
    holder.detach();
    let (status, words) = server.end();
    assert_eq!(status.code(), Some(0), "{words}");
    assert_eq!(words, "nbd-serve: nbd0: serving mem:1M\n");
}

/// The kernel has gone, and more is to be answered than is kept for one send.
#[test]
fn a_kernel_that_hangs_up_with_requests_in_flight_ends_its_backend_with_success() {
    let mut holder = Holder::new();
    let server = holder.serve("mem:1M");
    let signal = |signal| kill(Pid::from_raw(server.pid() as i32), signal).unwrap();
    signal(Signal::SIGSTOP);
    for index in 0..16 {
        holder.send(CommandType::READ, index << 16, 1 << 16, &[]);
    }
    holder.kernel().shutdown(Shutdown::Both).unwrap();
    signal(Signal::SIGCONT);
    let (status, words) = server.end();
    assert_eq!(status.code(), Some(0), "{words}");
    assert_eq!(words, "nbd-serve: nbd0: serving mem:1M\n");
}

#[test]
fn what_is_served_and_how_is_told() {
    let mut holder = Holder::new();
    let directory = Directory::new();
    let spec = directory.file("disk");
    let _server = holder.start(&["--takeover", &format!("{spec},block=4K")]);
    let (hello, fate) = holder.receive();
    assert_eq!(fate, Fate::Ready { replayed: 0 });
    assert_eq!(hello.description, format!("{spec},block=4096"));
    assert_eq!((hello.export.size, hello.export.block_size), (1 << 20, 4096));
    assert!(hello.takeover);
}

/// The lock must be with the holder: it is held while no backend runs at all.
#[test]
fn the_lock_outlives_the_process() {
    let directory = Directory::new();
    let spec = directory.file("disk");
    let mut holder = Holder::new();
    let first = holder.serve(&spec);
    assert_eq!(holder.stored_fd_names(), ["file"]);
    let complaint = Holder::new().serve_in_vain(&spec);
    assert!(complaint.contains("is in use by nbd-serve (process "), "{complaint}");
    assert!(complaint.contains(&first.pid().to_string()), "{complaint}");
    first.kill();
    // The process that took the lock is gone; the one that has it now, this one, is named.
    let complaint = Holder::new().serve_in_vain(&spec);
    let me = format!("(process {})", std::process::id());
    assert!(complaint.contains(&me), "{complaint}");
    holder.serve(&spec);
    drop(holder);
    Holder::new().serve(&spec);
}

#[test]
fn a_replaced_file_is_refused_and_the_attached_one_untouched() {
    let directory = Directory::new();
    let spec = directory.file("disk");
    let mut holder = Holder::new();
    holder.serve(&spec).kill();
    fs::rename(directory.path("disk"), directory.path("kept")).unwrap();
    directory.file("disk");
    let complaint = holder.serve_in_vain(&spec);
    assert!(complaint.contains("disk: is another file than the attached one"), "{complaint}");
    fs::rename(directory.path("kept"), directory.path("disk")).unwrap();
    let _server = holder.serve(&spec);
    holder.write(0, &[1; 512]);
    assert_eq!(fs::read(directory.path("disk")).unwrap()[..512], [1; 512]);
}

#[test]
fn a_deleted_file_with_create_is_served_on() {
    let directory = Directory::new();
    let path = directory.path("disk");
    let spec = format!("file:{},create=1M", path.display());
    let mut holder = Holder::new();
    let first = holder.serve(&spec);
    holder.write(0, &[3; 4096]);
    fs::remove_file(&path).unwrap();
    first.kill();
    let second = holder.serve(&spec);
    assert_eq!(holder.read(0, 4096), [3; 4096]);
    assert!(!path.exists());
    holder.detach();
    let (_, words) = second.end();
    assert!(words.contains("disk: no longer exists; the device goes on"), "{words}");
}

#[test]
fn a_device_cannot_change_what_it_is() {
    let directory = Directory::new();
    let spec = directory.file("disk");
    let mut holder = Holder::new();
    holder.serve("mem:1M").kill();
    let complaint = holder.serve_in_vain(&spec);
    assert_eq!(
        complaint,
        "nbd0: serves memory and not file since it was attached: detach it first"
    );
    let complaint = holder.serve_in_vain("mem:2M");
    assert!(complaint.contains("the device's memory has 1M and not 2M"), "{complaint}");
    let mut holder = Holder::new();
    holder.serve(&spec).kill();
    let complaint = holder.serve_in_vain("mem:1M");
    assert_eq!(
        complaint,
        "nbd0: serves file and not memory since it was attached: detach it first"
    );
    let complaint = holder.serve_in_vain(&format!("{spec},ro"));
    assert!(complaint.contains("was attached writable"), "{complaint}");
}

#[test]
fn a_truncated_file_answers_with_an_error_and_says_why() {
    let directory = Directory::new();
    let spec = directory.file("disk");
    let mut holder = Holder::new();
    let server = holder.serve(&spec);
    holder.write(1 << 19, &[5; 4096]);
    fs::File::options().write(true).open(directory.path("disk")).unwrap().set_len(4096).unwrap();
    holder.send(CommandType::READ, 1 << 19, 4096, &[]);
    assert_eq!(holder.reply(), NbdError::EIO);
    holder.send(CommandType::WRITE, 1 << 19, 512, &[5; 512]);
    assert_eq!(holder.reply(), NbdError::EIO);
    assert_eq!(holder.read(0, 4096), [0; 4096]);
    holder.detach();
    let (_, words) = server.end();
    assert!(words.contains("disk was truncated while it was served"), "{words}");
}
