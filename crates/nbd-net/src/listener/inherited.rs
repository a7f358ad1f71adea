//! Sockets that were there when the process started.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    ControlMessage, MsgFlags, SockType, SockaddrStorage, getpeername, getsockopt, sendmsg, sockopt,
};
use nix::unistd::{close, dup2_stdin, dup2_stdout};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::ListenError;
use super::source::{Listener, local_address};
use crate::address::number;
use crate::socket::Socket;

/// The first passed descriptor (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;
/// More than anybody passes, and few enough to be tried.
const MOST: i32 = 1024;

/// The passed descriptors were taken over. From then on their numbers may stand for anything.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The connection that stdin is. Whatever else reads stdin or prints to stdout from now on does
/// not disturb it.
pub(super) fn stdin() -> io::Result<Listener> {
    let stdin = io::stdin();
    connected(&stdin)?;
    let socket = Socket::from_fd(stdin.as_fd().try_clone_to_owned()?)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // The connection would stay open as long as one of them is.
    dup2_stdin(&null)?;
    if connected(io::stdout()).is_ok() {
        dup2_stdout(&null)?;
    }
    Ok(Listener::one(socket))
}

fn connected(fd: impl AsFd) -> nix::Result<()> {
    getpeername::<SockaddrStorage>(fd.as_fd().as_raw_fd()).map(drop)
}

/// The sockets that a service manager has passed.
///
/// The variables stay in the environment. They do not mislead children: these have other process
/// identifiers, and the descriptors are closed.
pub(super) fn passed() -> Result<Vec<Listener>, ListenError> {
    let variable = |name| std::env::var(name).ok();
    let count = announced(variable("LISTEN_PID"), variable("LISTEN_FDS"), std::process::id())
        .ok_or(ListenError::NotActivated)?;
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(ListenError::NotActivated);
    }
    adopt(FIRST..FIRST + count)
}

/// How many descriptors were passed to the process `pid`.
fn announced(for_pid: Option<String>, count: Option<String>, pid: u32) -> Option<i32> {
    let for_pid: u32 = number(&for_pid?)?;
    let count = number(&count?)?;
    (for_pid == pid && (1..=MOST).contains(&count)).then_some(count)
}

fn adopt(fds: impl IntoIterator<Item = RawFd>) -> Result<Vec<Listener>, ListenError> {
    let adopt =
        |fd| own(fd).and_then(listener).map_err(|source| ListenError::Passed { fd, source });
    fds.into_iter().map(adopt).collect()
}

/// A listening socket, or a connection (`Accept=yes` in a socket unit).
fn listener(fd: OwnedFd) -> io::Result<Listener> {
    if getsockopt(&fd, sockopt::SockType)? != SockType::Stream {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is another kind of socket"));
    }
    if !getsockopt(&fd, sockopt::AcceptConn)? {
        connected(&fd)?;
        return Ok(Listener::one(Socket::from_fd(fd)?));
    }
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    let address = local_address(&fd)?;
    Ok(Listener::many(fd, address))
}

