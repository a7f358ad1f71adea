//! Playing the holder for a backend, so that its lanes can be measured without a kernel driver.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nbd_control::backend::HOLDER_FD;
use nbd_record::fake_holder::FakeHolder;

use crate::end::End;

/// A backend under a debugger or a simulator takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// A backend that serves lanes.
#[derive(Debug)]
pub struct Lanes {
    child: Child,
    _holder: FakeHolder,
    /// Size of its device.
    pub size: u64,
}

impl Lanes {
    /// Starts a backend and grants it lanes; returns the kernel's ends of them.
    ///
    /// # Errors
    ///
    /// `command` is empty, the program cannot be started, or does not say in time what it serves.
    pub fn start(command: &[String], count: usize) -> Result<(Self, Vec<End>), Box<dyn Error>> {
        if command.is_empty() {
            return Err("no backend is named behind --".into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        // A backend wants its holder beyond the standard streams; std hands nothing else on.
        let child = Command::new("sh")
            .args(["-c", "exec 3<&0 </dev/null; exec \"$@\"", "sh"])
            .args(command)
            .env(HOLDER_FD, "3")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        let mut holder = FakeHolder::accept(ours, Some(PATIENCE))?;
        let ends = holder.grant(u32::try_from(count)?, None)?;
        let size = holder.hello.export.size;
        Ok((Self { child, _holder: holder, size }, ends.into_iter().map(End::Unix).collect()))
    }

    /// The backend's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the backend has left, after its lanes were disconnected.
    ///
    /// # Errors
    ///
    /// The program cannot be waited for, or has failed.
    pub fn end(mut self) -> Result<(), Box<dyn Error>> {
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the backend failed: {status}").into()) }
    }
}
