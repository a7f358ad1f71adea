//! What no descriptor tells of: requests in flight, and what /sys and /proc show.

use std::fs;
use std::os::unix::fs::MetadataExt;

use nbd_control::process;
use nbd_control::status::BackendState;

use crate::core::{Condition, Event, Sitter, Survey};
use crate::holder::{Holder, InFlight, lanes};
use crate::kernel::helper_process::{RESIZE, process_name};

impl Holder {
    /// Looks at what the core watches.
    pub(crate) fn look(&mut self) {
        self.notice_departure();
        for watch in self.core.watches() {
            let condition = watch.condition;
            let holds = self.holds(condition);
            self.feed(Event::Seen { condition, holds });
        }
    }

    fn holds(&self, condition: Condition) -> bool {
        match condition {
            Condition::NotedAnswered => self.are_noted_answered(),
            Condition::NotedAnsweredAndQuiet => {
                self.device.waiting() == 0 && self.are_noted_answered()
            }
            Condition::Quiet => self.device.waiting() == 0,
            Condition::NoSizeChange => self.size_change().is_none(),
            Condition::Connected => self.device.is_connected(self.export().size),
            Condition::SizeIs(size) => self.device.size() == size,
            Condition::Clear => self.device.is_clear(),
            Condition::SitterParked => self.is_sitter_parked(),
            Condition::OwnerGone => self.owner().is_none(),
            Condition::OwnerStopped => self.is_owner_stopped(),
            Condition::NoProcesses => self.processes.orphans.is_empty(),
        }
    }

    fn are_noted_answered(&self) -> bool {
        self.requests_in_flight().is_disjoint(&self.data.noted)
    }

    /// In D state it waits for a lane's mutex, which is free once the lane has ended, or for the
    /// driver's lock, when it has done its work.
    fn is_sitter_parked(&self) -> bool {
        let pid = self.processes.sitter.as_ref().map(|sitter| sitter.process.pid.as_raw());
        let state = pid.and_then(process::stat).map(|stat| stat.state);
        self.core.sitter() != Sitter::Sits || state.is_none_or(|state| state == 'D')
    }

    fn is_owner_stopped(&self) -> bool {
        let stat = self.owner_pid().and_then(process::stat);
        stat.is_some_and(|stat| matches!(stat.state, 'T' | 't'))
    }

    /// Tells the core how the device is.
    pub(crate) fn survey(&mut self, note: bool) {
        // What has come just now has an age, too.
        self.note_arrivals();
        let requests = self.in_flight();
        let survey = Survey {
            in_flight: requests.len(),
            waiting: self.device.waiting() > 0,
            size_change: self.size_change().is_some(),
            served: self.backend_state() == BackendState::Running,
            oldest_ms: requests.first().map_or(0, |oldest| oldest.age_ms),
            size: self.device.size(),
            written_size: self.export().size,
            owner_stopped: self.owner().is_none() || self.is_owner_stopped(),
            owner_size: self.owner().and_then(|it| it.hello.as_ref()).map(|it| it.export.size),
        };
        if note {
            self.data.noted = self.requests_in_flight();
            self.told.errors_before = self.totals().errors;
        }
        self.feed(Event::Surveyed(survey));
    }

    /// All requests that have been sent and not been answered.
    pub(crate) fn requests_in_flight(&self) -> InFlight {
        let Some(inspector) = &self.data.inspector else {
            return InFlight::new();
        };
        let lanes = (0u32..).zip(&self.data.lanes);
        lanes
            .flat_map(|(lane, socket)| {
                let known = inspector.in_flight(lane).into_iter().map(|slot| slot.request.cookie);
                let unread = inspector.unread(lane, &lanes::peek(socket)).into_iter();
                known
                    .chain(unread.map(|unread| unread.request.cookie))
                    .map(move |cookie| (lane, cookie))
            })
            .collect()
    }

    /// The helper process that is telling the driver another size, if there is one. Found by its
    /// name: it may be that of an earlier holder.
    pub(crate) fn size_change(&self) -> Option<i32> {
        let name = process_name(&self.device, RESIZE);
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let named = entries.filter(|entry| {
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            // Names are free to choose for others.
            comm.trim_end() == name && entry.metadata().is_ok_and(|data| data.uid() == 0)
        });
        named
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .find(|pid| !process::is_dead(*pid))
    }
}
