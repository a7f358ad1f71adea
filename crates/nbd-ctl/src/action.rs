//! The command line as it is meant: every name checked, every program found.

pub(crate) mod complete;
pub(crate) mod parse;

use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd_control::attach_options::AttachOptions;
use nbd_control::control::Request;

use crate::cli::{
    AttachArguments, Command, ListArguments, RecordArguments, TopArguments, TraceArguments, Until,
};
use crate::config::{Config, ConfigError, default_file};
use crate::context::eprint;
use crate::debug::Debug;
use crate::debug::record::Record;
use crate::debug::replay::Replay;
use crate::device::{Device, is_name};
use crate::error::Error;
use crate::inspect::metrics::Listen;
use crate::inspect::why::Target;
use crate::program;
use crate::spec;

/// Something to do.
#[derive(Debug)]
pub(crate) enum Action {
    Attach(Attach),
    AttachAll {
        config: Config,
    },
    CheckConfig {
        file: PathBuf,
    },
    Doctor {
        json: bool,
        fix: bool,
    },
    Metrics {
        listen: Option<Listen>,
    },
    Top {
        /// Empty for all.
        devices: Vec<Device>,
        wanted: TopArguments,
    },
    Detach(Detach),
    Status {
        device: Option<Device>,
        json: bool,
    },
    Trace {
        device: Device,
        wanted: TraceArguments,
    },
    Why {
        target: Option<Target>,
        json: bool,
    },
    Logs {
        device: Device,
        last: bool,
        lines: usize,
    },
    List(ListArguments),
    Events {
        /// `None` for all.
        device: Option<Device>,
        json: bool,
    },
    Upgrade {
        /// `None` for all.
        device: Option<Device>,
        limit: Option<Duration>,
    },
    Debug(Debug),
    Record(Record),
    StopRecording {
        device: Device,
    },
    Replay(Replay),
    /// What the holder does by itself.
    Order {
        device: Device,
        request: Request,
        doing: &'static str,
        limit: Option<Duration>,
    },
    Wait {
        device: Device,
        until: Until,
        limit: Option<Duration>,
    },
    /// For a device that may not be attached yet.
    WaitAttached {
        /// Its own name, or one that it will be given.
        name: String,
        limit: Option<Duration>,
    },
    Set {
        device: Device,
        assignments: Vec<String>,
        json: bool,
    },
    Adopt {
        device: Device,
    },
}

/// What to attach.
#[derive(Debug)]
pub(crate) struct Attach {
    /// A name for it.
    pub(crate) name: Option<String>,
    /// Whether to become the holder.
    pub(crate) foreground: bool,
    /// A given device.
    pub(crate) device: Option<Device>,
    /// How the holder shall do it.
    pub(crate) options: AttachOptions,
    /// The backend, its program as an absolute path; `None` if it comes from outside.
    pub(crate) program: Option<Vec<String>>,
}

/// What to detach.
#[derive(Debug)]
pub(crate) struct Detach {
    pub(crate) target: DetachTarget,
    /// A device that is not attached is no failure.
    pub(crate) if_attached: bool,
    pub(crate) force: bool,
    pub(crate) limit: Option<Duration>,
}

/// Which devices to detach.
#[derive(Debug)]
pub(crate) enum DetachTarget {
    All,
    One(Device),
    /// No attached device has this name.
    Unknown(String),
}

impl DetachTarget {
    /// With `if_attached` a name that no device has is as good as a device that is not attached.
    fn check(device: Option<String>, if_attached: bool) -> Result<Self, Error> {
        let Some(text) = device else { return Ok(Self::All) };
        match text.parse() {
            Ok(device) => Ok(Self::One(device)),
            Err(_) if if_attached && is_name(&text) => Ok(Self::Unknown(text)),
            Err(error) => Err(error.into()),
        }
    }
}

