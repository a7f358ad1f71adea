//! Messages that repeat: the first few are written, later ones are counted, and the count is
//! written once a minute. A dead disk fails every request with the same words; a line for each would fill
//! the log, and hide what else is in it.
//!
//! Two messages are the same if they differ in digits only, which are offsets, lengths and pids.

use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use tracing::Level;
use tracing::field::{Field, Visit};

use crate::allowance::Allowance;

/// How long messages are counted before the count is written.
pub(crate) const INTERVAL: Duration = Duration::from_secs(60);
/// So many messages of one kind are written in an interval: warnings and errors …
const SHOWN: u64 = 5;
/// … and events that scripts and people count, such as `backend-lost`.
const SHOWN_EVENTS: u64 = 1000;
/// So many kinds are told apart. Words of others are in some messages, so kinds can be many.
const MAX_KINDS: usize = 64;
/// So many messages of all further kinds are written in an interval.
const SHOWN_OTHERS: u64 = 60;
/// Information that is no event: lines a second, and at once.
const INFO_RATE: u32 = 100;
const INFO_BURST: u32 = 1000;
/// So much of a message is kept for the summary.
const MAX_TEXT: usize = 400;

/// A message, as far as it matters here.
#[derive(Debug, Default)]
pub(crate) struct Message {
    text: String,
    device: Option<String>,
    is_event: bool,
    is_summary: bool,
}

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => {
                let _ = write!(self.text, "{value:?}");
            }
            "device" => self.device = Some(format!("{value:?}")),
            "event" => {
                // Part of the kind: `lost` and `recovered` are two.
                self.is_event = true;
                let _ = write!(self.text, " event={value:?}");
            }
            SUMMARY => self.is_summary = true,
            _ => {}
        }
    }
}

/// The field that only summaries have.
pub(crate) const SUMMARY: &str = "repeated";

/// A count that is to be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) level: Level,
    pub(crate) device: Option<String>,
    pub(crate) count: u64,
    /// The latest of the messages, in full or nearly so.
    pub(crate) text: String,
    /// Since the first one that was counted.
    pub(crate) within: Duration,
}

/// What is known of one kind of messages.
#[derive(Debug)]
struct Kind {
    hash: u64,
    since: Instant,
    shown: u64,
    hidden: u64,
    level: Level,
    device: Option<String>,
    text: String,
}

impl Kind {
    fn new(hash: u64, level: Level, now: Instant) -> Self {
        let (device, text) = (None, String::new());
        Self { hash, since: now, shown: 0, hidden: 0, level, device, text }
    }

    /// Whether the message is written.
    fn count(&mut self, message: &Message, shown: u64) -> bool {
        if self.shown < shown {
            self.shown += 1;
            return true;
        }
        self.hidden += 1;
        self.device.clone_from(&message.device);
        self.text.clear();
        self.text.extend(message.text.chars().take(MAX_TEXT));
        false
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= INTERVAL
    }

    fn summary(&mut self, now: Instant) -> Option<Summary> {
        (self.hidden > 0).then(|| Summary {
            level: self.level,
            device: self.device.take(),
            count: std::mem::take(&mut self.hidden),
            text: std::mem::take(&mut self.text),
            within: now.saturating_duration_since(self.since),
        })
    }
}

/// All kinds of the present interval.
#[derive(Debug)]
pub(crate) struct Repeats {
    kinds: Vec<Kind>,
    info: Option<Allowance>,
}

/// The kind of all messages for which there is no kind left, and that of plain information.
const OTHERS: u64 = 0;
const INFO: u64 = 1;

impl Repeats {
    pub(crate) const fn new() -> Self {
        Self { kinds: Vec::new(), info: None }
    }

    /// Whether a message is written; otherwise it is counted.
    pub(crate) fn admits(&mut self, message: &Message, level: Level, now: Instant) -> bool {
        if message.is_summary || level > Level::INFO {
            // What was asked for with -v is not cut down.
            return true;
        }
        self.expire(now);
        if level == Level::INFO && !message.is_event {
            let fresh = || Allowance::new(INFO_RATE, INFO_BURST, now);
            let passes = self.info.get_or_insert_with(fresh).take(1, now);
            return passes || self.count(INFO, message, level, 0, now);
        }
        let hash = fingerprint(message, level);
        let is_known = self.kinds.iter().any(|kind| kind.hash == hash);
        match is_known || self.kinds.len() < MAX_KINDS {
            true if message.is_event => self.count(hash, message, level, SHOWN_EVENTS, now),
            true => self.count(hash, message, level, SHOWN, now),
            false => self.count(OTHERS, message, level, SHOWN_OTHERS, now),
        }
    }

    fn count(
        &mut self,
        hash: u64,
        message: &Message,
        level: Level,
        shown: u64,
        now: Instant,
    ) -> bool {
        let found = self.kinds.iter().position(|kind| kind.hash == hash);
        let index = found.unwrap_or_else(|| {
            self.kinds.push(Kind::new(hash, level, now));
            self.kinds.len() - 1
        });
        self.kinds[index].count(message, shown)
    }

