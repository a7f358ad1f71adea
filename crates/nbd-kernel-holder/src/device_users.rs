//! Whether anything uses the device: what a detach or a smaller size would pull away from it.

use std::time::{Duration, Instant};

use nbd_control::control::{Failure, FailureKind};
use nbd_device_users::User;

use crate::holder::Holder;
use crate::kernel::device_users::{self, Scan};
use crate::kernel::errand::Errand;

/// How long a passing user, like udev, may keep a device open.
const PASSING_TIMEOUT: Duration = Duration::from_secs(1);
const PASSING_INTERVAL: Duration = Duration::from_millis(50);
/// How long looking at all processes may take.
pub(crate) const SCAN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often what has been found is taken from the helper.
pub(crate) const SCAN_INTERVAL: Duration = Duration::from_millis(20);

impl Holder {
    /// Fails if the device is used; `loss` is what that means for its users, if it needs saying. A
    /// detach by force ends the search, and then nothing is known.
    pub(crate) fn check_unused(&mut self, loss: &str, command: &str) -> Result<(), Failure> {
        let deadline = Instant::now() + PASSING_TIMEOUT;
        loop {
            let users = self.find_users(command)?;
            if users.is_empty() || self.is_forced() {
                return Ok(());
            }
            if users.iter().any(|user| !user.may_pass) || Instant::now() >= deadline {
                let text = refusal(&self.device.name(), &users, loss, command);
                return Err(Failure::new(FailureKind::Busy, text));
            }
            self.pump_until(Some(PASSING_INTERVAL), None, Self::is_forced);
        }
    }

    fn find_users(&mut self, command: &str) -> Result<Vec<User>, Failure> {
        let name = self.device.name();
        let unknown = |kind, why: String| {
            let text = format!(
                "{name}: cannot tell whether it is used: {why}; `nbd-ctl {command} --force {name}` does not ask"
            );
            Failure::new(kind, text)
        };
        let scan = self
            .scan_users(SCAN_TIMEOUT, Self::is_forced)
            .map_err(|error| unknown(FailureKind::Other, format!("no helper process: {error}")))?;
        if self.is_forced() { Ok(Vec::new()) } else { users_of(scan, unknown) }
    }

    /// What still uses a device that is gone; as far as that can be told within `limit`.
    pub(crate) fn remaining_users(&mut self, limit: Duration) -> Vec<User> {
        let scan = self.scan_users(limit, |_| false);
        scan.ok().and_then(|scan| scan.result().ok()).unwrap_or_default()
    }

    fn scan_users(
        &mut self,
        limit: Duration,
        mut is_over: impl FnMut(&Self) -> bool,
    ) -> std::io::Result<Scan> {
        let sitter = self.sitter.as_ref().map(|sitter| &sitter.process);
        // Helpers that are done and still have it open, among others.
        let helpers = self.orphans.iter().chain(sitter).map(|process| process.pid.as_raw());
        let ours: Vec<i32> = helpers.chain([nix::unistd::getpid().as_raw()]).collect();
        let (helper, mut scan) = device_users::scan(&self.device, &ours)?;
        self.errand_report = None;
        self.errand = Some(Errand::program(helper));
        self.pump_until(Some(limit), Some(SCAN_INTERVAL), |holder| {
            scan.take();
            holder.errand_report.is_some() || is_over(holder)
        });
        // A helper that is late has nothing more to tell.
        self.leave_errand();
        self.errand_report = None;
        Ok(scan)
    }
}

fn users_of(
    scan: Scan,
    unknown: impl Fn(FailureKind, String) -> Failure,
) -> Result<Vec<User>, Failure> {
    scan.result().map_err(|why| unknown(FailureKind::TimedOut, why))
}

pub(crate) fn refusal(name: &str, users: &[User], loss: &str, command: &str) -> String {
    let loss = if loss.is_empty() { String::new() } else { format!(" and {loss}") };
    let (words, ways) = words_for(users);
    format!(
        "{name} is {words}{loss}: end that first{ways}, or use `nbd-ctl {command} --force {name}`"
    )
}

/// Who uses it, and in parentheses what ends that, if commands do.
pub(crate) fn words_for(users: &[User]) -> (String, String) {
    let words: Vec<&str> = users.iter().map(|user| user.what.as_str()).collect();
    let ways: Vec<&str> = users.iter().filter_map(|user| user.ends_with.as_deref()).collect();
    let ways = if ways.is_empty() { String::new() } else { format!(" (`{}`)", ways.join("; ")) };
    match words.is_empty() {
        // Another mount namespace than all that are seen, or something new in the kernel.
        true => ("in use by something that /proc does not show".into(), ways),
        false => (words.join(" and "), ways),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(what: &str, ends_with: Option<&str>) -> User {
        User { what: what.into(), ends_with: ends_with.map(str::to_owned), may_pass: false }
    }

    #[test]
    fn a_refusal_names_every_user_and_what_ends_it() {
        let users = [
            user("mounted on /m by way of loop0", Some("umount /m")),
            user("the backing device of the loop device loop0", Some("losetup -d /dev/loop0")),
        ];
        assert_eq!(
            refusal("nbd0", &users, "", "detach"),
            "nbd0 is mounted on /m by way of loop0 and the backing device of the loop device loop0: \
             end that first (`umount /m; losetup -d /dev/loop0`), or use `nbd-ctl detach --force nbd0`"
        );
        assert_eq!(
            refusal("nbd1", &[user("opened by dd (pid 7)", None)], "it would lose data", "resize"),
            "nbd1 is opened by dd (pid 7) and it would lose data: end that first, or use `nbd-ctl \
             resize --force nbd1`"
        );
    }
}