impl Action {
    /// Checks what was typed.
    pub(crate) fn check(command: Command) -> Result<Self, Error> {
        Ok(match command {
            Command::Attach(AttachArguments { all: true, config, .. }) => {
                Self::AttachAll { config: Config::read(&config.unwrap_or_else(default_file))? }
            }
            Command::Attach(arguments) => Self::Attach(check_attach(by_name(arguments)?)?),
            Command::Doctor { json, fix } => Self::Doctor { json, fix },
            Command::Metrics { listen, host, group } => {
                let listen = listen.map(|address| Listen::check(&address, host, group.as_deref()));
                Self::Metrics { listen: listen.transpose().map_err(Error::Usage)? }
            }
            Command::Top(wanted) => {
                let devices = wanted.device.iter().map(|name| name.parse());
                Self::Top { devices: devices.collect::<Result<_, _>>()?, wanted }
            }
            Command::CheckConfig { file } => {
                Self::CheckConfig { file: file.unwrap_or_else(default_file) }
            }
            Command::Detach(wanted) => Self::Detach(Detach {
                target: DetachTarget::check(wanted.device, wanted.if_attached)?,
                if_attached: wanted.if_attached,
                force: wanted.force,
                limit: wanted.limit.timeout,
            }),
            Command::Status { device, json } => {
                let device = device.as_deref().map(Device::below).transpose()?;
                Self::Status { device, json }
            }
            Command::Trace(wanted) => Self::Trace { device: wanted.device.parse()?, wanted },
            Command::Record(RecordArguments { stop: true, device, .. }) => {
                Self::StopRecording { device: device.parse()? }
            }
            Command::Record(RecordArguments { device, file, limit, time, background, .. }) => {
                Self::Record(Record {
                    device: device.parse()?,
                    file: file.unwrap_or_default(),
                    limit,
                    time,
                    background,
                })
            }
            Command::Replay(wanted) => Self::Replay(Replay {
                file: wanted.file,
                program: backend(wanted.spec, wanted.program)?,
                list: wanted.list,
                one_by_one: wanted.one_by_one,
                minimise: wanted.minimise,
                before: wanted.before,
                limit: wanted.limit.timeout,
            }),
            Command::Why { target, json } => {
                Self::Why { target: target.as_deref().map(str::parse).transpose()?, json }
            }
            Command::Logs { device, last, lines } => {
                let device = match device.parse() {
                    // The name of a device that is not attached any more.
                    Err(error) => Device::last_named(&device).ok_or(error)?,
                    Ok(device) => device,
                };
                Self::Logs { device, last, lines }
            }
            Command::Events { device, json } => Self::Events { device: optional(device)?, json },
            Command::List(wanted) => Self::List(wanted),
            Command::Restart { device, limit } => Self::Order {
                device: device.parse()?,
                request: Request::Restart,
                doing: "restarting its backend",
                limit: limit.timeout,
            },
            Command::Replace { device, spec, program, limit } => Self::Order {
                device: device.parse()?,
                request: Request::Replace { program: replacement(spec, program)? },
                doing: "replacing its backend",
                limit: limit.timeout,
            },
            Command::Upgrade { device, all: _, limit } => {
                Self::Upgrade { device: optional(device)?, limit: limit.timeout }
            }
            Command::Fail(order) => Self::Order {
                device: order.device.parse()?,
                request: Request::Fail { kill: order.kill },
                doing: "answering what is in flight with EIO",
                limit: order.limit.timeout,
            },
            Command::Pause(order) => Self::Order {
                device: order.device.parse()?,
                request: Request::Pause { kill: order.kill },
                doing: "waiting until its backend is dead",
                limit: order.limit.timeout,
            },
            Command::Resume { device, limit } => Self::Order {
                device: device.parse()?,
                request: Request::Resume,
                doing: "waiting for a backend",
                limit: limit.timeout,
            },
            Command::Resize(resize) => Self::Order {
                device: resize.device.parse()?,
                request: Request::Resize { size: resize.size, force: resize.force },
                doing: "resizing it",
                limit: resize.limit.timeout,
            },
            Command::Debug { device, source, yes, arguments } => {
                Self::Debug(Debug { device: device.parse()?, sources: source, yes, arguments })
            }
            Command::Wait { device, until: Until::Attached, limit } => {
                if Device::literal(&device).is_none() && !is_name(&device) {
                    device.parse::<Device>()?;
                }
                Self::WaitAttached { name: device, limit: limit.timeout }
            }
            Command::Wait { device, until, limit } => {
                Self::Wait { device: device.parse()?, until, limit: limit.timeout }
            }
            Command::Set { device, assignments, json } => {
                Self::Set { device: device.parse()?, assignments, json }
            }
            Command::Adopt { device } => Self::Adopt { device: device.parse()? },
        })
    }
}

