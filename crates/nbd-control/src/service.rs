//! What a service manager wants to hear (sd_notify). Nothing happens where there is none.

use sd_notify::NotifyState;

/// The variable that names the manager's socket; not for those whom we start.
pub const SOCKET: &str = "NOTIFY_SOCKET";

/// What this process is there for can be used. The status is for people.
pub fn ready(status: &str) {
    // The manager gives up on its own limit then; there is no other place to report to.
    let _ = sd_notify::notify(false, &[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It is being taken away.
pub fn stopping() {
    let _ = sd_notify::notify(false, &[NotifyState::Stopping]);
}
