//! The command line, and the way from it to a served device.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::CompleteEnv;
use nbd_backend::{Endpoint, HolderConnection, JoinError, ServeError, chain, warm_up};
use nbd_control::registry::Registry;
use nbd_log::{Filter, Output};
use serde::Serialize;
use thiserror::Error;

use crate::PROGRAM;
use crate::export::Export;
use crate::export::error::ExportError;
use crate::network::{self, NetworkArgs, NetworkError};
use crate::offline;
use crate::spec::{Spec, SpecError, SpecReport};

const AFTER_HELP: &str = "\
SPEC is one of
  file:PATH[,OPTION]...   a file or a block device
      ro                  read only
      direct              past the page cache (O_DIRECT)
      create=SIZE         make it, sparse and of this size, if there is none
      block=BYTES         logical block size: 512 (default for files), 1024, 2048, 4096
  mem:SIZE[,block=BYTES]  memory, which is lost with the device but not with this process
  nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbd+vsock://CID/EXPORT
                          another NBD server; nbds:// and so on with TLS. Parameters, after ?
                          and with & between them:
      connections=N       so many connections, if the server allows several (1 to 16)
      retry=SECONDS       requests fail when the server is gone for so long; else they wait
      tls-certificates=DIRECTORY, tls-hostname=NAME, tls-verify-peer=0
  exec:COMMAND            a server that is started here, and again when it dies: one that talks
                          on stdin and stdout, or listens on $unixsocket if COMMAND has that.
                          A line for the shell: exec:cd /srv && A=1 nbdkit -s …; its last command
                          serves
  exec+listen:COMMAND     one that is given a listening socket, as by systemd. Options stand before
                          the colon: exec,retry=60: or exec+listen,connections=4,retry=60:
  nbdkit:PLUGIN[,PARAMETER]...
                          a plugin of nbdkit, by name or path, with parameters of its own; a comma
                          in one is written twice
  cow:BASE+DIFF           BASE, a path or a SPEC, is only read; changes go to the file DIFF,
                          which is made if there is none
  null:SIZE               zeroes, whatever is written
  pattern:SIZE            every eight bytes are their offset; read only
or a layer and an @ in front of another SPEC:
  partition:N@            only this partition (GPT or MBR)
  offset:START[+LENGTH]@  only this part
  readonly@               refuses to be written to
  delay:TIME@             takes that time; or read=, write=, flush=, jitter=, seed=
  error:SHARE@            fails so many commands; or rate=, read=, write=, flush=, errno=,
                          from=, to=, sticky=on, seed=
  rate:SIZE@              so many bytes a second; or bytes=, ops=
  log@                    prints a line about each command
  record:FILE@            writes down all changes, for `nbd-serve powercut`
delay, error, rate and log can be changed while they are in use: nbd-ctl set nbd0 error.rate=1%
SIZE is a number of bytes, or one with K, M, G or T: 512K, 10M, 1G.

Usually a holder starts this program, and starts it again when it dies:
  nbd-ctl attach -- nbd-serve file:disk.img
  nbd-ctl attach -- nbd-serve file:/srv/new.img,create=10G
  nbd-ctl attach -- nbd-serve file:/dev/sdb,ro
  nbd-ctl attach -- nbd-serve mem:1G
  nbd-ctl attach -- nbd-serve 'nbds://example.com/disk?connections=4'
  nbd-ctl attach -- nbd-serve 'nbd+unix:///?socket=/run/nbd.sock'
  nbd-ctl attach -- nbd-serve 'exec:nbdkit -s memory 1G'
  nbd-ctl attach -- nbd-serve nbdkit:./my-plugin.so,file=disk.img
  nbd-ctl attach -- nbd-serve cow:base.img+changes.cow
  nbd-ctl attach -- nbd-serve error:1%@delay:5ms@partition:1@file:disk.img

These work on files that are not being served; each has a --help:
  nbd-serve commit cow:base.img+changes.cow
  nbd-serve discard cow:base.img+changes.cow
  nbd-serve powercut disk.log --image before.img -- e2fsck -fy {}

By hand it takes over a device that is attached already, here under a debugger:
  nbd-serve --join nbd0 file:disk.img
  gdb --args nbd-serve --join nbd0 --takeover file:disk.img

With --replay it is given the requests of a recording again, without a device; SPEC is changed by it:
  gdb --args nbd-serve --replay crash.nbdrec file:copy.img
  nbd-serve --replay crash.nbdrec cow:before.img+diff.cow
nbd-ctl replay does the same from outside, and finds the fewest requests that cause a crash.

With --listen it serves NBD clients instead, one export or several, until SIGTERM or SIGINT:
  nbd-serve --listen unix:/run/nbd.sock file:disk.img
  nbd-serve --listen tcp:localhost:10809 root=file:root.img scratch=mem:1G
  nbd-serve --listen tcp:: --tls-certificates /etc/pki/nbd --tls-verify-peer file:/dev/sdb,ro
  nbdinfo nbd+unix:///?socket=/run/nbd.sock
  nbd-client -unix /run/nbd.sock /dev/nbd0