/// Takes over a descriptor of which only the number is known. It travels through a socket of our
/// own, which turns it into a descriptor that is ours, that children do not inherit, and that was
/// really open.
fn own(fd: RawFd) -> io::Result<OwnedFd> {
    let (sender, receiver) = UnixStream::pair()?;
    let descriptors = [fd];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let payload = [IoSlice::new(&[0])];
    sendmsg::<()>(sender.as_raw_fd(), &payload, &rights, MsgFlags::empty(), None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    recvmsg(&receiver, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let owned = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let owned = owned.ok_or_else(|| io::Error::other("it did not arrive"))?;
    close(fd)?;
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::{UnixDatagram, UnixListener};
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::address::{Address, Listen};
    use crate::listener::Listeners;
    use crate::testing::Scratch;

    #[test]
    fn only_what_is_meant_for_us_is_taken() {
        let announced = |pid: &str, count: &str| announced(Some(pid.into()), Some(count.into()), 7);
        assert_eq!(announced("7", "2"), Some(2));
        for (pid, count) in
            [("8", "2"), ("7", "0"), ("7", "-1"), ("7", "99999"), ("", ""), ("x", "1")]
        {
            assert_eq!(announced(pid, count), None, "{pid} {count}");
        }
        assert_eq!(super::announced(None, Some("1".into()), 7), None);
    }

    #[test]
    fn listening_and_connected_sockets_are_adopted() {
        let scratch = Scratch::new();
        let path = scratch.path().join("socket");
        let listening = UnixListener::bind(&path).unwrap().into_raw_fd();
        let (connected, _peer) = UnixStream::pair().unwrap();
        let listeners = adopt([listening, connected.into_raw_fd()]).unwrap();
        assert_eq!(listeners[0].address(), Some(Address::Unix(path)));
        assert!(listeners[0].take_connection().is_none());
        assert!(listeners[1].address().is_none());
        assert!(listeners[1].take_connection().is_some());
    }

    #[test]
    fn what_is_of_no_use_is_named() {
        let file = File::open("/dev/null").unwrap().into_raw_fd();
        let datagram = UnixDatagram::unbound().unwrap().into_raw_fd();
        let never_opened = 1_000_000;
        for fd in [file, datagram, never_opened] {
            let error = adopt([fd]).unwrap_err();
            assert!(matches!(error, ListenError::Passed { fd: named, .. } if named == fd));
        }
    }

    /// Tells a test that it is in a process of its own, with descriptors to be taken over.
    const CHILD: &str = "NBD_NET_TEST_CHILD";

    /// Runs a test of this module in a process of its own. The shell sees to the descriptors.
    fn run_alone(test: &str, shell: &str, stdin: OwnedFd, stdout: Stdio) -> Child {
        let test = format!("listener::inherited::tests::{test}");
        Command::new("/bin/sh")
            .args(["-c", shell])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &test, "--nocapture"])
            .env(CHILD, "1")
            .stdin(stdin)
            .stdout(stdout)
            .spawn()
            .unwrap()
    }

    /// Serves one client: says `hello`.
    fn greet(listeners: &Listeners) {
        let (stop, _stopper) = io::pipe().unwrap();
        let socket = listeners.accept(stop.as_fd()).unwrap().unwrap();
        assert_eq!(socket.try_send(&[IoSlice::new(b"hello")]).unwrap(), 5);
    }

    #[test]
    fn stdin_is_taken_over() {
        if std::env::var_os(CHILD).is_none() {
            let (ours, mut peer) = UnixStream::pair().unwrap();
            let shell = "exec \"$0\" \"$@\" >/dev/null";
            let mut child = run_alone("stdin_is_taken_over", shell, ours.into(), Stdio::null());
            let mut text = String::new();
            peer.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
            assert!(child.wait().unwrap().success());
            return;
        }
        greet(&Listeners::bind(&[Listen::Stdin]).unwrap());
        assert_eq!(io::stdin().read(&mut [0]).unwrap(), 0);
        let error = Listeners::bind(&[Listen::Stdin]).unwrap_err();
        assert!(matches!(error, ListenError::Stdin(_)), "{error}");
    }

    #[test]
    fn the_sockets_of_a_service_manager_are_taken_over() {
        if std::env::var_os(CHILD).is_none() {
            let scratch = Scratch::new();
            let path = scratch.path().join("socket");
            let listening = UnixListener::bind(&path).unwrap();
            let (ours, mut peer) = UnixStream::pair().unwrap();
            let shell =
                "LISTEN_PID=$$ LISTEN_FDS=2 exec \"$0\" \"$@\" 3<&0 4<&1 </dev/null >/dev/null";
            let test = "the_sockets_of_a_service_manager_are_taken_over";
            let ours = Stdio::from(OwnedFd::from(ours));
            let mut child = run_alone(test, shell, listening.into(), ours);
            for client in [&mut peer, &mut UnixStream::connect(&path).unwrap()] {
                let mut text = String::new();
                client.read_to_string(&mut text).unwrap();
                assert_eq!(text, "hello");
            }
            assert!(child.wait().unwrap().success());
            return;
        }
        let listeners = Listeners::bind(&[Listen::Activated]).unwrap();
        greet(&listeners);
        greet(&listeners);
        let again = Listeners::bind(&[Listen::Activated]).unwrap_err();
        assert!(matches!(again, ListenError::NotActivated), "{again}");
    }
}
