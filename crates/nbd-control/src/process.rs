//! Naming a process for longer than it lives.

use std::io;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};
use serde::{Deserialize, Serialize};

/// A process, told from a later one with the same pid by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The pid.
    pub pid: i32,
    /// Field `starttime` of /proc/PID/stat.
    pub start_time: u64,
}

/// How long after boot a process was started, to a clock tick.
#[must_use]
pub fn started(pid: i32) -> Option<Duration> {
    let ticks_per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten()?.cast_unsigned();
    let ticks = stat(pid)?.start_time;
    Some(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
}

/// Whether a process runs with a user's id, be it the real, the effective or the saved one.
#[must_use]
pub fn has_user(pid: i32, uid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    ids.split_ascii_whitespace().any(|id| id.parse() == Ok(uid))
}

/// The parts of /proc/PID/stat that we use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The state letter.
    pub state: char,
    /// Start time, in clock ticks since boot.
    pub start_time: u64,
}

impl ProcessId {
    /// Names the process that has this pid now.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|stat| Self { pid, start_time: stat.start_time })
    }

    /// Names the process that has this pid now, if there is one.
    ///
    /// # Errors
    ///
    /// It cannot be told: there are no descriptors or no memory left to read /proc.
    pub fn read(pid: i32) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(text) => Ok(parse_stat(&text).map(|stat| Self { pid, start_time: stat.start_time })),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether this very process still runs (a zombie does not).
    #[must_use]
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|stat| {
            stat.start_time == self.start_time && !matches!(stat.state, 'Z' | 'X' | 'x')
        })
    }
}

/// Reads /proc/PID/stat.
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&text)
}

/// The name in parentheses may contain anything, parentheses included.
fn parse_stat(text: &str) -> Option<Stat> {
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3 and the start time field 22.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some(Stat { state, start_time })
}

/// The process that traces `pid`, if any.
#[must_use]
pub fn tracer(pid: i32) -> Option<i32> {
    related(&format!("/proc/{pid}/status"), "TracerPid:")
}

/// The parent of `pid`.
#[must_use]
pub fn parent(pid: i32) -> Option<i32> {
    related(&format!("/proc/{pid}/status"), "PPid:")
}

/// Whether any thread of `pid` is traced. A tracer keeps a dead thread until it takes note of it.
#[must_use]
pub fn is_traced(pid: i32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut status = tasks.map(|task| task.path().join("status"));
    status.any(|path| path.to_str().is_some_and(|path| related(path, "TracerPid:").is_some()))
}

/// How a process ended that is dead and not reaped, as waitpid(2) would tell its parent.
#[must_use]
pub fn exit_code(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields = text.rsplit_once(')')?.1;
    let mut fields = fields.split_ascii_whitespace();
    // The state is field 3 and the exit code field 52.
    fields.next().filter(|state| *state == "Z")?;
    fields.nth(48)?.parse().ok()
}

fn related(status: &str, field: &str) -> Option<i32> {
    let status = std::fs::read_to_string(status).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().parse().ok().filter(|&pid| pid != 0)
}

/// Whether no thread of `pid` can run any more: each is a zombie or gone. Unlike a readable
/// pidfd this also holds for a killed process that a stopped debugger has not let go of.
///
/// What cannot be read for want of descriptors or memory counts as alive: whatever follows from a death
/// waits until it is certain.
#[must_use]
pub fn is_dead(pid: i32) -> bool {
    let tasks = match std::fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks,
        Err(error) => return is_gone(&error),
    };
    let mut tasks = tasks.map(|task| task.map(|task| task.path().join("stat")));
    tasks.all(|path| match path.and_then(std::fs::read_to_string) {
        Ok(text) => parse_stat(&text).is_some_and(|stat| matches!(stat.state, 'Z' | 'X' | 'x')),
        Err(error) => is_gone(&error),
    })
}

/// Whether an error of /proc says that a process or thread is not there any more.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(ESRCH)
}

/// `ESRCH` of Linux: /proc answers with it where the process ends while it is read.
const ESRCH: i32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_age_of_a_process_are_known() {
        let pid = std::process::id().cast_signed();
        assert!(has_user(pid, nix::unistd::geteuid().as_raw()) && !has_user(pid, 4_000_000_000));
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
        assert!(started(pid).unwrap().as_secs_f64() <= uptime + 0.02);
        assert!(started(pid).unwrap() >= started(1).unwrap());
        assert_eq!((started(-1), has_user(-1, 0)), (None, false));
    }

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_parser() {
        let text = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 1 2";
        assert_eq!(parse_stat(text), Some(Stat { state: 'S', start_time: 4242 }));
        assert_eq!(parse_stat("7 (x"), None);
        assert_eq!(parse_stat("7 (x) S 1"), None);
    }

    #[test]
    fn the_end_of_a_dead_child_can_be_read_before_it_is_reaped() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        let pid = child.id().cast_signed();
        while stat(pid).unwrap().state != 'Z' {
            std::thread::yield_now();
        }
        assert_eq!(exit_code(pid), Some(7 << 8));
        assert_eq!(parent(pid), Some(std::process::id().cast_signed()));
        assert!(!is_traced(pid));
        child.wait().unwrap();
        assert_eq!(exit_code(std::process::id().cast_signed()), None);
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_another_process() {
        let me = ProcessId::of(std::process::id() as i32).unwrap();
        assert!(me.is_alive());
        assert!(!is_dead(me.pid));
        assert!(!ProcessId { start_time: me.start_time + 1, ..me }.is_alive());
    }
}
