//! The command line, and the way from it to a served device.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::CompleteEnv;
use nbd_backend::{Endpoint, JoinError, Link, ServeError, chain};
use nbd_control::registry::Registry;
use serde::Serialize;
use thiserror::Error;

use crate::export::{Export, ExportError};
use crate::spec::{Spec, SpecError};

const AFTER_HELP: &str = "\
SPEC is one of
  file:PATH[,OPTION]...   a file or a block device
      ro                  read only
      direct              past the page cache (O_DIRECT)
      create=SIZE         make it, sparse and of this size, if there is none
      block=BYTES         logical block size: 512 (default for files), 1024, 2048, 4096
  mem:SIZE[,block=BYTES]  memory, which is lost with the device but not with this process
SIZE is a number of bytes, or one with K, M, G or T: 512K, 10M, 1G.

Usually a holder starts this program, and starts it again when it dies:
  nbd-ctl attach -- nbd-serve file:disk.img
  nbd-ctl attach -- nbd-serve file:/srv/new.img,create=10G
  nbd-ctl attach -- nbd-serve file:/dev/sdb,ro
  nbd-ctl attach -- nbd-serve mem:1G

By hand it takes over a device that is attached already, here under a debugger:
  nbd-serve --join nbd0 file:disk.img
  gdb --args nbd-serve --join nbd0 --takeover file:disk.img

Exit status: 0 the device was detached, 1 failure, 2 wrong usage.";

/// Serves a file, a block device or memory to the kernel's NBD driver.
///
/// This process may be killed, stopped or replaced at any moment: the device waits, and a
/// successor goes on where it ended.
#[derive(Debug, Parser)]
#[command(name = "nbd-serve", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// Take over this device, like nbd0, whose backend is gone.
    #[arg(long, value_name = "DEVICE", add = ArgValueCandidates::new(attached))]
    pub join: Option<String>,

    /// Take over even from a backend that is alive, by killing it.
    #[arg(long)]
    pub takeover: bool,

    /// Print size and properties of the device that SPEC would make, as JSON, and exit.
    #[arg(long, conflicts_with_all = ["join", "takeover"])]
    pub print_geometry: bool,

    /// What to serve, like file:disk.img or mem:1G.
    #[arg(value_name = "SPEC")]
    pub spec: OsString,
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
        "no device to serve: start this program with `nbd-ctl attach -- nbd-serve {0}`, or name \
         an attached device whose backend is gone with --join"
    )]
    NoDevice(String),
    #[error(transparent)]
    Join(#[from] JoinError),
    #[error("{description}")]
    Serve { description: String, source: ServeError },
    #[error("standard output")]
    Output(#[source] io::Error),
}

impl Error {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Arguments(_)
            | Self::Spec { .. }
            | Self::NoDevice(_)
            | Self::Join(JoinError::BadName(_)) => 2,
            _ => 1,
        }
    }
}

/// All of the program.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    // Does nothing unless a shell asks, and then ends the program.
    CompleteEnv::with_factory(Cli::command).complete();
    match Cli::try_parse_from(arguments).map_or_else(|error| refuse(&error), |cli| run(&cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd-serve: {}", chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
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
    let spec = Spec::parse(&cli.spec).map_err(|source| {
        let text = cli.spec.to_string_lossy().into();
        Error::Spec { text, source }
    });
    if cli.print_geometry {
        return print_geometry(&Export::open(spec?)?);
    }
    let endpoint = endpoint(cli);
    // A holder that started this program waits to hear from it, whatever is wrong.
    let link = match &endpoint {
        Ok(endpoint @ Endpoint::Inherited(_)) => Some(Link::connect(endpoint)?),
        _ => None,
    };
    let export = match spec.and_then(|spec| Ok(Export::open(spec)?)) {
        Ok(export) => export,
        Err(error) => {
            if let Some(link) = link {
                link.fail(&chain(&error));
            }
            return Err(error);
        }
    };
    let link = match link {
        Some(link) => link,
        None => Link::connect(&endpoint?)?,
    };
    serve(link, export, cli)
}

fn endpoint(cli: &Cli) -> Result<Endpoint, Error> {
    let endpoint = match &cli.join {
        Some(device) => Endpoint::of_device(&Registry::new(None), device),
        None => Endpoint::from_environment(),
    };
    endpoint.map_err(|error| match error {
        JoinError::NoEndpoint => Error::NoDevice(cli.spec.to_string_lossy().into()),
        other => other.into(),
    })
}

fn serve(link: Link, mut export: Export, cli: &Cli) -> Result<(), Error> {
    if let Some(attached) = link.attached() {
        export.agree(&attached);
    }
    let description = export.description().to_owned();
    let mut session = link.hello(&description, &export.geometry(), cli.takeover)?;
    let backend = match export.settle(&mut session) {
        Ok(backend) => backend,
        Err(error) => {
            session.fail(&chain(&error));
            return Err(error.into());
        }
    };
    if cli.join.is_some() {
        eprintln!("nbd-serve: {}: serving {description}", session.device());
    }
    match session.serve(backend) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::Serve { description, source }),
    }
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
    let print = || -> io::Result<()> {
        let mut out = io::stdout().lock();
        serde_json::to_writer(&mut out, &shape)?;
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
