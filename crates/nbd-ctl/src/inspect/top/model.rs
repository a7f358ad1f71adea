//! What is known of the devices, and what is shown of that: events in, no I/O, time as a parameter.

use std::time::{Duration, Instant};

use nbd_control::status::Status;
use ratatui::crossterm::event::Event as Input;

use crate::device::Device;
use crate::inspect::listed::Listed;
use crate::inspect::top::history::{Cell, History};
use crate::inspect::top::keys::{Key, meaning};
use crate::inspect::top::rates::Rates;
use crate::inspect::top::sample::Looked;
use crate::inspect::top::slow::Slow;

/// A holder that takes longer than this to answer is said to be silent.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(2);
/// Intervals to choose from, in milliseconds.
const INTERVALS_MS: [u64; 10] = [100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000];

/// What the program reacts to.
#[derive(Debug)]
pub(crate) enum Event {
    Looked(Box<Looked>),
    Terminal(Input),
    /// Ctrl-C from elsewhere, SIGTERM, or a terminal that is gone.
    End,
}

/// What the caller must do after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Go,
    /// The next look may be due earlier than before.
    LookSoon,
    Redraw,
    End,
}

/// What the devices are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sort {
    Name,
    Requests,
    Bytes,
    Latency,
    Depth,
    Oldest,
}

/// A device.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) device: Device,
    /// Its name, given at attach.
    pub(crate) name: Option<String>,
    /// What the last look found.
    pub(crate) found: Option<Listed>,
    at: Option<Instant>,
    /// When the look began that has not ended.
    asked: Option<Instant>,
    pub(crate) rates: Option<Rates>,
    pub(crate) history: History,
    pub(crate) slow: Slow,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct Model {
    /// Those that were named on the command line; empty for all.
    pub(crate) wanted: Vec<Device>,
    /// In the order of their numbers.
    rows: Vec<Row>,
    selected: Option<Device>,
    interval: Duration,
    paused: bool,
    pub(crate) sort: Sort,
    pub(crate) details: bool,
    pub(crate) help: bool,
}

impl Row {
    pub(crate) fn new(device: Device) -> Self {
        Self {
            device,
            name: Device::name(device),
            found: None,
            at: None,
            asked: None,
            rates: None,
            history: History::default(),
            slow: Slow::default(),
        }
    }

    pub(crate) fn status(&self) -> Option<&Status> {
        match &self.found {
            Some(Listed::Attached(status)) => Some(status),
            _ => None,
        }
    }

    /// For how long its holder has been silent, if that is worth mentioning.
    pub(crate) fn silent(&self, now: Instant) -> Option<Duration> {
        let silent = now.saturating_duration_since(self.asked?);
        (silent >= SILENCE_TIMEOUT).then_some(silent)
    }

    /// Takes in what a look has found.
    pub(crate) fn learn(&mut self, found: Listed, at: Instant) {
        self.rates = match (self.status(), &found, self.at) {
            (Some(before), Listed::Attached(now), Some(since)) => {
                Rates::between(before, now, at.saturating_duration_since(since))
            }
            _ => None,
        };
        match (&found, &self.rates) {
            (Listed::Attached(status), Some(rates)) => self.history.push(Cell::of(status, rates)),
            (Listed::Unreachable { .. }, _) => self.history.push(Cell::Silent),
            _ => {}
        }
        self.found = Some(found);
        self.at = Some(at);
        self.asked = None;
    }

    fn value(&self, sort: Sort) -> f64 {
        let rates = self.rates.as_ref();
        let requests = self.status().map(|status| &status.in_flight);
        match sort {
            Sort::Name => 0.0,
            Sort::Requests => rates.map_or(0.0, Rates::requests),
            Sort::Bytes => rates.map_or(0.0, |rates| rates.read_bytes + rates.written_bytes),
            Sort::Latency => rates.and_then(|rates| rates.all.p99_ms).unwrap_or(0.0),
            Sort::Depth => requests.map_or(0.0, |requests| requests.len() as f64),
            Sort::Oldest => {
                requests.and_then(|all| all.first()).map_or(0.0, |oldest| oldest.age_ms as f64)
            }
        }
    }
}

impl Sort {
    const fn next(self) -> Self {
        match self {
            Self::Name => Self::Requests,
            Self::Requests => Self::Bytes,
            Self::Bytes => Self::Latency,
            Self::Latency => Self::Depth,
            Self::Depth => Self::Oldest,
            Self::Oldest => Self::Name,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Name => "device",
            Self::Requests => "IOPS",
            Self::Bytes => "bandwidth",
            Self::Latency => "latency (p99)",
            Self::Depth => "depth",
            Self::Oldest => "oldest request",
        }
    }
}

