//! Who uses a device, found out by a forked process: there may be thousands of processes to look at,
//! and some of what the kernel tells about a process it tells only under a lock of that process.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nbd_control::Channel;
use nbd_device_users::{Finding, User};
use nix::sys::signal::Signal;

use super::Device;
use crate::system::{Process, fork_child, inherited, keep_only};

/// The descriptor under which the helper has its end of the channel.
const CHANNEL: i32 = 3;

/// A scan that goes on in a helper process.
#[derive(Debug)]
pub(crate) struct Scan {
    channel: Channel,
    users: Vec<User>,
    looking_at: Option<(i32, String)>,
    complete: bool,
}

/// Starts a scan. `ours` are processes that do not count. The helper's exit status is 0 or an errno.
pub(crate) fn scan(device: &Device, ours: &[i32]) -> io::Result<(Process, Scan)> {
    let (parent, child) = UnixStream::pair()?;
    let channel = Channel::new(parent).map_err(io::Error::other)?;
    let name = device.name();
    let helper = fork_child(|| match tell(&child, &name, ours) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().and_then(|it| u8::try_from(it).ok()).unwrap_or(5),
    })?;
    Ok((helper, Scan { channel, users: Vec::new(), looking_at: None, complete: false }))
}

fn tell(child: &UnixStream, device: &str, ours: &[i32]) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    nix::sys::prctl::set_name(&CString::new(format!("{device}-users"))?)?;
    keep_only(&[(child.as_fd(), CHANNEL)])?;
    let channel = Channel::new(inherited(CHANNEL)?.into()).map_err(io::Error::other)?;
    let mut sent = Ok(());
    nbd_device_users::scan(device, ours, |finding| {
        if sent.is_ok() {
            sent = channel.send(&finding, &[]);
        }
    });
    sent.map_err(io::Error::other)
}

/// Whether the kernel itself uses the device, whether it claims it or not. Of the processes nothing
/// is asked.
pub(crate) fn is_used_by_kernel(device: &Device) -> bool {
    !nbd_device_users::lasting_users(&device.name()).is_empty()
}

impl Scan {
    /// Takes what has been told so far, so that the helper never waits for room in the socket.
    pub(crate) fn take(&mut self) {
        // An end that came too early shows in `complete`.
        while let Ok(Some(received)) = self.channel.try_receive::<Finding>() {
            match received.message {
                Finding::User(user) => self.users.push(user),
                Finding::Process { pid, name } => self.looking_at = Some((pid, name)),
                Finding::Complete => self.complete = true,
            }
        }
    }

    /// The users, or what the scan waits for if it has found none and has not come to its end.
    pub(crate) fn result(mut self) -> Result<Vec<User>, String> {
        self.take();
        if self.complete || !self.users.is_empty() {
            return Ok(self.users);
        }
        Err(match self.looking_at {
            Some((pid, name)) => {
                format!("the kernel does not show the memory of {name} (pid {pid})")
            }
            None => "the search for its users has not ended".into(),
        })
    }
}