    /// The counts whose interval is over, or all that there are.
    pub(crate) fn take_due(&mut self, now: Instant, all: bool) -> Vec<Summary> {
        let mut due = Vec::new();
        for kind in &mut self.kinds {
            if (all || kind.is_over(now))
                && let Some(summary) = kind.summary(now)
            {
                // What goes on is counted only, in the next interval, too.
                kind.since = now;
                due.push(summary);
            }
        }
        self.expire(now);
        due
    }

    /// When the next count is to be written; nothing if nothing was counted.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let counted = self.kinds.iter().filter(|kind| kind.hidden > 0);
        counted.map(|kind| kind.since + INTERVAL).min()
    }

    /// Forgets what has not come again for an interval: it is written when it does.
    fn expire(&mut self, now: Instant) {
        self.kinds.retain(|kind| kind.hidden > 0 || !kind.is_over(now));
    }
}

/// A number for messages that differ in digits only.
fn fingerprint(message: &Message, level: Level) -> u64 {
    let mut hasher = DefaultHasher::new();
    level.hash(&mut hasher);
    let mut in_number = false;
    for byte in message.text.bytes() {
        let is_digit = byte.is_ascii_digit();
        if !(is_digit && in_number) {
            if is_digit { b'0' } else { byte }.hash(&mut hasher);
        }
        in_number = is_digit;
    }
    // The two that have a meaning of their own.
    hasher.finish().max(INFO + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Message {
        Message { text: text.into(), ..Message::default() }
    }

    fn failed(offset: u64) -> Message {
        message(&format!("Read {{ offset: {offset}, length: 512 }} failed: I/O error (os error 5)"))
    }

    #[test]
    fn the_first_are_written_and_the_rest_is_summed_up_each_minute() {
        let begin = Instant::now();
        let mut repeats = Repeats::new();
        let passed = (0..50_000).filter(|n| repeats.admits(&failed(n * 512), Level::WARN, begin));
        assert_eq!(passed.count(), 5);
        assert!(repeats.admits(&message("something else"), Level::WARN, begin));
        assert_eq!(repeats.take_due(begin + INTERVAL / 2, false), []);
        assert_eq!(repeats.next_due(), Some(begin + INTERVAL));
        let due = repeats.take_due(begin + INTERVAL, false);
        assert_eq!(due.len(), 1);
        assert_eq!((due[0].count, due[0].level, due[0].within), (49_995, Level::WARN, INTERVAL));
        assert!(due[0].text.contains("offset: 25599488"), "the latest: {}", due[0].text);
        // It goes on, and is counted only.
        let later = begin + INTERVAL + INTERVAL / 2;
        assert!(!repeats.admits(&failed(0), Level::WARN, later));
        assert_eq!(repeats.take_due(begin + INTERVAL * 2, false)[0].count, 1);
        // It has stopped for a minute, and is news again.
        assert_eq!(repeats.next_due(), None);
        assert!(repeats.admits(&failed(0), Level::WARN, begin + INTERVAL * 4));
    }

    #[test]
    fn another_cause_or_level_is_another_message() {
        let now = Instant::now();
        let mut repeats = Repeats::new();
        assert!(repeats.admits(&message("read 1 failed: I/O error"), Level::WARN, now));
        assert!(repeats.admits(&message("read 1 failed: no space"), Level::WARN, now));
        assert!(repeats.admits(&message("read 1 failed: no space"), Level::ERROR, now));
        let again = message("read 22 failed: no space");
        assert_eq!((0..9).filter(|_| repeats.admits(&again, Level::ERROR, now)).count(), 4);
    }

    #[test]
    fn words_of_others_cannot_make_it_remember_or_write_without_bound() {
        let now = Instant::now();
        let mut repeats = Repeats::new();
        let word = |n: u64| "x".repeat(1 + n as usize % 1000);
        let passed = (0..10_000).filter(|n| repeats.admits(&message(&word(*n)), Level::WARN, now));
        let most = MAX_KINDS as u64 * SHOWN + SHOWN_OTHERS;
        assert_eq!(passed.count() as u64, most);
        assert_eq!(repeats.kinds.len(), MAX_KINDS + 1);
        let long = message(&"y".repeat(1 << 20));
        assert!(!repeats.admits(&long, Level::WARN, now));
        assert!(repeats.take_due(now, true).iter().all(|summary| summary.text.len() <= MAX_TEXT));
    }

    #[test]
    fn events_are_for_counting_and_information_has_a_rate() {
        let now = Instant::now();
        let mut repeats = Repeats::new();
        let event = Message { is_event: true, ..message("backend 7 killed event=backend-lost") };
        assert_eq!((0..5000).filter(|_| repeats.admits(&event, Level::WARN, now)).count(), 1000);
        let line = message("a line of a program");
        assert_eq!((0..5000).filter(|_| repeats.admits(&line, Level::INFO, now)).count(), 1000);
        assert!((0..5000).all(|_| repeats.admits(&line, Level::DEBUG, now)));
        let counts: Vec<_> = repeats.take_due(now, true).iter().map(|it| it.count).collect();
        assert_eq!(counts, [4000, 4000]);
    }
}
