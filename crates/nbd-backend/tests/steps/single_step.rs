//! A backend that goes through a fixture instruction by instruction, and a kernel that acts when
//! the backend calls the system.

use std::time::Instant;

use crate::device_fixture::DeviceFixture;
use crate::peer::waiting;
use crate::process::{DEADLINE, Process};
use crate::trace::{Stop, Tracer};

pub(crate) struct SingleStep {
    pub(crate) fixture: DeviceFixture,
    process: Process,
    tracer: Tracer,
    /// The thread sleeps inside `sendmmsg`.
    asleep: bool,
    /// The kernel reads before the thread goes on, or it would be stopped at the same place.
    hungry: bool,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// An instruction was executed and nothing of the next one. If it was a system call, that has
    /// stored all its results, and the program has not looked at them.
    Stepped { is_call: bool },
    /// The thread sleeps inside `sendmmsg`: the socket is full.
    Asleep,
    /// It has served to the end.
    End,
}

impl SingleStep {
    /// Starts a backend and stops it where it is about to map the ledger.
    pub(crate) fn start(fixture: DeviceFixture) -> Self {
        let (process, tracer) = Process::start_traced(&fixture);
        Self { fixture, process, tracer, asleep: false, hungry: false }
    }

    /// Executes the next instruction.
    pub(crate) fn step(&mut self) -> Event {
        self.feed();
        let call = self.tracer.next_call();
        if call == Some(libc::SYS_sendmmsg) {
            self.tracer.begin_step();
            return self.watch();
        }
        if call == Some(libc::SYS_recvmmsg) {
            self.offer();
        }
        match self.tracer.step(call.is_some()) {
            Stop::Barrier => Event::End,
            _ => Event::Stepped { is_call: call.is_some() },
        }
    }

    /// Executes everything up to the end of the next system call.
    pub(crate) fn leap(&mut self) -> Event {
        self.feed();
        let Some(call) = self.tracer.run_to_call() else { return Event::End };
        if call == libc::SYS_recvmmsg {
            self.offer();
        }
        self.tracer.begin_call();
        if call == libc::SYS_sendmmsg {
            return self.watch();
        }
        match self.tracer.wait() {
            Stop::Barrier => Event::End,
            _ => Event::Stepped { is_call: true },
        }
    }

    fn feed(&mut self) {
        assert!(!self.asleep, "a sleeper is woken first");
        if std::mem::take(&mut self.hungry) {
            self.fixture.peer.receive(&self.fixture.storage);
        }
    }

    /// The backend is about to wait for requests. It must not do so if none will come, as then
    /// one was lost.
    fn offer(&mut self) {
        self.fixture.peer.receive(&self.fixture.storage);
        if waiting(&self.fixture.lane).is_empty() && !self.fixture.peer.send() {
            let unanswered = self.fixture.peer.oracle.in_flight();
            panic!("the backend waits for requests, and {unanswered} are unanswered");
        }
    }

    /// Waits until `sendmmsg` has ended or sleeps.
    fn watch(&mut self) -> Event {
        let start = Instant::now();
        loop {
            self.asleep = false;
            match self.tracer.poll() {
                Some(Stop::Barrier) => return Event::End,
                Some(_) => return Event::Stepped { is_call: true },
                None => {}
            }
            if self.tracer.is_asleep() {
                self.asleep = true;
                return Event::Asleep;
            }
            std::thread::yield_now();
            assert!(start.elapsed() < DEADLINE, "the backend neither sends nor sleeps");
        }
    }

    /// The `turn`th sleeper is woken: every other one is interrupted, and for the rest the kernel
    /// reads until they sleep again or have sent everything.
    pub(crate) fn wake(&mut self, turn: u64) -> Event {
        assert!(self.asleep, "the backend does not sleep");
        if turn.is_multiple_of(2) {
            self.fixture.peer.receive(&self.fixture.storage);
            return self.watch();
        }
        // As for any signal, SIGKILL included, the system call returns with the count of the
        // bytes that it has sent.
        self.asleep = false;
        self.hungry = true;
        self.tracer.interrupt();
        Event::Stepped { is_call: true }
    }

    /// Kills the backend where it is.
    pub(crate) fn kill(mut self) -> DeviceFixture {
        self.process.kill();
        self.fixture
    }
}
