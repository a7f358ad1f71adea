//! Exports for the network: what was asked for on the command line becomes a server.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, ValueEnum};
use nbd_control::service;
use nbd_net::address::Listen;
use nbd_net::descriptors;
use nbd_net::listener::{ListenError, Listener, Listeners};
use nbd_net::tls::{CredentialsError, ServerTls};
use nbd_server::{Export as NetworkExport, Limits, Security, Server};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};
use thiserror::Error;

use crate::export::Export;
use crate::export::error::ExportError;
use crate::size;
use crate::spec::{self, Spec, SpecError};

/// Longest name of an export (specification: "Conventions").
const MAX_NAME_LEN: usize = 4096;
/// What clients may rely on where nothing else is agreed on, and the most that headers can say.
const PAYLOADS: std::ops::RangeInclusive<u64> = 4096..=1 << 30;
/// For storage, connections to other servers, and programs that are started.
const SPARE_DESCRIPTORS: usize = 64;
/// With less memory than that clients would wait for each other all the time.
const MIN_MEMORY: u64 = 1 << 20;

/// The part of the command line that is about the network.
#[derive(Debug, Args)]
#[command(next_help_heading = "As a network server")]
pub struct NetworkArgs {
    /// Serve NBD clients here; may be repeated.
    ///
    /// unix:PATH, tcp:HOST:PORT, vsock:PORT, systemd (the sockets of a socket unit), or - (stdin is
    /// the connection of one client).
    #[arg(long, value_name = "WHERE")]
    pub listen: Vec<Listen>,

    /// Permissions of unix sockets.
    #[arg(long, value_name = "OCTAL", default_value = "600", value_parser = parse_mode, requires = "listen")]
    pub socket_mode: u32,

    /// Make all exports read-only.
    #[arg(long, requires = "listen")]
    pub read_only: bool,

    /// Directory with server-cert.pem and server-key.pem, which are read once, at the start.
    #[arg(long, value_name = "DIRECTORY", requires = "listen")]
    pub tls_certificates: Option<PathBuf>,

    /// Whether clients use TLS [default: required with --tls-certificates, else off].
    #[arg(long, value_name = "WHEN", requires = "listen")]
    pub tls: Option<TlsMode>,

    /// Require client certificates that are signed by ca-cert.pem and not revoked by ca-crl.pem, if
    /// that file exists.
    #[arg(long, requires = "tls_certificates")]
    pub tls_verify_peer: bool,

    /// Most clients at a time; further ones are disconnected.
    ///
    /// The limit of open files is raised for them. If it cannot be raised far enough, fewer clients
    /// are served, and a warning says so.
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().connections, requires = "listen")]
    pub max_connections: usize,

    /// Longest read or write; 4096 to 1G.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = parse_payload, requires = "listen")]
    pub max_payload: u32,

    /// Memory for the data of all requests under way; further requests queue. At least 1M.
    ///
    /// Besides, each client has buffers of its own, 4M at most, so that small requests do not queue. A
    /// long write takes memory as its data comes, 2M at a time. While other clients wait for memory,
    /// a client is disconnected that has not read replies or not finished a request for 30 s, or is
    /// 30 s behind a rate of 256K a second.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory, requires = "listen")]
    pub max_memory: u64,

    /// Seconds that a client may take for the handshake.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds, requires = "listen")]
    pub handshake_timeout: Duration,

    /// Seconds without a request after which a client is disconnected [default: never].
    ///
    /// A client whose machine has vanished is disconnected in any case: after 60 to 90 s without an
    /// acknowledgement, or after six minutes if it had stopped reading before.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, requires = "listen")]
    pub idle_timeout: Option<Duration>,

    /// Seconds to wait for requests under way after SIGTERM or SIGINT.
    ///
    /// The connection of a client whose requests take longer ends with this process, after which
    /// nothing is written any more.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds, requires = "listen")]
    pub grace: Duration,
}

/// Whether connections are secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TlsMode {
    /// No client uses TLS.
    Off,
    /// Clients may use TLS.
    Optional,
    /// Clients must use TLS.
    Required,
}