Exit status: 0 the device was detached, the server was asked to stop, or all was replayed; 1 failure;
2 wrong usage.";

/// Serves a file, a block device, memory or another NBD server to the kernel's NBD driver, or to
/// NBD clients.
///
/// As the backend of a device this process may be killed, stopped or replaced at any moment: the
/// device waits, and a successor goes on where it ended.
#[derive(Debug, Parser)]
#[command(name = "nbd-serve", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// Take over this device, like nbd0, whose backend is gone.
    #[arg(long, value_name = "DEVICE", conflicts_with = "listen", add = ArgValueCandidates::new(attached))]
    pub join: Option<String>,

    /// Take over even from a backend that is alive, by killing it.
    #[arg(long, conflicts_with = "listen")]
    pub takeover: bool,

    /// Execute the requests of this recording of `nbd-ctl record`, in place of a device's.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["join", "takeover", "listen"])]
    pub replay: Option<PathBuf>,

    /// Replay each request only when the one before it is answered.
    #[arg(long, requires = "replay")]
    pub one_by_one: bool,

    /// Where relative paths in SPEC begin [default: the working directory].
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,

    /// Print size and properties of the device that SPEC would make, as JSON, and exit.
    #[arg(long, conflicts_with_all = ["join", "takeover", "listen", "replay"])]
    pub print_geometry: bool,

    /// Read SPEC without opening anything, print what is wrong with it, as JSON, and exit.
    #[arg(long, conflicts_with_all = ["join", "takeover", "listen", "replay", "print_geometry"])]
    pub check: bool,

    /// Log this and what is more important: error, warn, info, debug, trace, off; also by crate, like
    /// info,nbd_client=debug [default: $NBD_LOG, else info].
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<Filter>,

    /// Log more: debug, and trace if it is given twice.
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "log_level")]
    pub verbose: u8,

    /// Serving the network.
    #[command(flatten)]
    pub network: NetworkArgs,

    /// What to serve, like file:disk.img, mem:1G, nbd://example.com/disk or
    /// delay:10ms@file:disk.img; with --listen also several, like disk=file:disk.img, where an
    /// export without a name is the default one.
    #[arg(value_name = "[NAME=]SPEC", required = true)]
    pub specs: Vec<OsString>,
}

impl Cli {
    /// What the command line says about the log.
    fn filter(&self) -> Option<Filter> {
        self.log_level.clone().or_else(|| Filter::verbose(self.verbose))
    }
}

/// Why the program ended without success.
#[derive(Debug, Error)]
enum Error {
    #[error("{0}")]
    Arguments(String),
    #[error("{text}")]
    Spec { text: String, source: SpecError },
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(
        "no device to serve: start this program with `nbd-ctl attach -- nbd-serve {0}`, name an \
         attached device whose backend is gone with --join, or serve clients with --listen"
    )]
    NoDevice(String),
    #[error("a device is made of one SPEC, and here are {0}: several are for --listen")]
    SeveralSpecs(usize),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("{description}")]
    Serve { description: String, source: ServeError },
    #[error("--directory {}", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("standard output")]
    Output(#[source] io::Error),
}

impl Error {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Arguments(_)
            | Self::Spec { .. }
            | Self::NoDevice(_)
            | Self::SeveralSpecs(_)
            | Self::Join(JoinError::BadName(_)) => 2,
            Self::Network(error) if error.is_usage() => 2,
            _ => 1,
        }
    }
}

/// All of the program.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Does nothing unless a shell asks, and then ends the program.
    CompleteEnv::with_factory(Cli::command).complete();
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(code) = offline::main(&arguments) {
        return code;
    }
    let cli = Cli::try_parse_from(arguments);
    let filter = cli.as_ref().ok().and_then(Cli::filter);
    nbd_log::init(PROGRAM, filter, Output::JournalOrStderr);
    let code = match cli.map_or_else(|error| refuse(&error), |cli| run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            ExitCode::from(error.exit_code())
        }
    };
    nbd_log::finish();
    code
}

/// The devices that a shell may complete.
fn attached() -> Vec<CompletionCandidate> {
    let devices = Registry::new(None).devices().unwrap_or_default();
    devices.into_iter().map(|index| CompletionCandidate::new(format!("nbd{index}"))).collect()
}

