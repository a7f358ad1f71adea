//! What a service manager wants to hear (sd_notify). Nothing happens where there is none.

use std::process::Command;

use sd_notify::NotifyState;

/// What a service manager tells its service: where to report, and which sockets it passes.
const VARIABLES: [&str; 7] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
];

/// Keeps from the program that `command` starts what a service manager tells its service only. It would
/// speak for the service, or take any of its descriptors for a socket that was passed.
pub fn withhold(command: &mut Command) {
    for variable in VARIABLES {
        command.env_remove(variable);
    }
}

/// What this process is there for can be used. The status is for people.
pub fn ready(status: &str) {
    // The manager gives up on its own limit then; there is no other place to report to.
    let _ = sd_notify::notify(false, &[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It is being taken away.
pub fn stopping() {
    let _ = sd_notify::notify(false, &[NotifyState::Stopping]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_hear_nothing_of_a_service_manager() {
        let mut command = Command::new("/usr/bin/env");
        command.envs(VARIABLES.map(|name| (name, "1"))).env("LISTEN", "1");
        withhold(&mut command);
        let told = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let names = told.lines().filter_map(|line| line.split_once('='));
        let names: Vec<_> = names.map(|(name, _)| name).collect();
        assert!(names.contains(&"LISTEN"), "{told}");
        assert!(VARIABLES.iter().all(|name| !names.contains(name)), "{told}");
    }
}
