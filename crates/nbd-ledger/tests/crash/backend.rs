//! The process that is killed: the smallest backend that one can write with this crate.

use std::error::Error;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nbd_ledger::receive::{TakeOutcome, Ticket};
use nbd_ledger::{Answer, Ledger, Receiver, RecvOutcome, Transmitter, arm_crash_point};
use nbd_proto::{CommandType, NbdError};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::script::{DEVICE, LAYOUT};

/// Set for the child only: how it answers and where it dies, as [`Orders`] prints them.
pub(crate) const ORDERS: &str = "NBD_LEDGER_TEST_ORDERS";
pub(crate) const LEDGER: &str = "NBD_LEDGER_TEST_LEDGER";
pub(crate) const STORAGE: &str = "NBD_LEDGER_TEST_STORAGE";
/// Before the number of crash points that a child passed, on its stdout.
pub(crate) const PASSED: &str = "crash points passed: ";

/// In which order a backend answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// One by one, as they came.
    AsReceived,
    /// All that came together in one transmission, the last first.
    Reversed,
    /// The last first, and the oldest only when there is nothing else to do.
    OldestLast,
}

/// What a child is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orders {
    pub(crate) order: Order,
    pub(crate) crash_at: u64,
}

impl Orders {
    pub(crate) fn print(self) -> String {
        format!("{} {}", self.order as u8, self.crash_at)
    }

    fn parse(text: &str) -> Option<Self> {
        let (order, crash_at) = text.split_once(' ')?;
        let known = [Order::AsReceived, Order::Reversed, Order::OldestLast];
        let order = known.into_iter().nth(order.parse().ok()?)?;
        let crash_at = crash_at.parse().ok()?;
        Some(Self { order, crash_at })
    }
}

struct Backend {
    receiver: Receiver,
    transmitter: Transmitter,
    storage: File,
    order: Order,
    waiting: Vec<Ticket>,
}

/// Serves the lane that is this process's stdin until the kernel side disconnects.
pub(crate) fn serve(orders: &str) -> Result<(), Box<dyn Error>> {
    // If the parent dies, only this alarm ends the process.
    nix::unistd::alarm::set(60);
    let orders = Orders::parse(orders).ok_or("orders that cannot be parsed")?;
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let ledger = Ledger::open(inherited(LEDGER)?, &LAYOUT)?;
    let storage = inherited(STORAGE)?.into();
    arm_crash_point(orders.crash_at);
    let (receiver, mut transmitter, recovery) = ledger.open_lane(0, socket)?;
    transmitter.finish()?;
    Backend { receiver, transmitter, storage, order: orders.order, waiting: recovery.tickets }
        .run()?;
    println!("\n{PASSED}{}", nbd_ledger::crash_points_passed());
    Ok(())
}

/// Opens a memfd of the parent's through /proc: nothing is leaked to children of other threads.
fn inherited(variable: &str) -> Result<OwnedFd, Box<dyn Error>> {
    let path = std::env::var_os(variable).ok_or(variable)?;
    let file = File::options().read(true).write(true).open(Path::new(&path))?;
    Ok(file.into())
}

impl Backend {
    fn run(mut self) -> Result<(), Box<dyn Error>> {
        loop {
            let outcome = self.receiver.take(now(), &mut self.waiting)?;
            let busy =
                outcome == TakeOutcome::AllTaken && self.receiver.has_space() && self.more(0)?;
            let keep = usize::from(self.order == Order::OldestLast && busy);
            self.answer(keep)?;
            match outcome {
                TakeOutcome::AllTaken => {}
                TakeOutcome::NoFreeSlot => continue,
                TakeOutcome::Disconnect => return Ok(()),
            }
            assert!(self.more(30_000)?, "the kernel side is silent");
            if self.receiver.receive()? == RecvOutcome::Closed {
                return Err("closed without disconnecting".into());
            }
        }
    }

    /// Whether there is something to receive within some milliseconds.
    fn more(&self, timeout_ms: u16) -> nix::Result<bool> {
        let socket = PollFd::new(self.receiver.lane().socket(), PollFlags::POLLIN);
        Ok(poll(&mut [socket], PollTimeout::from(timeout_ms))? > 0)
    }

    /// Answers all but the `keep` oldest requests.
    fn answer(&mut self, keep: usize) -> Result<(), Box<dyn Error>> {
        if self.waiting.len() <= keep {
            return Ok(());
        }
        let mut tickets = self.waiting.split_off(keep);
        if self.order != Order::AsReceived {
            tickets.reverse();
        }
        for ticket in tickets {
            ticket.begin(now());
            if !self.transmitter.fits(LAYOUT.max_payload) {
                self.transmitter.send()?;
            }
            self.execute(ticket)?;
            if self.order == Order::AsReceived {
                self.transmitter.send()?;
            }
        }
        Ok(self.transmitter.send()?)
    }

    fn execute(&mut self, ticket: Ticket) -> std::io::Result<()> {
        let request = *ticket.request();
        let inside = request.offset + u64::from(request.length) <= DEVICE;
        let valid = inside && request.length <= LAYOUT.max_payload;
        let answer = match request.command {
            _ if !valid => Answer::Error(NbdError::EINVAL),
            CommandType::READ => {
                let data = self.transmitter.room_for_data(request.length);
                self.storage.read_exact_at(data, request.offset)?;
                Answer::DataInPlace
            }
            CommandType::WRITE => {
                self.storage.write_all_at(ticket.payload(), request.offset)?;
                Answer::Done
            }
            CommandType::TRIM | CommandType::WRITE_ZEROES => {
                let zeroes = vec![0; request.length as usize];
                self.storage.write_all_at(&zeroes, request.offset)?;
                Answer::Done
            }
            CommandType::FLUSH => Answer::Done,
            _ => Answer::Error(NbdError::EINVAL),
        };
        self.transmitter.stage(ticket, answer);
        Ok(())
    }
}

fn now() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_nsec() as u64)
}