/// The options of a device that is meant by its name in the file.
fn by_name(arguments: AttachArguments) -> Result<AttachArguments, Error> {
    let Some(name) = arguments.spec.as_deref().filter(|text| is_name(text)) else {
        return Ok(arguments);
    };
    let file = arguments.config.clone().unwrap_or_else(default_file);
    let found = Config::read(&file).and_then(|config| config.device(name));
    let found = found.map_err(|cause| match cause {
        ConfigError::Missing { .. } | ConfigError::Unknown { .. } => {
            let name = name.to_owned();
            match Path::new(&name).exists() {
                true => Error::IsFile { name },
                false => Error::NoSuchName { name, cause },
            }
        }
        other => other.into(),
    })?;
    if arguments.has_options() {
        let (name, file) = (name.to_owned(), file.display());
        return Err(Error::Usage(format!(
            "{name}: devices.toml has its options: change them in {file}"
        )));
    }
    Ok(AttachArguments { foreground: arguments.foreground, ..found })
}

pub(crate) fn check_attach(arguments: AttachArguments) -> Result<Attach, Error> {
    let device = optional(arguments.device)?;
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot { command: "attach" });
    }
    // Not for a backend of the user's own: it may be a script that is edited while it is served,
    // and a spare would be what it was before.
    let warm_spare = arguments.spec.is_some() && !arguments.no_spare;
    let options = AttachOptions { warm_spare, ..arguments.options };
    options.check().map_err(|text| Error::Usage(text.into()))?;
    if let Some(name) = arguments.name.as_deref().filter(|name| !is_name(name)) {
        let text = format!("--name {name}: a name has letters, digits and -_. only");
        return Err(Error::Usage(text));
    }
    if let Some((name, device)) =
        arguments.name.as_deref().and_then(|name| Some((name, Device::literal(name)?)))
    {
        let text = format!(
            "--name {name}: this is the name of a device of the driver; choose another name, or \
             use --device {device} to attach that one"
        );
        return Err(Error::Usage(text));
    }
    Ok(Attach {
        name: arguments.name,
        foreground: arguments.foreground,
        device,
        options,
        program: backend(arguments.spec, arguments.program)?,
    })
}

/// The command line of a backend, if one is named at all.
fn backend(spec: Option<String>, program: Vec<String>) -> Result<Option<Vec<String>>, Error> {
    if let Some(spec) = spec {
        let report = spec::report(&spec)?;
        if let Some(mistake) = report.mistake {
            return Err(Error::Usage(mistake));
        }
        for warning in report.warnings {
            eprint(&format!("warning: {warning}"));
        }
        return Ok(Some(vec![program::nbd_serve()?, spec]));
    }
    let mut words = program.into_iter();
    let Some(name) = words.next() else {
        return Ok(None);
    };
    let mut command = vec![program::find(&name)?];
    command.extend(words);
    Ok(Some(command))
}

/// A holder that runs already has a working directory of its own, so a relative path would mean
/// another file to it than to the operator who types it here.
fn replacement(spec: Option<String>, program: Vec<String>) -> Result<Option<Vec<String>>, Error> {
    let is_spec = spec.is_some();
    let mut command = backend(spec, program)?;
    let here =
        std::env::current_dir().ok().and_then(|here| here.into_os_string().into_string().ok());
    if let (Some(command), Some(here), true) = (&mut command, here, is_spec) {
        command.splice(1..1, ["--directory".into(), here]);
    }
    Ok(command)
}

fn optional(device: Option<String>) -> Result<Option<Device>, Error> {
    Ok(device.map(|name| name.parse()).transpose()?)
}
