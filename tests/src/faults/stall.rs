//! How long a device answers nothing, as the block layer sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use crate::device::{Device, completed};

/// How often it looks.
const SAMPLE_INTERVAL: Duration = Duration::from_micros(500);

/// A thread that watches a device on which there is always something to do.
#[derive(Debug)]
pub struct StallWatch {
    stop: Arc<AtomicBool>,
    /// In nanoseconds.
    longest: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl StallWatch {
    /// Begins to watch.
    #[must_use]
    pub fn start(device: &Device) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let longest = Arc::new(AtomicU64::new(0));
        let (stops, found) = (Arc::clone(&stop), Arc::clone(&longest));
        let index = device.index();
        let thread = std::thread::spawn(move || watch(index, &stops, &found));
        Self { stop, longest, thread: Some(thread) }
    }

    /// The longest time without an answer, of those that have ended since the last call.
    pub fn take(&self) -> Duration {
        Duration::from_nanos(self.longest.swap(0, Ordering::Relaxed))
    }
}

impl Drop for StallWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(index: u32, stop: &AtomicBool, longest: &AtomicU64) {
    let (mut before, mut since) = (completed(&format!("nbd{index}")), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        sleep(SAMPLE_INTERVAL);
        let now = completed(&format!("nbd{index}"));
        if now != before {
            let time = since.elapsed().as_nanos();
            longest.fetch_max(u64::try_from(time).unwrap_or(u64::MAX), Ordering::Relaxed);
            (before, since) = (now, Instant::now());
        }
    }
}

/// Median, 99th percentile and the longest of some times, in words.
#[must_use]
pub fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: usize| {
        let index = (times.len() * part / 100).min(times.len().saturating_sub(1));
        times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    format!("median {:.1} ms, p99 {:.1} ms, worst {:.1} ms", at(50), at(99), at(100))
}
