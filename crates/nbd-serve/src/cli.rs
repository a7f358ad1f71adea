//! The command line, and the way from it to a served device.

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter, CompletionCandidate};
use clap_complete::env::CompleteEnv;
use nbd_backend::{Endpoint, HolderConnection, JoinError, ServeError, chain, warm_up};
use nbd_control::completion;
use nbd_control::registry::Registry;
use nbd_log::{Filter, Output};
use serde::Serialize;
use thiserror::Error;

use crate::PROGRAM;
use crate::export::Export;
use crate::export::error::ExportError;
use crate::listing::{self, ListError};
use crate::network::{self, NetworkArgs, NetworkError};
use crate::offline;
use crate::spec::{Spec, SpecError, SpecReport};

const AFTER_HELP: &str = "\
SPEC is one of
  file:PATH[,OPTION]...   a file or a block device
      ro                  read only
      direct              bypass the page cache (O_DIRECT)
      create=SIZE         create a sparse file of this size if there is none
      block=BYTES         logical block size: 512 (default for files), 1024, 2048, 4096
  mem:SIZE[,block=BYTES]  memory, kept until the device is detached
  nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, nbd+vsock://CID/EXPORT
                          another NBD server; nbds:// and so on with TLS. Parameters follow ?,
                          with & between them:
      connections=N       use N connections, 1 to 16, if the server allows several
      retry=SECONDS       requests fail after the server has been gone so long; without it they wait
      tls-certificates=DIRECTORY, tls-hostname=NAME, tls-verify-peer=0
  exec:COMMAND            an NBD server, started by the shell, and again when it dies. It talks on
                          stdin and stdout, or listens on $unixsocket if COMMAND mentions that:
                          exec:cd /srv && A=1 nbdkit -s …
  exec+listen:COMMAND     the same for a server that gets a listening socket as from systemd.
                          Options precede the colon: exec,retry=60: or exec+listen,connections=4:
  nbdkit:PLUGIN[,PARAMETER]...
                          a plugin of nbdkit, by name or path, with its parameters; a comma in a
                          parameter is written twice
  rbd:POOL/IMAGE[,OPTION]...
                          an image of a Ceph cluster, by librbd; also rbd:POOL/NAMESPACE/IMAGE and
                          rbd:CLUSTER/POOL/NAMESPACE/IMAGE, where NAMESPACE may be empty, and
                          …@SNAPSHOT, which is read-only; a comma in a name is written twice
      conf=PATH           the configuration [default: /etc/ceph/CLUSTER.conf]
      user=NAME           without `client.` [default: admin]
      keyring=PATH        the file with the user's key
      ro                  read-only, without a lock
      take-over           at attach: take it from another client, which the cluster shuts out
      unlocked            also an image without exclusive-lock: nothing keeps others from writing
  cow:BASE+DIFF           BASE, a path or a SPEC, is only read; changes go to the file DIFF, which
                          is created if there is none
  null:SIZE               reads as zeroes, drops writes
  pattern:SIZE            every eight bytes are their offset; read-only
or LAYER@SPEC, another SPEC changed by a layer:
  partition:N@            only this partition (GPT or MBR)
  offset:START[+LENGTH]@  only this part
  readonly@               refuses writes
  delay:TIME@             delays every command; or read=, write=, flush=, jitter=, seed=
  error:SHARE@            fails this share of commands, like 1%; or rate=, read=, write=, flush=,
                          errno=, from=, to=, sticky=on, seed=
  rate:SIZE@              limits bytes a second; or bytes=, ops=
  log@                    logs a line for each command
  record:FILE@            logs all writes, for `nbd-serve powercut`
Settings of delay, error, rate and log can be changed in use: nbd-ctl set nbd0 error.rate=1%
SIZE is a number of bytes, or one with K, M, G or T (powers of 1024): 512K, 10M, 1G.

To make a kernel device of a SPEC:
  nbd-ctl attach file:disk.img
  nbd-ctl attach file:/srv/new.img,create=10G
  nbd-ctl attach file:/dev/sdb,ro
  nbd-ctl attach mem:1G
  nbd-ctl attach 'nbds://example.com/disk?connections=4'
  nbd-ctl attach 'nbd+unix:///?socket=/run/nbd.sock'
  nbd-ctl attach 'exec:nbdkit -s file disk.img'
  nbd-ctl attach nbdkit:./my-plugin.so,file=disk.img
  nbd-ctl attach rbd:rbd/disk,user=nbd
  nbd-ctl attach cow:base.img+changes.cow
  nbd-ctl attach error:1%@delay:5ms@partition:1@file:disk.img

To work on files that are not being served; each has a --help:
  nbd-serve commit cow:base.img+changes.cow
  nbd-serve discard cow:base.img+changes.cow
  nbd-serve powercut disk.log --image before.img -- e2fsck -fy {}

