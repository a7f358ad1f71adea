//! What holders count, as OpenMetrics text.

use std::fmt::Write as _;

use nbd_control::status::{BackendState, Status};

use crate::inspect::listed::Listed;

pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Bounds of the histograms: powers of two from 4 µs to 34 s, which are bounds of the holder's too.
const BUCKET_BOUNDS_LOG2: std::ops::RangeInclusive<u32> = 12..=35;
const STATES: [BackendState; 9] = [
    BackendState::Starting,
    BackendState::Running,
    BackendState::Stopped,
    BackendState::Restarting,
    BackendState::Waiting,
    BackendState::Down,
    BackendState::Paused,
    BackendState::Failing,
    BackendState::Failed,
];

/// One family of metrics as text.
struct Family<'a> {
    out: &'a mut String,
    name: &'static str,
    suffix: &'static str,
}

impl<'a> Family<'a> {
    fn new(out: &'a mut String, name: &'static str, kind: &'static str, help: &str) -> Self {
        let _ = writeln!(out, "# TYPE {name} {kind}\n# HELP {name} {help}");
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        Self { out, name, suffix }
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.part(self.suffix, labels, value);
    }

    fn part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| {
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                format!("{name}=\"{value}\"")
            })
            .collect();
        let labels = labels.join(",");
        let _ = writeln!(self.out, "{}{suffix}{{{labels}}} {value}", self.name);
    }
}

/// All families, and the end.
pub(super) fn render(found: &[Listed]) -> String {
    let attached: Vec<&Status> = found
        .iter()
        .filter_map(|listed| match listed {
            Listed::Attached(status) => Some(&**status),
            _ => None,
        })
        .collect();
    let mut out = String::new();
    let text = &mut out;
    let mut held = Family::new(text, "nbd_held", "gauge", "Whether the holder answers.");
    for listed in found {
        let answers = u8::from(matches!(listed, Listed::Attached(_)));
        held.sample(&[("device", listed.device())], answers);
    }
    let mut info = Family::new(text, "nbd_device", "info", "What is served, and how.");
    for status in &attached {
        let labels = [
            ("device", status.device.as_str()),
            ("export", &status.backend.description),
            ("kernel_api", &status.kernel_api),
        ];
        info.sample(&labels, 1);
    }
    gauges(text, &attached);
    counters(text, &attached);
    latencies(text, &attached);
    states(text, &attached);
    out.push_str("# EOF\n");
    out
}