/// Prints what was asked for, or brings the complaint into our form.
fn refuse(error: &clap::Error) -> Result<(), Error> {
    if !error.use_stderr() {
        return error.print().or_else(ignore_closed).map_err(Error::Output);
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    Err(Error::Arguments(text.trim_end().into()))
}

fn run(cli: &Cli) -> Result<(), Error> {
    if let Some(directory) = &cli.directory {
        std::env::set_current_dir(directory)
            .map_err(|source| Error::Directory { path: directory.clone(), source })?;
    }
    if !cli.network.listen.is_empty() {
        return Ok(network::serve(&cli.network, &cli.specs)?);
    }
    let spec = parse_only(&cli.specs);
    if cli.check {
        return check(spec);
    }
    if cli.print_geometry {
        return print_geometry(&Export::open(spec?, None)?);
    }
    let endpoint = endpoint(cli);
    // A holder that started this program waits to hear from it, whatever is wrong.
    let holder = match &endpoint {
        Ok(endpoint @ Endpoint::Inherited(_)) => Some(HolderConnection::connect(endpoint)?),
        _ => None,
    };
    let told = holder.as_ref().and_then(HolderConnection::attached);
    // The storage of one who joins by hand may be in use, and is not looked at either.
    let attached = told.or_else(|| endpoint.as_ref().ok().and_then(Endpoint::attached));
    let open = |spec| -> Result<_, Error> {
        let export = Export::open(spec, attached.as_ref())?;
        export.check_keeps_writes()?;
        Ok(export)
    };
    let export = match spec.and_then(open) {
        Ok(export) => export,
        Err(error) => {
            if let Some(holder) = holder {
                holder.fail(&chain(&error));
            }
            return Err(error);
        }
    };
    let holder = match holder {
        Some(holder) => holder,
        None => HolderConnection::connect(&endpoint?)?,
    };
    serve(holder, export, cli)
}

/// A device has one backend, and this is it.
fn parse_only(specs: &[OsString]) -> Result<Spec, Error> {
    let [text] = specs else {
        return Err(Error::SeveralSpecs(specs.len()));
    };
    Spec::parse(text).map_err(|source| {
        let text = text.to_string_lossy().into();
        Error::Spec { text, source }
    })
}

fn endpoint(cli: &Cli) -> Result<Endpoint, Error> {
    let endpoint = match (&cli.replay, &cli.join) {
        (Some(path), _) => Ok(Endpoint::Replay { path: path.clone(), one_by_one: cli.one_by_one }),
        (None, Some(device)) => Endpoint::of_device(&Registry::new(None), device),
        (None, None) => Endpoint::from_environment(),
    };
    endpoint.map_err(|error| match error {
        JoinError::NoEndpoint => {
            Error::NoDevice(cli.specs.join(OsStr::new(" ")).to_string_lossy().into())
        }
        other => other.into(),
    })
}

fn serve(mut holder: HolderConnection, mut export: Export, cli: &Cli) -> Result<(), Error> {
    match holder.attached() {
        Some(attached) if holder.is_to_grow() => {
            if let Err(error) = export.grow(&attached) {
                holder.fail(&chain(&error));
                return Err(error.into());
            }
        }
        Some(attached) => export.clamp_size(&attached),
        None => {}
    }
    examine(&mut holder, &mut export, cli)?;
    let description = export.description().to_owned();
    warm_up(&holder);
    let mut session = holder.hello(&description, &export.geometry(), cli.takeover)?;
    let backend = match export.open_storage(&mut session) {
        Ok(backend) => backend,
        Err(error) => {
            session.fail(&chain(&error));
            return Err(error.into());
        }
    };
    if cli.join.is_some() {
        tracing::info!("{}: serving {description}", session.device());
    }
    match session.serve(backend) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::Serve { description, source }),
    }
}

/// Looks whether it could take over, while the predecessor that it would cost its life still serves.
fn examine(holder: &mut HolderConnection, export: &mut Export, cli: &Cli) -> Result<(), Error> {
    if cli.join.is_some() && !cli.takeover {
        return Ok(());
    }
    let Some(stored) = holder.stored()? else {
        return Ok(());
    };
    export.examine(stored).map_err(|error| {
        holder.tell_failure(&chain(&error));
        error.into()
    })
}

/// What `--print-geometry` prints.
#[derive(Serialize)]
struct Shape<'a> {
    description: &'a str,
    size: u64,
    block_size: u32,
    /// NBD transmission flags.
    flags: u16,
    read_only: bool,
}

/// Prints what a SPEC that can be read has of its own, and then fails with the mistake of one that cannot.
fn check(spec: Result<Spec, Error>) -> Result<(), Error> {
    let found = match &spec {
        Ok(spec) => SpecReport::of(spec),
        Err(error) => SpecReport::wrong(chain(error)),
    };
    print_json(&found)?;
    spec.map(drop)
}

fn print_geometry(export: &Export) -> Result<(), Error> {
    export.tell();
    let geometry = export.geometry();
    let info = geometry.info();
    let shape = Shape {
        description: export.description(),
        size: info.size,
        block_size: info.block_size,
        flags: info.flags,
        read_only: geometry.capabilities.read_only,
    };
    print_json(&shape)
}

fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let print = || -> io::Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, value)?;
        out.write_all(b"\n")?;
        out.flush()
    };
    print().or_else(ignore_closed).map_err(Error::Output)
}

/// A reader that has seen enough is no failure.
fn ignore_closed(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    }
}
