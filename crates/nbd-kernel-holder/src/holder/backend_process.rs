//! Processes that serve the lanes or want to.

use nbd_control::Channel;
use nbd_control::backend::{ExportInfo, Hello};
use nbd_control::channel::Sender;
use nbd_control::process;
use nbd_control::system_error::explain;
use nix::sys::wait::WaitStatus;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::io;
use std::time::{Duration, Instant};

use super::program::BuildId;
use crate::ending::{Ending, try_reap};
use crate::system::Process;

/// How long the last threads of a dead process may be on their way out before its end is told without
/// being known.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection of a backend, and the process behind it.
#[derive(Debug)]
pub(crate) struct BackendProcess {
    pub(crate) channel: Option<Channel>,
    /// When the channel was closed: its process is probably dying.
    pub(crate) closed_at: Option<Instant>,
    /// The program that we started for it and have not reaped.
    pub(crate) child: Option<Process>,
    /// The process that introduced itself, as the kernel named it.
    pub(crate) process: Option<Process>,
    pub(crate) hello: Option<Hello>,
    pub(crate) death: Death,
    /// What it said before it failed.
    pub(crate) last_words: Option<String>,
    pub(crate) since: Instant,
    /// Why its channel was closed.
    pub(crate) close_reason: Option<String>,
    /// Which build of its program it is.
    pub(crate) build: Option<BuildId>,
    /// It is ours, and answers every request with EIO.
    pub(crate) answers_eio: bool,
    /// Since boot, if it came from outside.
    pub(crate) connected: Option<Duration>,
    /// How many requests it has given up.
    pub(crate) poisoned: u32,
}

/// What is known of its end.
#[derive(Debug, Default)]
pub(crate) struct Death {
    pub(crate) ending: Option<Ending>,
    /// When no thread of it could run any more, but its end was not known yet.
    pub(crate) since: Option<Instant>,
    /// A look has found no thread of it alive, before the pidfd said so.
    pub(crate) is_seen: bool,
}

impl BackendProcess {
    pub(crate) fn new(channel: Option<Channel>, child: Option<Process>) -> Self {
        Self {
            channel,
            closed_at: None,
            child,
            process: None,
            hello: None,
            death: Death::default(),
            last_words: None,
            since: Instant::now(),
            close_reason: None,
            build: None,
            answers_eio: false,
            connected: None,
            poisoned: 0,
        }
    }

