//! One instruction, or one system call, at a time: ptrace on a thread of a child.

use std::collections::HashMap;
use std::time::Instant;

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::process::DEADLINE;

/// The two bytes of the instruction that calls the system.
const SYSCALL: libc::c_long = 0x050f;
/// The result, not visible to the program, of a system call that is about to be made again.
const ERESTARTSYS: i64 = -512;

/// Why a thread has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// After an instruction.
    Stepped,
    /// Before or after a system call.
    Call,
    /// By [`Tracer::interrupt`], after the system call that was interrupted.
    Interrupted,
    /// By itself.
    Barrier,
}

/// A thread that executes only what it is told to.
pub(crate) struct Tracer {
    thread: Pid,
    /// Whether the instruction at an address calls the system.
    calls: HashMap<u64, bool>,
    /// Where it was last.
    place: u64,
}

impl Tracer {
    /// The thread must not be its process's first one, which is the parent's to wait for.
    pub(crate) fn seize(thread: Pid) -> Self {
        let options = ptrace::Options::PTRACE_O_EXITKILL | ptrace::Options::PTRACE_O_TRACESYSGOOD;
        ptrace::seize(thread, options).expect(
            "one's own child may be traced (if not: a seccomp filter, or ptrace_scope is 3?)",
        );
        Self { thread, calls: HashMap::new(), place: 0 }
    }

    pub(crate) fn run_to_barrier(&mut self) {
        assert_eq!(self.wait(), Stop::Barrier, "a thread stopped without an interrupt");
    }

    /// The number of the system call that the next instruction makes, if it makes one.
    pub(crate) fn next_call(&mut self) -> Option<i64> {
        let registers = ptrace::getregs(self.thread).expect("a stopped thread has registers");
        self.place = registers.rip;
        if registers.rax.cast_signed() == ERESTARTSYS {
            return Some(registers.orig_rax.cast_signed());
        }
        let thread = self.thread;
        let is_call = *self.calls.entry(registers.rip).or_insert_with(|| {
            let word = ptrace::read(thread, registers.rip as ptrace::AddressType);
            word.expect("code can be read") & 0xffff == SYSCALL
        });
        is_call.then_some(registers.rax.cast_signed())
    }

    /// Executes an instruction that waits for nothing of ours.
    pub(crate) fn step(&mut self, is_call: bool) -> Stop {
        self.begin_step();
        if is_call {
            return self.wait();
        }
        // It ends by itself, so this wait needs no limit.
        loop {
            if let Some(stop) = self.stopped(WaitPidFlag::__WALL) {
                return stop;
            }
        }
    }

    /// Lets the thread execute one instruction, which may take its time.
    pub(crate) fn begin_step(&mut self) {
        ptrace::step(self.thread, None).expect("a stopped thread can go on");
    }

    /// Runs to where the thread calls the system; returns the call's number, or none at a barrier.
    pub(crate) fn run_to_call(&mut self) -> Option<i64> {
        loop {
            self.begin_call();
            match self.wait() {
                Stop::Call => break,
                Stop::Barrier => return None,
                // Both stops of an interrupted call are reported.
                Stop::Interrupted | Stop::Stepped => {}
            }
        }
        let registers = ptrace::getregs(self.thread).expect("a stopped thread has registers");
        self.place = registers.rip;
        Some(registers.orig_rax.cast_signed())
    }

    /// Lets the thread go on to the next begin or end of a system call.
    pub(crate) fn begin_call(&mut self) {
        ptrace::syscall(self.thread, None).expect("a stopped thread can go on");
    }

    /// Whether it has stopped.
    pub(crate) fn poll(&mut self) -> Option<Stop> {
        self.stopped(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG)
    }

    fn stopped(&self, flags: WaitPidFlag) -> Option<Stop> {
        match waitpid(self.thread, Some(flags)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => None,
            Ok(WaitStatus::Stopped(_, Signal::SIGTRAP)) => Some(Stop::Stepped),
            Ok(WaitStatus::PtraceSyscall(_)) => Some(Stop::Call),
            Ok(WaitStatus::PtraceEvent(..)) => Some(Stop::Interrupted),
            Ok(WaitStatus::Stopped(_, Signal::SIGSTOP)) => Some(Stop::Barrier),
            other => panic!("the backend failed at {:#x}: {other:?}", self.place),
        }
    }

    pub(crate) fn wait(&mut self) -> Stop {
        let start = Instant::now();
        loop {
            if let Some(stop) = self.poll() {
                return stop;
            }
            // Both share a processor, see `pin`.
            std::thread::yield_now();
            assert!(start.elapsed() < DEADLINE, "the backend waits at {:#x}", self.place);
        }
    }

    /// Whether it sleeps in a system call.
    pub(crate) fn is_asleep(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.thread));
        let stat = stat.expect("a thread that lives");
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    }

    /// Ends the system call that it sleeps in, as a signal would.
    pub(crate) fn interrupt(&mut self) -> Stop {
        ptrace::interrupt(self.thread).expect("a traced thread can be interrupted");
        self.wait()
    }
}

/// After the death of a traced thread's process: before this, the process is not gone entirely.
pub(crate) fn reap(thread: Pid) {
    while let Ok(_) | Err(Errno::EINTR) = waitpid(thread, Some(WaitPidFlag::__WALL)) {}
}

/// Binds this thread and its children to one processor: a step costs two changes between the two,
/// and a third of the time when no other processor has to be woken for them.
pub(crate) fn pin(turn: usize) {
    let this = Pid::from_raw(0);
    let Ok(allowed) = sched_getaffinity(this) else { return };
    let allowed: Vec<_> =
        (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu) == Ok(true)).collect();
    let mut one = CpuSet::new();
    if let Some(&cpu) = allowed.get(turn % allowed.len().max(1)) {
        // A favour that may be denied.
        let _ = one.set(cpu).and_then(|()| sched_setaffinity(this, &one));
    }
}
