//! Crash points: places between two commits at which a test may kill the process.

#[cfg(feature = "crash-points")]
use std::cell::RefCell;
#[cfg(feature = "crash-points")]
use std::sync::atomic::{AtomicU64, Ordering};

/// Where in the code a crash point lies. The model under `tests/model` names the same ones in the
/// same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "crash-points"), expect(unreachable_pub, reason = "for tests"))]
pub enum CrashPoint {
    /// A remainder was copied to the ring's beginning.
    RemainderMoved,
    /// A receive record has its first word.
    ReceiveBegun,
    /// A receive record is filled in.
    ReceiveFilled,
    /// A receive record is the valid one.
    ReceiveCommitted,
    /// `recvmmsg` has returned bytes.
    Received,
    /// A slot has its first word.
    SlotBegun,
    /// A slot is filled in.
    SlotFilled,
    /// A slot's state says that it holds a request.
    SlotPending,
    /// All slots of a batch are filled.
    TakeBegun,
    /// `parsed` has moved past a batch.
    Taken,
    /// A request that a predecessor had begun waits again.
    Requeued,
    /// A reply lies in the transmit area.
    ReplyWritten,
    /// A slot's state says that its reply belongs to the next transmission.
    Staged,
    /// A transmit record has its first word.
    SendBegun,
    /// A transmit record is filled in.
    SendFilled,
    /// A transmit record is the valid one.
    SendCommitted,
    /// `sendmmsg` has returned.
    Sent,
    /// A successor has emptied a slot that was filled and not taken.
    SlotVacated,
    /// A successor has found a request to execute.
    Restored,
}

#[cfg(feature = "crash-points")]
impl CrashPoint {
    /// Every crash point, in the order of the enum.
    pub const ALL: [Self; 19] = [
        Self::RemainderMoved,
        Self::ReceiveBegun,
        Self::ReceiveFilled,
        Self::ReceiveCommitted,
        Self::Received,
        Self::SlotBegun,
        Self::SlotFilled,
        Self::SlotPending,
        Self::TakeBegun,
        Self::Taken,
        Self::Requeued,
        Self::ReplyWritten,
        Self::Staged,
        Self::SendBegun,
        Self::SendFilled,
        Self::SendCommitted,
        Self::Sent,
        Self::SlotVacated,
        Self::Restored,
    ];
}

#[cfg(feature = "crash-points")]
static POINTS_PASSED: AtomicU64 = AtomicU64::new(0);
#[cfg(feature = "crash-points")]
static FATAL_POINT: AtomicU64 = AtomicU64::new(0);

#[cfg(feature = "crash-points")]
type Observer = Box<dyn FnMut(CrashPoint)>;

#[cfg(feature = "crash-points")]
thread_local! {
    static OBSERVER: RefCell<Option<Observer>> = const { RefCell::new(None) };
}

/// Kills this process with SIGKILL when it passes its `nth` crash point from now (1 is the next).
#[cfg(feature = "crash-points")]
pub fn arm_crash_point(nth: u64) {
    POINTS_PASSED.store(0, Ordering::SeqCst);
    FATAL_POINT.store(nth, Ordering::SeqCst);
}

/// How many crash points were passed since [`arm_crash_point`].
#[cfg(feature = "crash-points")]
pub fn crash_points_passed() -> u64 {
    POINTS_PASSED.load(Ordering::SeqCst)
}

/// Calls `observer` at every crash point that this thread passes. If it unwinds, what is left is
/// what a death at this point would leave: nothing in this crate stores to the ledger on drop.
#[cfg(feature = "crash-points")]
pub fn observe_crash_points(observer: impl FnMut(CrashPoint) + 'static) {
    OBSERVER.with(|cell| *cell.borrow_mut() = Some(Box::new(observer)));
}

/// A point at which a crash must be survivable. Costs nothing unless built for tests.
#[inline(always)]
pub(crate) fn crash_point(point: CrashPoint) {
    #[cfg(not(feature = "crash-points"))]
    let _ = point;
    #[cfg(feature = "crash-points")]
    {
        let fatal = FATAL_POINT.load(Ordering::Relaxed);
        if fatal != 0 && POINTS_PASSED.fetch_add(1, Ordering::SeqCst) + 1 == fatal {
            crate::message::die();
        }
        OBSERVER.with(|cell| {
            if let Some(observer) = &mut *cell.borrow_mut() {
                observer(point);
            }
        });
    }
}