impl Model {
    pub(crate) fn new(wanted: Vec<Device>, interval: Duration) -> Self {
        Self {
            wanted,
            rows: Vec::new(),
            selected: None,
            interval,
            paused: false,
            sort: Sort::Name,
            details: false,
            help: false,
        }
    }

    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    pub(crate) fn paused(&self) -> bool {
        self.paused
    }

    /// The devices in the order in which they are shown.
    pub(crate) fn rows(&self) -> Vec<&Row> {
        let mut rows: Vec<_> = self.rows.iter().collect();
        // Stable, so that equals stay in the order of their numbers.
        rows.sort_by(|a, b| b.value(self.sort).total_cmp(&a.value(self.sort)));
        rows
    }

    pub(crate) fn selected(&self) -> Option<&Row> {
        self.rows.iter().find(|row| Some(row.device) == self.selected)
    }

    /// Whose flight recorder is looked at too, and from which requests on.
    pub(crate) fn followed(&self) -> Option<(Device, Vec<u64>)> {
        let row = self.selected().filter(|_| self.details)?;
        Some((row.device, row.slow.from()))
    }

    /// These devices are there, and are being looked at from now on.
    pub(crate) fn round(&mut self, devices: &[Device], now: Instant) {
        self.rows.retain(|row| devices.contains(&row.device));
        for &device in devices {
            if !self.rows.iter().any(|row| row.device == device) {
                self.rows.push(Row::new(device));
            }
        }
        self.rows.sort_by_key(|row| row.device);
        for row in &mut self.rows {
            match row.asked {
                None => row.asked = Some(now),
                Some(_) => row.history.push(Cell::Silent),
            }
        }
        self.select_something();
    }

    pub(crate) fn handle(&mut self, event: Event) -> Then {
        match event {
            Event::Looked(looked) => self.learn(*looked),
            Event::Terminal(Input::Key(key)) => match meaning(key) {
                Some(key) => return self.press(key),
                // Whatever is pressed, help has been read.
                None => self.help = false,
            },
            // A new size is seen when the screen is drawn, which follows every event.
            Event::Terminal(_) => {}
            Event::End => return Then::End,
        }
        Then::Go
    }

    fn learn(&mut self, looked: Looked) {
        let Some(found) = looked.found else {
            self.rows.retain(|row| row.device != looked.device);
            return self.select_something();
        };
        // What came after the pause began is not shown either.
        if self.paused {
            if let Some(row) = self.rows.iter_mut().find(|row| row.device == looked.device) {
                row.asked = None;
            }
            return;
        }
        if let Some(row) = self.rows.iter_mut().find(|row| row.device == looked.device) {
            row.learn(found, looked.at);
            if let Some((executed, next)) = looked.traced {
                row.slow.add(executed, next);
            }
        }
    }

    fn press(&mut self, key: Key) -> Then {
        match key {
            Key::Quit => return Then::End,
            Key::Redraw => return Then::Redraw,
            _ if self.help => self.help = false,
            Key::Help => self.help = true,
            Key::Back => self.details = false,
            Key::Open => self.details = !self.details && self.selected.is_some(),
            Key::Up => self.select(-1),
            Key::Down => self.select(1),
            Key::Sort => self.sort = self.sort.next(),
            Key::Pause => {
                self.paused = !self.paused;
                return Then::LookSoon;
            }
            Key::Longer | Key::Shorter => {
                self.change_interval(key == Key::Longer);
                return Then::LookSoon;
            }
        }
        Then::Go
    }

    fn change_interval(&mut self, longer: bool) {
        let mut all = INTERVALS_MS.map(Duration::from_millis).into_iter();
        let next = if longer {
            all.find(|&it| it > self.interval)
        } else {
            all.rfind(|&it| it < self.interval)
        };
        self.interval = next.unwrap_or(self.interval);
    }

    fn select(&mut self, step: isize) {
        let order: Vec<_> = self.rows().iter().map(|row| row.device).collect();
        let place = order.iter().position(|&device| Some(device) == self.selected).unwrap_or(0);
        let place = place.saturating_add_signed(step).min(order.len().saturating_sub(1));
        self.selected = order.get(place).copied();
    }

    /// The one that was selected may be gone.
    fn select_something(&mut self) {
        if self.selected().is_none() {
            self.selected = self.rows().first().map(|row| row.device);
            self.details = false;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