/// Why there is no server.
#[derive(Debug, Error)]
pub(crate) enum NetworkError {
    #[error("{text}")]
    Spec { text: String, source: SpecError },
    #[error("{0}: the name of an export must be UTF-8")]
    NameEncoding(String),
    #[error("the name of an export has {0} bytes, and {MAX_NAME_LEN} are the most: choose another")]
    LongName(usize),
    #[error("there are two exports {}: give each its own name, like NAME=SPEC", name(.0))]
    SameName(String),
    #[error("--tls {0} needs --tls-certificates DIRECTORY with server-cert.pem and server-key.pem")]
    NoCertificates(&'static str),
    #[error("--tls off and --tls-certificates contradict each other: leave one of them out")]
    NeedlessCertificates,
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("cannot prepare for signals")]
    Signals(#[source] io::Error),
    #[error("cannot accept connections any more")]
    Accept(#[source] io::Error),
}

impl NetworkError {
    /// Whether the command line is to blame, whatever the machine.
    pub(crate) fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Spec { .. }
                | Self::NameEncoding(_)
                | Self::LongName(_)
                | Self::SameName(_)
                | Self::NoCertificates(_)
                | Self::NeedlessCertificates
        )
    }
}

fn name(name: &str) -> String {
    if name.is_empty() { "without a name".into() } else { format!("named {name:?}") }
}

/// Serves until a signal asks for the end.
pub(crate) fn serve(args: &NetworkArgs, texts: &[OsString]) -> Result<(), NetworkError> {
    let specs = parse_exports(texts)?;
    let security = security(args)?;
    let (mut exports, mut backends) = (Vec::new(), Vec::new());
    for (name, spec) in specs {
        let export = Export::open(spec, None)?;
        let description = export.description().to_owned();
        let backend = export.alone()?;
        backends.push(Arc::clone(&backend));
        let export = NetworkExport::new(name, description, backend);
        exports.push(if args.read_only { export.read_only() } else { export });
    }
    let served: Vec<_> = exports.iter().map(NetworkExport::to_string).collect();
    // Not before: to open an export may mean to wait for another server, and there is nothing yet
    // that a signal would have to end in order.
    let stop = stop_signal().map_err(NetworkError::Signals)?;
    let mut listeners = Vec::new();
    for listen in &args.listen {
        listeners.extend(Listener::bind_with_mode(listen, args.socket_mode)?);
    }
    let listeners = Listeners::new(listeners);
    let places: Vec<_> = listeners.addresses().iter().map(ToString::to_string).collect();
    for place in &places {
        tracing::info!("serving {} on {place}", served.join(", "));
    }
    service::ready(&format!("serving {} on {}", served.join(", "), places.join(", ")));
    let connections = connections(args.max_connections);
    let limits = Limits { connections, ..limits(args) };
    let server = Server::new(exports, security, limits);
    let served = server.serve(listeners, stop.as_fd());
    backends.iter().for_each(|backend| backend.close());
    served.map_err(NetworkError::Accept)
}

/// As many clients as there are descriptors for. Those beyond that are turned away: if accepting them
/// failed, they would wait without an answer.
fn connections(wanted: usize) -> usize {
    let own = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) + SPARE_DESCRIPTORS;
    let limit = match descriptors::raise_limit((wanted + own) as u64) {
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::warn!("cannot raise the limit of open files: {error}");
            return wanted;
        }
    };
    let most = limit.saturating_sub(own).max(1);
    if most < wanted {
        tracing::warn!(
            "{most} clients at a time, and not {wanted}: this process may have {limit} open files \
             only (raise LimitNOFILE= of the service, or `ulimit -n`)"
        );
    }
    most.min(wanted)
}

fn limits(args: &NetworkArgs) -> Limits {
    Limits {
        connections: args.max_connections,
        handshake: args.handshake_timeout,
        idle: args.idle_timeout,
        memory: args.max_memory,
        max_payload: args.max_payload,
        grace: args.grace,
        ..Limits::default()
    }
}

fn security(args: &NetworkArgs) -> Result<Security, NetworkError> {
    let load = |directory| ServerTls::load(directory, args.tls_verify_peer);
    Ok(match (args.tls, &args.tls_certificates) {
        (None | Some(TlsMode::Off), None) => Security::None,
        (Some(TlsMode::Off), Some(_)) => return Err(NetworkError::NeedlessCertificates),
        (Some(TlsMode::Optional), None) => return Err(NetworkError::NoCertificates("optional")),
        (Some(TlsMode::Required), None) => return Err(NetworkError::NoCertificates("required")),
        (Some(TlsMode::Optional), Some(directory)) => Security::Optional(load(directory)?),
        (None | Some(TlsMode::Required), Some(directory)) => Security::Required(load(directory)?),
    })
}

/// Becomes readable at the first signal that asks for the end. The second one ends this process at
/// once: whoever sends it does not want to wait.
fn stop_signal() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    let is_second = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&is_second))?;
        flag::register(signal, Arc::clone(&is_second))?;
        pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// Takes `NAME=SPEC` apart. A specification starts with a word and a colon, so an equals sign