    /// A process from outside that has connected.
    pub(crate) fn joined(channel: Channel) -> Self {
        let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from);
        Self { connected: Some(now.unwrap_or_default()), ..Self::new(Some(channel), None) }
    }

    /// The process that has sent what came last.
    ///
    /// Kernels before 6.5 tell its number only, which may be another's when it is opened here: one of another user,
    /// or one that is younger than the connection. A child of ours that is not reaped keeps its number.
    pub(crate) fn open_sender(&self, sender: &Sender) -> Result<Process, String> {
        let (pid, uid) = (sender.credentials.pid(), sender.credentials.uid());
        let failed = |error: io::Error| format!("process {pid}: {}", explain(&error));
        if let Some(pidfd) = &sender.process {
            let pidfd = pidfd.try_clone().map_err(failed)?;
            return Ok(Process { pid: Pid::from_raw(pid), pidfd });
        }
        let process = Process::open(pid).map_err(failed)?;
        let is_child = self.child.as_ref().is_some_and(|child| child.pid == process.pid);
        let is_old_enough = self.connected.is_none_or(|connected| {
            process::started(pid).is_some_and(|started| started <= connected)
        });
        let is_same = is_child || (process::has_user(pid, uid) && is_old_enough);
        is_same.then_some(process).ok_or(format!(
            "process {pid} is another one than the one that spoke: start the backend again"
        ))
    }

    pub(crate) fn pid(&self) -> Option<i32> {
        self.process.as_ref().or(self.child.as_ref()).map(|process| process.pid.as_raw())
    }

    pub(crate) fn description(&self) -> String {
        self.hello.as_ref().map(|hello| hello.description.clone()).unwrap_or_default()
    }

    /// Whether no thread of the serving process can run any more.
    pub(crate) fn is_dead(&self) -> bool {
        self.process.as_ref().is_none_or(|process| process::is_dead(process.pid.as_raw()))
    }

    /// How the process ended, which is dead; nothing if that will be known in a moment, when its pidfd
    /// becomes readable.
    ///
    /// The leader of a killed process is a zombie before its other threads are gone, which may take a while
    /// longer on other processors. Until then waitpid(2) has nothing, and pidfds are not readable
    /// (`thread_group_empty` in the kernel's exit.c decides both).
    pub(crate) fn end(&mut self) -> Option<Ending> {
        self.reap();
        if let Some(ending) = &self.death.ending {
            return Some(ending.clone());
        }
        let Some(process) = self.process.as_ref().or(self.child.as_ref()) else {
            return Some(Ending::Unknown);
        };
        let pid = process.pid.as_raw();
        // A zombie tells how it ended, also one that a debugger keeps for as long as it likes.
        let told = process::exit_code(pid);
        let told = told.and_then(|code| Ending::of(WaitStatus::from_raw(process.pid, code)));
        let kept = process.has_ended() || process::is_traced(pid);
        let since = *self.death.since.get_or_insert_with(Instant::now);
        if told.is_none() && self.is_own_child() && !kept && since.elapsed() < EXIT_TIMEOUT {
            return None;
        }
        Some(told.unwrap_or(Ending::Unknown))
    }

    /// Whether the process that serves is the one that we have started, and not reaped.
    pub(crate) fn is_own_child(&self) -> bool {
        let child = self.child.as_ref().map(|child| child.pid);
        child.is_some() && self.process.as_ref().is_none_or(|process| Some(process.pid) == child)
    }

    /// Collects the exit status of the program, if it has ended.
    pub(crate) fn reap(&mut self) {
        if let Some(ending) = self.child.as_ref().and_then(|child| try_reap(child.pid)) {
            self.death.ending = Some(ending);
            self.child = None;
        }
    }

    /// Its processes, each once.
    pub(crate) fn into_processes(self) -> impl Iterator<Item = Process> {
        let child = self.child.as_ref().map(|child| child.pid);
        let process = self.process.filter(|process| Some(process.pid) != child);
        self.child.into_iter().chain(process)
    }

    pub(crate) fn kill(&self) {
        for process in [&self.process, &self.child].into_iter().flatten() {
            let _ = process.kill();
        }
    }
}

