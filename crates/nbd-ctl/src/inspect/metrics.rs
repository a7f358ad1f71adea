//! `nbd-ctl metrics`: what the holders count, as OpenMetrics text.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nbd_control::status::{BackendState, Status};

use crate::context::{Context, eprint, print};
use crate::error::Error;
use crate::inspect::status::{Listed, survey};

const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long a client may take to ask, or to take its answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// No more than this is read of what a client asks.
const MAX_REQUEST_BYTES: usize = 8192;
/// Clients that are answered at the same time. A scraper that hangs must not be in another's way,
/// and many that do must not pile up.
const MAX_CLIENTS: usize = 16;
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

/// Where to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Loopback(SocketAddr),
}

/// `unix:PATH`, a port, or a loopback address with a port. Other machines must not read what is counted here.
pub(crate) fn address(text: &str) -> Result<Address, String> {
    if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        return Ok(Address::Unix(path.into()));
    }
    let local = IpAddr::from([127, 0, 0, 1]);
    let port = text.parse().map(|port: u16| SocketAddr::new(local, port));
    let address = port.or_else(|_| text.parse::<SocketAddr>());
    let address =
        address.map_err(|_| "give unix:PATH, a port, or an address like 127.0.0.1:9100")?;
    if !address.ip().is_loopback() {
        return Err("only loopback addresses: put a proxy in front for others".into());
    }
    Ok(Address::Loopback(address))
}

/// Prints them once.
pub(crate) fn metrics(context: &Context) -> Result<(), Error> {
    let (text, failed) = collect(context)?;
    print(&text)?;
    failed.map_or(Ok(()), |code| Err(Error::Several(code)))
}

/// Answers everyone who asks by HTTP, until Ctrl-C.
pub(crate) fn serve(context: &Arc<Context>, address: &Address) -> Result<(), Error> {
    let failed = |source| Error::Listen { address: address.to_string(), source };
    match address {
        Address::Loopback(at) => {
            let listener = TcpListener::bind(at).map_err(failed)?;
            eprint(&format!("listening on {}", listener.local_addr().map_err(failed)?));
            accept(context, listener.as_fd(), || Ok(Box::new(listener.accept()?.0)));
        }
        Address::Unix(path) => {
            let listener = bind(path).map_err(failed)?;
            eprint(&format!("listening on {}", path.display()));
            accept(context, listener.as_fd(), || Ok(Box::new(listener.accept()?.0)));
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// Someone who asks, over whatever socket.
trait Client: Read + Write + Send {
    /// How long the next calls may take.
    fn limit(&self, time: Duration) -> io::Result<()>;
}

impl Client for TcpStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time)).and_then(|()| self.set_write_timeout(Some(time)))
    }
}

impl Client for UnixStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time)).and_then(|()| self.set_write_timeout(Some(time)))
    }
}

/// Each client has a thread, which ends within a bound; Ctrl-C waits for none of them.
fn accept(
    context: &Arc<Context>,
    listener: BorrowedFd<'_>,
    next: impl Fn() -> io::Result<Box<dyn Client>>,
) {
    let clients = Arc::new(());
    while context.wait_for_input(listener) {
        // Those that are too many see their connection closed, and come again.
        if let Ok(client) = next()
            && Arc::strong_count(&clients) <= MAX_CLIENTS
        {
            let (context, counted) = (Arc::clone(context), Arc::clone(&clients));
            // Without memory for a thread it is the same.
            let _ = thread::Builder::new().spawn(move || {
                answer(&context, client);
                drop(counted);
            });
        }
    }
}

/// Removes a socket that a killed predecessor has left.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let is_socket = path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

fn answer(context: &Context, mut client: Box<dyn Client>) {
    let Some(request) = read_head(&mut *client, Instant::now() + CLIENT_TIMEOUT) else {
        return;
    };
    let (status, body) = match request.split_ascii_whitespace().take(2).collect::<Vec<_>>()[..] {
        ["GET", "/metrics" | "/"] => match collect(context) {
            Ok((text, _)) => ("200 OK", text),
            // The registry cannot be read, or Ctrl-C came.
            Err(error) => {
                let text = error.chain().unwrap_or_default();
                ("500 Internal Server Error", format!("{text}\n"))
            }
        },
        ["GET", _] => ("404 Not Found", "try /metrics\n".into()),
        _ => ("405 Method Not Allowed", "only GET is understood\n".into()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    let deadline = Instant::now() + CLIENT_TIMEOUT;
    let mut rest = [head.as_bytes(), body.as_bytes()].concat();
    while !rest.is_empty() && limit_to(&*client, deadline).is_some() {
        match client.write(&rest) {
            Ok(count) if count > 0 => drop(rest.drain(..count)),
            _ => return,
        }
    }
}

/// None if the time is over.
fn limit_to(client: &dyn Client, deadline: Instant) -> Option<()> {
    let left = deadline.checked_duration_since(Instant::now())?;
    client.limit(left.max(Duration::from_millis(1))).ok()
}

fn read_head(client: &mut dyn Client, deadline: Instant) -> Option<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        limit_to(client, deadline)?;
        let count = client.read(&mut buffer).ok().filter(|&count| count > 0)?;
        head.extend_from_slice(&buffer[..count]);
        if head.len() > MAX_REQUEST_BYTES {
            return None;
        }
    }
    String::from_utf8(head).ok()
}

fn collect(context: &Context) -> Result<(String, Option<u8>), Error> {
    let mut failed = None;
    let found = survey(context, &mut failed)?;
    Ok((render(&found), failed))
}

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

fn render(found: &[Listed]) -> String {
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
        ("nbd_failed_starts", "Starts of the backend in a row that came to nothing.", |it| {
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

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(formatter, "{}", path.display()),
            Self::Loopback(address) => write!(formatter, "{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use nbd_control::latency::{Bucket, LatencyStatus};

    use super::*;

    #[test]
    fn nobody_else_is_answered() {
        assert_eq!(address("unix:/run/m"), Ok(Address::Unix("/run/m".into())));
        assert_eq!(address("9100").unwrap().to_string(), "127.0.0.1:9100");
        assert_eq!(address("[::1]:9100").unwrap().to_string(), "[::1]:9100");
        for wrong in ["0.0.0.0:9100", "192.0.2.1:80", "unix:", "here", "99999"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }

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