/// before the first colon is not its own, but for options of a program.
fn split_name(text: &OsStr) -> (&[u8], &OsStr) {
    let bytes = text.as_bytes();
    if spec::program(bytes).is_some() {
        return (&[], text);
    }
    match bytes.iter().position(|byte| matches!(byte, b'=' | b':')) {
        Some(at) if bytes[at] == b'=' => (&bytes[..at], OsStr::from_bytes(&bytes[at + 1..])),
        _ => (&[], text),
    }
}

fn parse_exports(texts: &[OsString]) -> Result<Vec<(String, Spec)>, NetworkError> {
    let mut exports: Vec<(String, Spec)> = Vec::new();
    for text in texts {
        let (name, spec) = split_name(text);
        let shown = || text.to_string_lossy().into_owned();
        let name = str::from_utf8(name).map_err(|_| NetworkError::NameEncoding(shown()))?;
        if name.len() > MAX_NAME_LEN {
            return Err(NetworkError::LongName(name.len()));
        }
        if exports.iter().any(|(other, _)| other == name) {
            return Err(NetworkError::SameName(name.into()));
        }
        let failed = |source| NetworkError::Spec { text: shown(), source };
        let mut spec = Spec::parse(spec).map_err(failed)?;
        spec.name_export(name);
        exports.push((name.into(), spec));
    }
    Ok(exports)
}

fn parse_mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "write octal digits, like 660".into())
}

fn parse_payload(text: &str) -> Result<u32, String> {
    let size = size::parse(text).map_err(|error| error.to_string())?;
    match u32::try_from(size) {
        Ok(payload) if PAYLOADS.contains(&size) => Ok(payload),
        _ => Err("write a size from 4K to 1G".into()),
    }
}

fn parse_memory(text: &str) -> Result<u64, String> {
    let size = size::parse(text).map_err(|error| error.to_string())?;
    let fits = size >= MIN_MEMORY;
    fits.then_some(size).ok_or_else(|| "write a size from 1M, like 512M".into())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "write a number of seconds above 0, like 10 or 0.5".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(text: &str) -> (&str, &str) {
        let (name, spec) = split_name(OsStr::new(text));
        (str::from_utf8(name).unwrap(), spec.to_str().unwrap())
    }

    #[test]
    fn names_are_told_from_options() {
        assert_eq!(split("mem:1G"), ("", "mem:1G"));
        assert_eq!(split("file:a,create=1G"), ("", "file:a,create=1G"));
        assert_eq!(split("a=file:b,create=1G"), ("a", "file:b,create=1G"));
        assert_eq!(split("=mem:1G"), ("", "mem:1G"));
        assert_eq!(split("a/b c=mem:1G"), ("a/b c", "mem:1G"));
        assert_eq!(split("nonsense"), ("", "nonsense"));
        assert_eq!(split("exec,retry=1:a"), ("", "exec,retry=1:a"));
        assert_eq!(split("exec=exec,retry=1:a"), ("exec", "exec,retry=1:a"));
    }

    #[test]
    fn names_are_unique_and_not_too_long() {
        let parse = |texts: &[&str]| {
            let texts: Vec<_> = texts.iter().map(OsString::from).collect();
            let names = |exports: Vec<(String, Spec)>| exports.into_iter().map(|(name, _)| name);
            parse_exports(&texts).map(|exports| names(exports).collect::<Vec<_>>())
        };
        assert_eq!(parse(&["mem:1M", "b=mem:1M"]).unwrap(), ["", "b"]);
        let error = parse(&["mem:1M", "=mem:1M"]).unwrap_err().to_string();
        assert!(error.contains("two exports without a name"), "{error}");
        let error = parse(&["a=mem:1M", "a=mem:2M"]).unwrap_err().to_string();
        assert!(error.contains("two exports named \"a\""), "{error}");
        let longest = "a".repeat(MAX_NAME_LEN);
        assert_eq!(parse(&[&format!("{longest}=mem:1M")]).unwrap(), [longest.as_str()]);
        assert!(parse(&[&format!("{longest}a=mem:1M")]).is_err());
    }

    #[test]
    fn limits_are_numbers_that_make_sense() {
        assert_eq!(parse_mode("660"), Ok(0o660));
        for text in ["", "1000", "8", "rw"] {
            assert!(parse_mode(text).is_err(), "{text}");
        }
        assert_eq!(parse_payload("64M"), Ok(64 << 20));
        for text in ["", "0", "1K", "2G", "x"] {
            assert!(parse_payload(text).is_err(), "{text}");
        }
        assert_eq!(parse_memory("1M"), Ok(1 << 20));
        for text in ["", "0", "1023K", "x"] {
            assert!(parse_memory(text).is_err(), "{text}");
        }
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "0", "-1", "nan", "inf", "1s"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
