//! Keeps the pipes of backends from filling up while no holder reads them.
//!
//! A holder may be dead or stopped for long, and a backend that writes to a full pipe would wait
//! with the requests that it serves. The sitter has the reading ends; a thread of it throws away
//! the oldest of what no holder reads. It sleeps until something is written at all, and leaves a
//! living holder the time to read first. What fits into a pipe stays for the next holder.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::system;

/// How long a holder may take to read, and how long it is waited for that has just not done so.
const GRACE: Duration = Duration::from_millis(200);
const NO_GRACE: Duration = Duration::from_millis(5);
/// How soon to look again while something is unread.
const NEXT_LOOK_MS: u16 = 1000;
/// More than this is thrown away down to this. A pipe of 64 KiB may be full with little more than
/// half of that in it, as lines of more than half a page do not share pages.
const MAX_UNREAD: usize = 16 << 10;
/// The stack of a thread that calls nothing deep. There is no smaller one.
const STACK: usize = 64 << 10;

/// Starts the thread. Signals are blocked in it as in its creator, and it never ends the process.
pub(super) fn start(pipes: Vec<OwnedFd>) -> nix::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for pipe in &pipes {
        // By edge: a pipe that has no writers would be reported for ever.
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        epoll.add(pipe, EpollEvent::new(events, 0))?;
    }
    let mut pipes: Vec<File> = pipes.into_iter().map(File::from).collect();
    let thread = std::thread::Builder::new().name("log-valve".into()).stack_size(STACK);
    let started = thread.spawn(move || watch(&epoll, &mut pipes));
    started.map(drop).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EAGAIN)))
}

fn watch(epoll: &Epoll, pipes: &mut [File]) {
    let (mut timeout, mut grace) = (EpollTimeout::NONE, GRACE);
    loop {
        // No signal interrupts it; and if it failed, the pause keeps this from being a busy loop.
        let _ = epoll.wait(&mut [EpollEvent::empty()], timeout);
        std::thread::sleep(grace);
        let (mut unread, mut relieved) = (false, false);
        for pipe in pipes.iter_mut() {
            match relieve(pipe) {
                Left::Nothing => {}
                Left::Unread => unread = true,
                Left::Relieved => (unread, relieved) = (true, true),
            }
        }
        grace = if relieved { NO_GRACE } else { GRACE };
        timeout = if unread { EpollTimeout::from(NEXT_LOOK_MS) } else { EpollTimeout::NONE };
    }
}

/// What is in a pipe after a look at it.
enum Left {
    Nothing,
    Unread,
    /// The same, and there was too much.
    Relieved,
}

/// Throws away what is too much.
fn relieve(pipe: &mut File) -> Left {
    let mut buffer = [0; 4096];
    let mut left = Left::Unread;
    loop {
        match system::unread(pipe.as_fd()) {
            Ok(0) | Err(_) => return Left::Nothing,
            Ok(unread) if unread <= MAX_UNREAD => return left,
            Ok(_) => match pipe.read(&mut buffer) {
                Ok(1..) => left = Left::Relieved,
                // The holder has been faster.
                Ok(0) | Err(_) => return Left::Nothing,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::fcntl::OFlag;

    use super::*;

    #[test]
    fn a_writer_never_waits_for_a_reader_that_does_not_read() {
        let pipes: Vec<_> =
            (0..4).map(|_| nix::unistd::pipe2(OFlag::O_NONBLOCK).unwrap()).collect();
        let copies = pipes.iter().map(|(read, _)| read.try_clone().unwrap()).collect();
        start(copies).unwrap();
        let mut pipes = pipes.into_iter();
        // One that has no writers disturbs nothing.
        drop(pipes.next().unwrap().1);
        let (read, write) = pipes.next().unwrap();
        nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let mut write = File::from(write);
        for line in 0..600 {
            // Two of these do not fit into a page.
            writeln!(write, "{line:2100}").unwrap();
        }
        drop(write);
        let mut left = Vec::new();
        File::from(read).read_to_end(&mut left).unwrap();
        assert!(String::from_utf8(left).unwrap().trim_end().ends_with(" 599"), "the latest stay");
    }
}