/// Whether the kernel can make a device of what a backend offers; the error says why not.
pub(crate) fn check_export(export: &ExportInfo) -> Result<(), String> {
    let block = export.block_size;
    if !block.is_power_of_two() || !(512..=4096).contains(&block) {
        return Err(format!("a block size of {block} bytes: use a power of two from 512 to 4096"));
    }
    if export.size == 0 || !export.size.is_multiple_of(block.into()) {
        let size = export.size;
        return Err(format!("a size of {size} bytes: use a positive multiple of {block}"));
    }
    if i64::try_from(export.size).is_err() {
        return Err(format!("a size of {} bytes: the kernel takes less than 8 EiB", export.size));
    }
    if export.flags & nbd_proto::TransmissionFlags::HAS_FLAGS.bits() == 0 {
        return Err("transmission flags without NBD_FLAG_HAS_FLAGS".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;
    use nix::sys::wait::{WaitPidFlag, waitpid};

    use super::*;

    /// A process with two threads, and the one that is not its leader.
    #[expect(clippy::zombie_processes, reason = "the backend reaps it, which is what is tested")]
    fn pair() -> (BackendProcess, Pid) {
        let script = "import threading, time\n\
                      threading.Thread(target=time.sleep, args=(600,)).start()\n\
                      print('ready', flush=True)\n\
                      time.sleep(600)";
        let mut child = std::process::Command::new("python3")
            .args(["-c", script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        let pid = child.id().cast_signed();
        let mut backend = BackendProcess::new(None, Some(Process::open(pid).unwrap()));
        backend.process = Some(Process::open(pid).unwrap());
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let mut threads = threads.map(|thread| thread.file_name().to_str().unwrap().parse());
        let other = threads.find_map(|id| id.ok().filter(|id| *id != pid)).unwrap();
        (backend, Pid::from_raw(other))
    }

    /// What a kernel before 6.5 tells of a sender.
    fn number_only(pid: i32, uid: u32) -> Sender {
        Sender { credentials: libc::ucred { pid, uid, gid: 0 }.into(), process: None }
    }

    #[test]
    fn a_process_that_has_the_number_of_the_sender_is_not_taken_for_it() {
        let me = std::process::id().cast_signed();
        let uid = nix::unistd::geteuid().as_raw();
        let backend = BackendProcess::new(None, None);
        assert_eq!(backend.open_sender(&number_only(me, uid)).unwrap().pid.as_raw(), me);
        let other_user = backend.open_sender(&number_only(me, 4_000_000_000));
        assert!(other_user.unwrap_err().contains("another one than the one that spoke"));
        // One that is younger than the connection on which it is said to have spoken.
        let joined = |connected| BackendProcess {
            connected: Some(connected),
            ..BackendProcess::new(None, None)
        };
        let started = process::started(me).unwrap();
        assert!(
            joined(started + Duration::from_secs(1)).open_sender(&number_only(me, uid)).is_ok()
        );
        let too_young = joined(started - Duration::from_millis(10));
        assert!(too_young.open_sender(&number_only(me, uid)).is_err());
    }

    #[test]
    fn the_process_that_the_kernel_hands_out_is_taken_even_if_another_has_its_number() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::open(child.id().cast_signed()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let sender = Sender { process: Some(process.pidfd), ..number_only(1, 0) };
        let taken = BackendProcess::new(None, None).open_sender(&sender).unwrap();
        assert!(taken.kill().is_err(), "it is dead, and no other process is hit");
    }

    /// A tracer keeps a thread when it is dead, so the leader stays a zombie that cannot be
    /// waited for: what else lasts for a moment, while threads exit on other processors.
    #[test]
    fn the_signal_of_a_killed_child_is_known_before_all_its_threads_are_gone() {
        let (mut backend, thread) = pair();
        nix::sys::ptrace::seize(thread, nix::sys::ptrace::Options::empty()).unwrap();
        backend.process.as_ref().unwrap().kill().unwrap();
        while !backend.is_dead() {
            std::thread::yield_now();
        }
        assert!(!backend.process.as_ref().unwrap().has_ended() && backend.child.is_some());
        assert_eq!(backend.end(), Some(Ending::Killed(Signal::SIGKILL, false)));
        assert!(backend.child.is_some(), "it is not reaped");
        waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
        while !backend.process.as_ref().unwrap().has_ended() {
            std::thread::yield_now();
        }
        assert_eq!(backend.end(), Some(Ending::Killed(Signal::SIGKILL, false)));
        assert!(backend.child.is_none(), "it is reaped");
    }

    #[test]
    fn the_end_of_a_process_that_is_kept_from_us_is_unknown_and_no_crash() {
        let mut backend = BackendProcess::new(None, None);
        assert_eq!(backend.end(), Some(Ending::Unknown));
        assert!(!Ending::Unknown.is_crash());
    }

    #[test]
    fn exports_that_the_kernel_cannot_take_are_refused() {
        let good = ExportInfo { size: 1 << 20, block_size: 512, flags: 1 };
        assert_eq!(check_export(&good), Ok(()));
        for bad in [
            ExportInfo { size: 0, ..good },
            ExportInfo { size: 513, ..good },
            ExportInfo { size: 1 << 63, ..good },
            ExportInfo { block_size: 0, ..good },
            ExportInfo { block_size: 256, ..good },
            ExportInfo { block_size: 8192, ..good },
            ExportInfo { block_size: 1000, size: 1000, ..good },
            ExportInfo { flags: 0, ..good },
        ] {
            assert!(check_export(&bad).is_err(), "{bad:?}");
        }
    }
}