To serve an attached device by hand, here under a debugger:
  nbd-serve --join nbd0 file:disk.img
  gdb --args nbd-serve --join nbd0 --takeover file:disk.img

To execute a recording again, without a device; this changes the storage:
  gdb --args nbd-serve --replay crash.nbdrec file:copy.img
  nbd-serve --replay crash.nbdrec cow:before.img+diff.cow
nbd-ctl replay does the same, and finds the fewest requests that cause a crash.

To serve NBD clients, until SIGTERM or SIGINT:
  nbd-serve --listen unix:/run/nbd.sock file:disk.img
  nbd-serve --listen tcp:localhost:10809 root=file:root.img scratch=mem:1G
  nbd-serve --listen tcp:: --tls-certificates /etc/pki/nbd --tls-verify-peer file:/dev/sdb,ro
  nbd-serve --list nbd+unix:///?socket=/run/nbd.sock
  nbd-client -unix /run/nbd.sock /dev/nbd0

Exit status: 0 the device was detached, the server was told to stop, or all was replayed; 1 failed;
2 wrong usage.";

/// Serves a file, a block device, memory or another NBD server to the kernel's NBD driver, or to
/// NBD clients.
///
/// As the backend of a device it may be killed, stopped or replaced at any time: I/O waits, and the
/// next backend answers what was not answered.
#[derive(Debug, Parser)]
#[command(name = "nbd-serve", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// Serve this attached device, like nbd0, which has no backend.
    #[arg(long, value_name = "DEVICE", conflicts_with = "listen", add = ArgValueCandidates::new(attached))]
    pub join: Option<String>,

    /// With --join: kill the present backend of the device first.
    #[arg(long, conflicts_with = "listen")]
    pub takeover: bool,

    /// Execute the requests of this recording of `nbd-ctl record`, without a device.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["join", "takeover", "listen"])]
    pub replay: Option<PathBuf>,

    /// Replay each request after the one before it is answered.
    #[arg(long, requires = "replay")]
    pub one_by_one: bool,

    /// Directory of relative paths in SPEC [default: the working directory].
    #[arg(long, value_name = "DIR")]
    pub directory: Option<PathBuf>,

    /// Open SPEC, print the size and abilities of its device as JSON, and exit.
    #[arg(long, conflicts_with_all = ["join", "takeover", "listen", "replay"])]
    pub print_geometry: bool,

    /// Check the text of SPEC without opening anything, print mistakes as JSON, and exit.
    #[arg(long, conflicts_with_all = ["join", "takeover", "listen", "replay", "print_geometry"])]
    pub check: bool,

    /// Print the exports of another NBD server, named by a URI like nbd://HOST, and exit.
    #[arg(long, conflicts_with_all = ["join", "takeover", "listen", "replay", "print_geometry", "check"])]
    pub list: bool,

    /// Lowest level to log: error, warn, info, debug, trace, or off; also by crate, like
    /// info,nbd_client=debug [default: $NBD_LOG, else info].
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<Filter>,

    /// Log level debug; given twice, trace.
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "log_level")]
    pub verbose: u8,

    /// Serving the network.
    #[command(flatten)]
    pub network: NetworkArgs,

    /// What to serve, like file:disk.img or mem:1G. With --listen there may be several with names,
    /// like disk=file:disk.img; one without a name is the default export.
    #[arg(value_name = "[NAME=]SPEC", required = true, add = ArgValueCompleter::new(specs))]
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
        "no device to serve: use `nbd-ctl attach {0}` to make a device, --join nbd0 to serve an attached device without a backend, or --listen to serve NBD clients"
    )]
    NoDevice(String),
    #[error("a device has one SPEC, and here are {0}: only --listen takes several")]
    SeveralSpecs(usize),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    List(#[from] ListError),
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
            Self::List(ListError::NotUri(_)) => 2,
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
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            error.exit_code()
        }
    };
    nbd_log::finish();
    nbd_rbd::end_if_left_open(code);
    code.into()
}

/// The devices that a shell may complete.
fn attached() -> Vec<CompletionCandidate> {
    let devices = Registry::new(None).devices().unwrap_or_default();
    devices.into_iter().map(|index| CompletionCandidate::new(format!("nbd{index}"))).collect()
}

/// SPECs that begin like this, also behind the name of an export.
fn specs(typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(text) = typed.to_str() else { return Vec::new() };
    match text.split_once('=') {
        Some((name, spec)) if !name.contains([':', '@', '/']) => completion::specs(spec)
            .into_iter()
            .map(|candidate| candidate.add_prefix(format!("{name}=")))
            .collect(),
        _ => completion::specs(text),
    }
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
    if cli.list {
        let table = listing::list(&spec?)?;
        let print = io::stdout().lock().write_all(table.as_bytes());
        return print.or_else(ignore_closed).map_err(Error::Output);
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
    if cli.join.is_some() && !cli.takeover && !holder.takes_over() {
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
