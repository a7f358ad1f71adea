//! What the holder tells about its device. Everything is read without asking the backend or the
//! driver for anything, so it answers at once however stuck they are.

use std::sync::atomic::Ordering;

use nbd_control::latency::{Bucket, LatencyStatus};
use nbd_control::process;
use nbd_control::status::{
    BackendState, BackendStatus, RecoveryStatus, RequestStatus, Stage, Status, TotalsStatus,
};
use nbd_ledger::inspect::TotalsSnapshot;
use nbd_ledger::latency::{self, HistogramSnapshot};
use nbd_ledger::layout::SLOTS;
use nbd_proto::Request;

use crate::core::ownership::Phase;
use crate::holder::Holder;
use crate::holder::lanes;
use crate::io::words::DROPPED;
use crate::view::clock::{milliseconds, monotonic};
use crate::view::outage;
use crate::view::poison;

impl Holder {
    pub(crate) fn status(&mut self) -> Status {
        // What has come just now has an age, too.
        self.note_arrivals();
        let export = self.export();
        let sitter_pid =
            self.processes.sitter.as_ref().map_or(0, |sitter| sitter.process.pid.as_raw());
        Status {
            device: self.device.name(),
            path: self.device.path().display().to_string(),
            export,
            read_only: export.flags & nbd_proto::TransmissionFlags::READ_ONLY.bits() != 0,
            kernel_api: self.settings.api.name().into(),
            lanes: self.data.lanes.len() as u32,
            on_backend_loss: self.settings.on_backend_loss.to_string(),
            under_way: self.under_way(),
            recording: self.data.recording.as_ref().map(|recording| recording.path.clone()),
            holder_pid: nix::unistd::getpid().as_raw(),
            sitter_pid,
            sitter_tracer_pid: process::tracer(sitter_pid),
            backend: self.backend_status(),
            in_flight: self.in_flight(),
            totals: self.totals(),
            latencies: self.latencies(),
            last_recovery: self.recovery(),
            poisoned: poison::told(&self.told.history.poisoned),
        }
    }

    /// What the operator has ordered.
    fn under_way(&self) -> Option<String> {
        let core = &self.core;
        let words = match core.detach_ordered() {
            _ if core.is_clearing() => "removing what the driver has dropped",
            _ if core.is_taking_down() => "detaching it: waiting for the end of its backend",
            Some(true) => "detaching it by force",
            Some(false) => "detaching it: writing back",
            None if core.is_failing_requests() => "answering what is in flight with EIO",
            None if core.is_replacing() => "replacing its backend",
            None if core.is_resizing() => "resizing it",
            None => return None,
        };
        Some(words.into())
    }

    /// What the backend is doing.
    pub(crate) fn backend_state(&self) -> BackendState {
        let stat = self.owner_pid().and_then(process::stat);
        let is_stopped = stat.is_some_and(|stat| matches!(stat.state, 'T' | 't'));
        let failed = self.core.failed().is_some() || self.core.is_clearing();
        match (failed, self.core.ownership.phase()) {
            (true, _) => BackendState::Failed,
            (_, Phase::Running) if is_stopped => BackendState::Stopped,
            (_, Phase::Running) => BackendState::Running,
            (_, Phase::Starting) => BackendState::Starting,
            (_, Phase::Restarting) => BackendState::Restarting,
            (_, Phase::Waiting) => BackendState::Waiting,
            (_, Phase::Down) => BackendState::Down,
            (_, Phase::Paused) => BackendState::Paused,
            (_, Phase::Failing) => BackendState::Failing,
        }
    }

    fn backend_status(&self) -> BackendStatus {
        let (pid, state) = (self.owner_pid(), self.backend_state());
        let process_state = pid.and_then(process::stat).map(|stat| stat.state);
        BackendStatus {
            state,
            detail: self.explain(state),
            pid,
            process_state,
            tracer_pid: pid.and_then(process::tracer),
            description: self.data.description.clone(),
            program: self.settings.program.clone(),
            restarts: self.core.ownership.restarts(),
            retry: self.retry_status(),
        }
    }

    fn explain(&self, state: BackendState) -> String {
        let name = self.device.name();
        match state {
            BackendState::Failed => self.failure_words().unwrap_or_else(|| DROPPED.into()),
            BackendState::Restarting if self.core.ownership.is_fencing() => {
                "waiting until the killed backend is dead".into()
            }
            BackendState::Starting if self.core.is_grant_waiting() => {
                format!(
                    "it gets the lanes when the holder can write its state: {}",
                    self.state_error()
                )
            }
            BackendState::Restarting | BackendState::Starting => self.retry_words(),
            BackendState::Waiting => {
                format!("join with `nbd-serve --join {name} SPEC` or NBD_JOIN={name} PROGRAM")
            }
            BackendState::Paused => format!("requests wait: `nbd-ctl resume {name}`"),
            BackendState::Failing if self.core.is_failing_requests() => {
                "what is in flight is being answered with EIO".into()
            }
            BackendState::Failing if self.core.ownership.is_abandoned() => {
                "the device is being detached by force: requests get EIO".into()
            }
            BackendState::Failing => {
                let text =
                    "there is no backend, and requests are answered with EIO until there is one";
                match self.retry_words() {
                    retry if retry.is_empty() => text.into(),
                    retry => format!("{text}; {retry}"),
                }
            }
            BackendState::Down => format!(
                "it failed too often ({}); see the log, then `nbd-ctl restart {name}`",
                self.told.failures.backend
            ),
            _ => String::new(),
        }
    }