fn gauges(text: &mut String, attached: &[&Status]) {
    type Value = fn(&Status) -> Option<f64>;
    let families: [(&'static str, &str, Value); 5] = [
        ("nbd_size_bytes", "Size of the device.", |it| Some(it.export.size as f64)),
        ("nbd_in_flight", "Requests without an answer.", |it| Some(it.in_flight.len() as f64)),
        ("nbd_oldest_request_seconds", "How long the oldest of them has waited.", |it| {
            Some(it.in_flight.first().map_or(0, |request| request.age_ms) as f64 / 1000.0)
        }),
        ("nbd_failed_starts", "Failed starts of the backend since it last served.", |it| {
            Some(it.backend.retry.as_ref().map_or(0, |retry| retry.tries).into())
        }),
        ("nbd_last_recovery_seconds", "From the last loss of a backend to its successor.", |it| {
            Some(it.last_recovery.as_ref()?.ready_ms? / 1000.0)
        }),
    ];
    for (name, help, value) in families {
        let mut family = Family::new(text, name, "gauge", help);
        for status in attached {
            if let Some(value) = value(status) {
                family.sample(&[("device", &status.device)], value);
            }
        }
    }
}

fn counters(text: &mut String, attached: &[&Status]) {
    let mut family =
        Family::new(text, "nbd_requests", "counter", "Answered requests, errors included.");
    for status in attached {
        let totals = &status.totals;
        for (command, count) in [
            ("read", totals.reads),
            ("write", totals.writes),
            ("flush", totals.flushes),
            ("trim", totals.trims),
            ("other", totals.others),
        ] {
            family.sample(&[("device", &status.device), ("command", command)], count);
        }
    }
    type Value = fn(&Status) -> u64;
    let families: [(&'static str, &str, Value); 4] = [
        ("nbd_errors", "Requests answered with an error.", |it| it.totals.errors),
        ("nbd_read_bytes", "Bytes read without error.", |it| it.totals.read_bytes),
        ("nbd_written_bytes", "Bytes written without error.", |it| it.totals.written_bytes),
        ("nbd_backend_restarts", "Backends started after the first.", |it| it.backend.restarts),
    ];
    for (name, help, value) in families {
        let mut family = Family::new(text, name, "counter", help);
        for status in attached {
            family.sample(&[("device", &status.device)], value(status));
        }
    }
}

fn latencies(text: &mut String, attached: &[&Status]) {
    let help = "From when a backend took a request to the end of its execution.";
    let mut family = Family::new(text, "nbd_request_duration_seconds", "histogram", help);
    for status in attached {
        for kind in &status.latencies {
            let labels = [("device", status.device.as_str()), ("command", &kind.command)];
            for power in BUCKET_BOUNDS_LOG2 {
                let nanoseconds = 1u64 << power;
                let le = (nanoseconds as f64 / 1e9).to_string();
                let labels = [&labels[..], &[("le", &*le)]].concat();
                family.part("_bucket", &labels, kind.below(nanoseconds));
            }
            family.part("_bucket", &[&labels[..], &[("le", "+Inf")]].concat(), kind.count);
            family.part("_count", &labels, kind.count);
            family.part("_sum", &labels, kind.sum_ms / 1000.0);
        }
    }
}

fn states(text: &mut String, attached: &[&Status]) {
    let mut family =
        Family::new(text, "nbd_backend_state", "stateset", "What the backend is doing.");
    for status in attached {
        for state in STATES {
            let name = format!("{state:?}").to_lowercase();
            let labels = [("device", status.device.as_str()), ("nbd_backend_state", &name)];
            family.sample(&labels, u8::from(status.backend.state == state));
        }
    }
}

#[cfg(test)]
mod tests {
    use nbd_control::latency::{Bucket, LatencyStatus};

    use super::*;

    #[test]
    fn without_devices_there_are_families_and_an_end() {
        let text = render(&[]);
        assert!(text.starts_with("# TYPE nbd_held gauge\n# HELP nbd_held "), "{text}");
        assert!(text.ends_with("\n# EOF\n"), "{text}");
        assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_all() {
        let bucket = |from_ns, below_ns, count| Bucket { from_ns, below_ns, count };
        let buckets = vec![
            bucket(0, Some(1280), 1),
            bucket(3584, Some(4096), 2),
            bucket(1 << 35, Some(5 << 33), 4),
            bucket(6 << 33, None, 8),
        ];
        let mut status = crate::inspect::render::tests::example();
        status.latencies = vec![LatencyStatus::new("write".into(), 2500.0, buckets)];
        let mut text = String::new();
        latencies(&mut text, &[&status]);
        let name = "nbd_request_duration_seconds";
        let labels = "device=\"nbd0\",command=\"write\"";
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], format!("# TYPE {name} histogram"));
        assert_eq!(lines[2], format!("{name}_bucket{{{labels},le=\"0.000004096\"}} 3"));
        assert_eq!(lines[25], format!("{name}_bucket{{{labels},le=\"34.359738368\"}} 3"));
        assert_eq!(lines[26], format!("{name}_bucket{{{labels},le=\"+Inf\"}} 15"));
        assert_eq!(lines[27], format!("{name}_count{{{labels}}} 15"));
        assert_eq!(lines[28..], [format!("{name}_sum{{{labels}}} 2.5")]);
    }

    #[test]
    fn a_description_cannot_break_out_of_its_label() {
        let mut text = String::new();
        Family::new(&mut text, "x", "info", "y").sample(&[("a", "q\"\\\nz")], 1);
        assert!(text.ends_with("x_info{a=\"q\\\"\\\\\\nz\"} 1\n"), "{text}");
    }
}
