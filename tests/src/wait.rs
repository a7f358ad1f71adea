//! Waiting for something that must become true. The limit is for machines that crawl: whatever
//! takes that long is broken.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Long enough for anything that takes milliseconds on a machine that is not busy.
pub const LONG: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `holds`; panics after `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, limit, || holds().then_some(()));
}

/// Waits for a value; panics after `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut get: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = get() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", limit.as_secs());
        sleep(PAUSE);
    }
}
