//! The layer that lets a message through or counts it, and what writes the counts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::repeats::{INTERVAL, Message, Repeats, Summary};

static REPEATS: Mutex<Repeats> = Mutex::new(Repeats::new());
/// The program calls [`write_summaries`]; otherwise a thread is started when there is something to
/// count, and ends when there is not.
static BY_CALLER: AtomicBool = AtomicBool::new(false);
/// The thread runs. Changed under the lock of `REPEATS`.
static HAS_THREAD: AtomicBool = AtomicBool::new(false);

/// From now on the process calls [`write_summaries`] when [`next_summary`] says so, and no thread
/// is started for that.
pub fn summarise_by_caller() {
    BY_CALLER.store(true, Ordering::Relaxed);
}

/// When [`write_summaries`] has something to write; nothing if nothing was counted.
#[must_use]
pub fn next_summary() -> Option<Instant> {
    lock().next_due()
}

/// Writes the counts of repeated messages whose minute is over.
pub fn write_summaries() {
    let due = lock().take_due(Instant::now(), false);
    due.iter().for_each(write);
}

/// Writes all counts. For the end of a program.
pub fn finish() {
    let due = lock().take_due(Instant::now(), true);
    due.iter().for_each(write);
}

fn lock() -> MutexGuard<'static, Repeats> {
    REPEATS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets each message through for the first time, and counts it after that.
pub(crate) struct Summed;

impl<S: Subscriber> Layer<S> for Summed {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let level = *event.metadata().level();
        if level > Level::INFO {
            return true;
        }
        let mut message = Message::default();
        event.record(&mut message);
        let mut repeats = match REPEATS.try_lock() {
            Ok(repeats) => repeats,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            // Another thread counts at this moment: wait for it. In a process that was forked then
            // it never ends; so not for long, and better a line too many.
            Err(TryLockError::WouldBlock) => match lock_soon() {
                Some(repeats) => repeats,
                None => return true,
            },
        };
        let admits = repeats.admits(&message, level, Instant::now());
        if !admits && !BY_CALLER.load(Ordering::Relaxed) {
            start_thread();
        }
        admits
    }
}

fn lock_soon() -> Option<MutexGuard<'static, Repeats>> {
    for _ in 0..1000 {
        std::thread::yield_now();
        if let Ok(repeats) = REPEATS.try_lock() {
            return Some(repeats);
        }
    }
    None
}

/// Has the counts written in time. Called under the lock.
fn start_thread() {
    if HAS_THREAD.swap(true, Ordering::Relaxed) {
        return;
    }
    let started = std::thread::Builder::new().name("log-summaries".into()).spawn(|| {
        loop {
            let next = {
                let repeats = lock();
                let next = repeats.next_due();
                if next.is_none() {
                    HAS_THREAD.store(false, Ordering::Relaxed);
                    return;
                }
                next
            };
            let now = Instant::now();
            let wait = next.map_or(INTERVAL, |next| next.saturating_duration_since(now));
            std::thread::sleep(wait.max(Duration::from_millis(1)));
            write_summaries();
        }
    });
    if started.is_err() {
        // The next message that is counted tries again.
        HAS_THREAD.store(false, Ordering::Relaxed);
    }
}

fn write(summary: &Summary) {
    let Summary { level, device, count, text, within } = summary;
    let within = match within.as_secs() {
        seconds if seconds + 1 >= INTERVAL.as_secs() && seconds <= INTERVAL.as_secs() + 1 => {
            "minute".into()
        }
        seconds => format!("{} s", seconds.max(1)),
    };
    let device = device.as_deref();
    // The field is `repeats::SUMMARY`, by which the layer knows them.
    match *level {
        Level::ERROR => {
            tracing::error!(device, repeated = count, "{count} more in the last {within}: {text}");
        }
        Level::WARN => {
            tracing::warn!(device, repeated = count, "{count} more in the last {within}: {text}");
        }
        _ => tracing::info!(device, repeated = count, "{count} more in the last {within}: {text}"),
    }
}
