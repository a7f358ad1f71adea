//! The arguments of commands that have many.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};

use nbd_control::attach_options::AttachOptions;

use super::values::{Kind, ListColumn, Range, interval, milliseconds, seconds, size};

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Columns to show, in this order, separated by commas.
    #[arg(
        long = "output",
        short = 'o',
        value_name = "COLUMNS",
        value_delimiter = ',',
        value_enum,
        conflicts_with = "json"
    )]
    pub(crate) columns: Vec<ListColumn>,
    /// Repeat every 2 seconds, or every SECONDS, until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
        default_missing_value = "2", value_parser = interval, conflicts_with = "json")]
    pub(crate) watch: Option<Duration>,
    /// Print a JSON array.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    /// The devices: nbd0, /dev/nbd0, 0, or names [default: all, also later ones].
    #[arg(value_name = "DEVICE")]
    pub(crate) device: Vec<String>,
    /// Seconds between two updates.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub(crate) interval: Duration,
    /// Print one interval as text.
    #[arg(long)]
    pub(crate) once: bool,
    /// Print it as a JSON array.
    #[arg(long, requires = "once")]
    pub(crate) json: bool,
}

#[derive(Clone, Debug, Args)]
#[command(group = one_of("what", ["spec", "program", "external", "all"]))]
pub(crate) struct AttachArguments {
    /// What nbd-serve serves, like file:/srv/disk.img, mem:1G or nbd://storage.example/disk; or the
    /// name of a device in devices.toml.
    pub(crate) spec: Option<String>,
    /// Your own backend and its arguments.
    #[arg(last = true)]
    pub(crate) program: Vec<String>,
    /// Attach all devices of devices.toml that are not attached, except those with auto = false.
    #[arg(long)]
    pub(crate) all: bool,
    /// Another devices.toml [default: $NBD_CTL_CONFIG, else /etc/nbd-ctl/devices.toml].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Stay in the foreground as the holder, for service managers; adopts an attached device of this name.
    #[arg(long, conflicts_with = "all")]
    pub(crate) foreground: bool,
    /// Give the device a name, as a device of devices.toml has.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Start no backend; wait until one joins.
    #[arg(long)]
    pub(crate) external: bool,
    /// The device to use, like nbd3 [default: a free one].
    #[arg(long)]
    pub(crate) device: Option<String>,
    #[command(flatten)]
    pub(crate) options: AttachOptions,
    /// One of them was typed, be it the default.
    #[arg(skip)]
    pub(crate) typed_options: bool,
    /// Keep no second nbd-serve ready: saves its memory, makes recovery slower.
    #[arg(long, conflicts_with_all = ["program", "external"])]
    pub(crate) no_spare: bool,
}

#[derive(Debug, Args)]
pub(crate) struct OrderArguments {
    /// The device: nbd0, /dev/nbd0, 0, or its name.
    pub(crate) device: String,
    /// Kill a backend that is alive.
    #[arg(long)]
    pub(crate) kill: bool,
    #[command(flatten)]
    pub(crate) limit: Limit,
}

#[derive(Debug, Args)]
#[command(group = one_of("to", ["size", "to_backend"]))]
pub(crate) struct ResizeArguments {
    /// The device: nbd0, /dev/nbd0, 0, or its name.
    pub(crate) device: String,
    /// The new size in bytes, or with K, M, G or T; at most that of the storage.
    #[arg(value_parser = size)]
    pub(crate) size: Option<u64>,
    /// Take the present size of the storage.
    #[arg(long)]
    pub(crate) to_backend: bool,
    /// Shrink also if the device is in use or its content needs more: loses what is beyond.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) limit: Limit,
}

#[derive(Debug, Args)]
#[command(group = one_of("which", ["device", "all"]))]
pub(crate) struct DetachArguments {
    /// The device: nbd0, /dev/nbd0, 0, or its name.
    pub(crate) device: Option<String>,
    /// Detach all devices.
    #[arg(long)]
    pub(crate) all: bool,
    /// Succeed also if the device is not attached.
    #[arg(long)]
    pub(crate) if_attached: bool,
    /// Detach within 10 s, whatever uses or blocks the device; unwritten data is lost.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) limit: Limit,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Limit {
    /// Give up after this time, in seconds, like 10 or 0.5.
    #[arg(long = "timeout", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct TraceArguments {
    /// The device: nbd0, /dev/nbd0, 0, or its name.
    pub(crate) device: String,
    /// Go on with later requests, until Ctrl-C or the end of the device.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Only these commands, separated by commas, like read,write.
    #[arg(long, value_name = "COMMANDS", value_delimiter = ',', value_enum)]
    pub(crate) kind: Vec<Kind>,
    /// Only requests that touch these bytes.
    #[arg(long, value_name = "OFFSET+LENGTH")]
    pub(crate) range: Option<Range>,
    /// Only requests that took longer than this, in milliseconds, from being received to their end.
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub(crate) slower_than: Option<f64>,
    /// Only requests that were answered with an error.
    #[arg(long)]
    pub(crate) errors: bool,
    /// Show dates and times in UTC, in place of seconds since boot.
    #[arg(long)]
    pub(crate) wall_clock: bool,
    /// Only the latest N of them.
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<usize>,
    /// Print a JSON object for each request, one a line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RecordArguments {
    /// The device: nbd0, /dev/nbd0, 0, or its name.
    pub(crate) device: String,
    /// The recording, a new file that only its owner may read.
    #[arg(required_unless_present = "stop", conflicts_with = "stop")]
    pub(crate) file: Option<PathBuf>,
    /// End the present recording and print what is in it.
    #[arg(long, conflicts_with_all = ["limit", "time", "background"])]
    pub(crate) stop: bool,
    /// End it before FILE becomes larger: bytes, or with K, M, G or T.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1G")]
    pub(crate) limit: u64,
    /// End it after this time.
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds, conflicts_with = "background")]
    pub(crate) time: Option<Duration>,
    /// Return at once; the recording goes on.
    #[arg(long)]
    pub(crate) background: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArguments {
    /// The recording.
    pub(crate) file: PathBuf,
    /// What nbd-serve serves, like file:copy.img.
    #[arg(conflicts_with = "program")]
    pub(crate) spec: Option<String>,
    /// Your own backend and its arguments.
    #[arg(last = true)]
    pub(crate) program: Vec<String>,
    /// List all requests in FILE: time, command, result.
    #[arg(long, conflicts_with_all = ["spec", "program", "one_by_one", "minimise", "before"])]
    pub(crate) list: bool,
    /// Send each request after the one before it is answered.
    #[arg(long)]
    pub(crate) one_by_one: bool,
    /// Find the fewest requests with which the backend still ends in the same way; write them to
    /// this new file.
    #[arg(long, value_name = "OUT")]
    pub(crate) minimise: Option<PathBuf>,
    /// Run this shell command before each attempt, to restore the storage.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) before: Option<String>,
    #[command(flatten)]
    pub(crate) limit: Limit,
}

impl AttachArguments {
    /// Whether anything is given that a file with devices would say.
    pub(crate) fn has_options(&self) -> bool {
        self.typed_options || self.no_spare || self.device.is_some() || self.name.is_some()
    }
}

/// Exactly one of these must be given.
pub(super) fn one_of<const N: usize>(name: &'static str, arguments: [&'static str; N]) -> ArgGroup {
    ArgGroup::new(name).required(true).args(arguments)
}
