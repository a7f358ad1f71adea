//! Connections with peers that are not trusted. They cannot make this process wait, neither by leaving unread
//! what they are sent, nor by what they have sent and this process has not read.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nbd_control::{Channel, ChannelError};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};

use crate::system::{Process, fork_child, inherited, keep_only};

/// Where the child that closes a connection has it, and the pipe that ends when its parent has closed it.
const CLOSED: RawFd = 3;
const GONE: RawFd = 4;

/// A conversation in which the peer may send no descriptors, unless it is allowed some.
pub(crate) fn guard(stream: UnixStream) -> Result<Channel, ChannelError> {
    limit(Channel::new(stream)?)
}

/// The same with a peer that has introduced itself to another program of this process.
pub(crate) fn guard_resumed(stream: UnixStream) -> Result<Channel, ChannelError> {
    limit(Channel::resume(stream))
}

fn limit(mut channel: Channel) -> Result<Channel, ChannelError> {
    channel.never_wait()?;
    channel.set_max_descriptors(0);
    Ok(channel)
}

/// Sees to it that closing what was received does not take as long as a peer likes (`SO_LINGER`).
pub(crate) fn allow_close(descriptors: &[OwnedFd]) {
    let off = libc::linger { l_onoff: 0, l_linger: 0 };
    for descriptor in descriptors {
        // What is no socket does not linger.
        let _ = setsockopt(descriptor, sockopt::Linger, &off);
    }
}

/// Closes a connection. If unread descriptors are left, a child process does it, which is returned: the last one to
/// let go of a descriptor that is under way to us closes what it stands for, and to close a TCP socket that
/// lingers (`SO_LINGER`) takes as long as its peer likes, unless the process is exiting.
pub(crate) fn close(mut channel: Channel) -> io::Result<Option<Process>> {
    // Also for those that were not let in, and so not guarded.
    channel.never_wait().map_err(io::Error::other)?;
    // From now on nothing comes in any more.
    match shutdown(channel.as_fd().as_raw_fd(), Shutdown::Read) {
        Ok(()) | Err(nix::Error::ENOTCONN) => {}
        Err(errno) => return Err(errno.into()),
    }
    let is_empty = channel.drop_unread();
    let (stream, descriptors) = channel.into_parts();
    allow_close(&descriptors);
    if is_empty {
        return Ok(None);
    }
    let (gone, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let closer = fork_child(|| {
        let kept = keep_only(&[(stream.as_fd(), CLOSED), (gone.as_fd(), GONE)]);
        // Until our parent has closed its copy, so that ours is the last one.
        let gone = kept.and_then(|()| inherited(GONE));
        let waited = gone.and_then(|gone| Ok(nix::unistd::read(gone, &mut [0])?));
        u8::from(waited.is_err())
    })?;
    drop(stream);
    drop(ours);
    Ok(Some(closer))
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::sync::mpsc;
    use std::time::Duration;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    /// Longer than it takes to close something that does not linger, and shorter than what does.
    const CLOSE_TIMEOUT: Duration = Duration::from_secs(60);

    /// A socket that is closed only when its peer reads, which it does not.
    fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = listener.accept().unwrap().0;
        socket.set_nonblocking(true).unwrap();
        while socket.write(&[0; 65536]).is_ok() {}
        let linger = libc::linger { l_onoff: 1, l_linger: 3600 };
        setsockopt(&socket, sockopt::Linger, &linger).unwrap();
        (socket, peer)
    }

    #[test]
    fn a_socket_that_lingers_on_its_way_to_us_does_not_make_us_wait() {
        let (socket, _peer) = lingering();
        let (theirs, ours) = UnixStream::pair().unwrap();
        let channel = guard(ours).unwrap();
        let rights = [socket.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&rights)];
        let bytes = [IoSlice::new(b"nbd-hold\x01\0\0\0")];
        sendmsg::<()>(theirs.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None).unwrap();
        let mut channel = channel;
        assert!(channel.try_receive::<u32>().is_err());
        // Now the message has the last one.
        drop(socket);
        let (done, closed) = mpsc::channel();
        std::thread::spawn(move || done.send(close(channel).map(|it| it.is_some())));
        let closer = closed.recv_timeout(CLOSE_TIMEOUT).expect("a close that does not linger");
        assert!(closer.unwrap(), "what was unread is closed by a child process");
    }

    #[test]
    fn a_connection_without_descriptors_needs_no_other_process() {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        theirs.write_all(&[0; 50_000]).unwrap();
        assert!(close(guard(ours).unwrap()).unwrap().is_none());
    }
}
