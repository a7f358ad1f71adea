//! Waiting for something that must become true. The limit is for machines that crawl: whatever
//! takes that long is broken.

use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Long enough for anything that takes milliseconds on a machine that is not busy.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(180);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A limit as long as it has to be on this machine. `scripts/vm` sets `NBD_TEST_PATIENCE` where a
/// processor is emulated, to how many times longer everything may take.
#[must_use]
pub fn scaled_timeout(limit: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    let factor = FACTOR.get_or_init(|| match std::env::var("NBD_TEST_PATIENCE") {
        Ok(factor) => factor.parse().expect("NBD_TEST_PATIENCE: a whole number"),
        Err(_) => 1,
    });
    limit * *factor
}

/// Waits until `holds`; panics after `limit`, on a slow machine [`scaled_timeout`].
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, limit, || holds().then_some(()));
}

/// Waits for a value; panics after `limit`, on a slow machine [`scaled_timeout`].
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut get: impl FnMut() -> Option<T>) -> T {
    let limit = scaled_timeout(limit);
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = get() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", limit.as_secs());
        sleep(POLL_INTERVAL);
    }
}