    fn retry_words(&self) -> String {
        self.retry_status().as_ref().map(outage::describe).unwrap_or_default()
    }

    pub(crate) fn totals(&self) -> TotalsStatus {
        let Some(inspector) = &self.data.inspector else {
            return TotalsStatus::default();
        };
        let mut sum = TotalsStatus::default();
        for lane in 0..self.data.lanes.len() as u32 {
            let TotalsSnapshot {
                reads,
                writes,
                flushes,
                trims,
                others,
                errors,
                read_bytes,
                written_bytes,
            } = inspector.totals(lane);
            sum.reads = sum.reads.wrapping_add(reads);
            sum.writes = sum.writes.wrapping_add(writes);
            sum.flushes = sum.flushes.wrapping_add(flushes);
            sum.trims = sum.trims.wrapping_add(trims);
            sum.others = sum.others.wrapping_add(others);
            sum.errors = sum.errors.wrapping_add(errors);
            sum.read_bytes = sum.read_bytes.wrapping_add(read_bytes);
            sum.written_bytes = sum.written_bytes.wrapping_add(written_bytes);
        }
        sum
    }

    /// Those of all lanes together.
    fn latencies(&self) -> Vec<LatencyStatus> {
        let mut sums: [HistogramSnapshot; latency::HISTOGRAM_NAMES.len()] = Default::default();
        if let Some(inspector) = &self.data.inspector {
            for lane in 0..self.data.lanes.len() as u32 {
                for (sum, histogram) in sums.iter_mut().zip(inspector.latencies(lane)) {
                    sum.add(&histogram);
                }
            }
        }
        latency::HISTOGRAM_NAMES
            .iter()
            .zip(sums)
            .map(|(name, sum)| latency_status(name, &sum))
            .collect()
    }

    pub(crate) fn recovery(&self) -> Option<RecoveryStatus> {
        let loss = self.told.history.loss.as_ref()?;
        let header = self.data.inspector.as_ref()?.header();
        let recovered = self.has_recovered();
        let since = |at: u64| {
            (recovered && at >= loss.at).then(|| milliseconds(at.saturating_sub(loss.at)))
        };
        Some(RecoveryStatus {
            cause: loss.cause.clone(),
            ago_ms: milliseconds(monotonic().saturating_sub(loss.at)),
            ready_ms: since(header.ready_at.load(Ordering::Relaxed)),
            first_answer_ms: since(header.first_answer_at.load(Ordering::Relaxed)),
            replayed: loss.replayed,
        })
    }

    /// All requests that wait, oldest first: those in the ledger, and those still in the sockets.
    pub(crate) fn in_flight(&self) -> Vec<RequestStatus> {
        let Some(inspector) = &self.data.inspector else {
            return Vec::new();
        };
        let now = monotonic();
        let age = |came: u64| now.saturating_sub(came) / 1_000_000;
        let mut found = Vec::new();
        for (lane, socket) in (0u32..).zip(&self.data.lanes) {
            let before = found.len();
            for slot in inspector.in_flight(lane) {
                let executing = slot.started_at != 0;
                let stage = if executing { Stage::Executing } else { Stage::Queued };
                // It may have waited in the socket before a backend took it.
                let came = self.told.ages.at(lane, slot.position).unwrap_or(slot.received_at);
                let age = age(came.min(slot.received_at));
                found.push(RequestStatus {
                    attempts: slot.attempts,
                    crashes: slot.crashes,
                    ..describe(lane, &slot.request, stage, age)
                });
            }
            for unread in inspector.unread(lane, &lanes::peek(socket)) {
                let came = self.told.ages.at(lane, unread.position).unwrap_or(now);
                found.push(describe(lane, &unread.request, Stage::Unread, age(came)));
            }
            // The driver has no more in flight, whatever the ledger says: an answer stays short.
            found.truncate(before + SLOTS as usize);
        }
        found.sort_by_key(|request| std::cmp::Reverse(request.age_ms));
        found
    }
}

fn latency_status(command: &str, histogram: &HistogramSnapshot) -> LatencyStatus {
    let buckets = histogram.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
    let buckets = buckets.map(|(number, &count)| {
        let (from_ns, below_ns) = latency::bounds(number);
        Bucket { from_ns, below_ns, count }
    });
    LatencyStatus::new(command.into(), milliseconds(histogram.sum), buckets.collect())
}

fn describe(lane: u32, request: &Request, stage: Stage, age_ms: u64) -> RequestStatus {
    RequestStatus {
        lane,
        command: request.command.to_string(),
        offset: request.offset,
        length: request.length.into(),
        cookie: format!("{:016x}", request.cookie),
        stage,
        age_ms,
        attempts: 0,
        crashes: 0,
    }
}
