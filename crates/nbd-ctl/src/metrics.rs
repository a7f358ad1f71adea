//! `nbd-ctl metrics`: what the holders count, as OpenMetrics text.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_control::status::{BackendState, Status};

use crate::context::{Context, print, say};
use crate::error::Error;
use crate::inspect::{Listed, survey};

const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long a client may take to ask, or to take its answer.
const CLIENT_LIMIT: Duration = Duration::from_secs(5);
/// No more than this is read of what a client asks.
const LONGEST_REQUEST: usize = 8192;
const STATES: [BackendState; 7] = [
    BackendState::Starting,
    BackendState::Running,
    BackendState::Stopped,
    BackendState::Restarting,
    BackendState::Waiting,
    BackendState::Down,
    BackendState::Failed,
];

/// Where to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Loopback(SocketAddr),
}

/// `unix:PATH`, a port, or a loopback address with a port. What is counted is nobody else's.
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
pub(crate) fn serve(context: &Context, address: &Address) -> Result<(), Error> {
    let failed = |source| Error::Listen { address: address.to_string(), source };
    match address {
        Address::Loopback(at) => {
            let listener = TcpListener::bind(at).map_err(failed)?;
            say(&format!("listening on {}", listener.local_addr().map_err(failed)?));
            while context.wait_for_input(listener.as_fd()) {
                if let Ok((stream, _)) = listener.accept() {
                    let _ = stream.set_read_timeout(Some(CLIENT_LIMIT));
                    let _ = stream.set_write_timeout(Some(CLIENT_LIMIT));
                    answer(context, stream)?;
                }
            }
        }
        Address::Unix(path) => {
            let listener = bind(path).map_err(failed)?;
            say(&format!("listening on {}", path.display()));
            while context.wait_for_input(listener.as_fd()) {
                if let Ok((stream, _)) = listener.accept() {
                    let _ = stream.set_read_timeout(Some(CLIENT_LIMIT));
                    let _ = stream.set_write_timeout(Some(CLIENT_LIMIT));
                    answer(context, stream)?;
                }
            }
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// A socket that a killed predecessor left is in nobody's way.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let is_socket = path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err() {
        fs::remove_file(path)?;
    }
    UnixListener::bind(path)
}

/// One that misbehaves is no reason to stop; that the registry cannot be read is.
fn answer(context: &Context, mut stream: impl Read + Write) -> Result<(), Error> {
    let Some(request) = read_head(&mut stream) else {
        return Ok(());
    };
    let (status, body) = match request.split_ascii_whitespace().take(2).collect::<Vec<_>>()[..] {
        ["GET", "/metrics" | "/"] => ("200 OK", collect(context)?.0),
        ["GET", _] => ("404 Not Found", "try /metrics\n".into()),
        _ => ("405 Method Not Allowed", "only GET is understood\n".into()),
    };
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    let _ = stream.flush();
    Ok(())
}

fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut buffer).ok().filter(|&count| count > 0)?;
        head.extend_from_slice(&buffer[..count]);
        if head.len() > LONGEST_REQUEST {
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
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| {
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                format!("{name}=\"{value}\"")
            })
            .collect();
        let labels = labels.join(",");
        let _ = writeln!(self.out, "{}{}{{{labels}}} {value}", self.name, self.suffix);
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
    states(text, &attached);
    out.push_str("# EOF\n");
    out
}

fn gauges(text: &mut String, attached: &[&Status]) {
    type Value = fn(&Status) -> Option<f64>;
    let families: [(&'static str, &str, Value); 4] = [
        ("nbd_size_bytes", "Size of the device.", |it| Some(it.export.size as f64)),
        ("nbd_in_flight", "Requests without an answer.", |it| Some(it.in_flight.len() as f64)),
        ("nbd_oldest_request_seconds", "How long the oldest of them has waited.", |it| {
            Some(it.in_flight.first().map_or(0, |request| request.age_ms) as f64 / 1000.0)
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
    fn a_description_cannot_break_out_of_its_label() {
        let mut text = String::new();
        Family::new(&mut text, "x", "info", "y").sample(&[("a", "q\"\\\nz")], 1);
        assert!(text.ends_with("x_info{a=\"q\\\"\\\\\\nz\"} 1\n"), "{text}");
    }
}
