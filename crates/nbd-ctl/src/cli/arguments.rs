//! The arguments of commands that have many.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args};

use nbd_control::attach_options::AttachOptions;

use super::values::{Kind, ListColumn, Range, interval, milliseconds, seconds, size};

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// The columns to show, in this order.
    #[arg(
        long = "output",
        short = 'o',
        value_name = "COLUMNS",
        value_delimiter = ',',
        value_enum,
        conflicts_with = "json"
    )]
    pub(crate) columns: Vec<ListColumn>,
    /// Show it again every 2 seconds, or so many, until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true,
        default_missing_value = "2", value_parser = interval, conflicts_with = "json")]
    pub(crate) watch: Option<Duration>,
    /// Print a JSON array.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TopArguments {
    /// nbd0, /dev/nbd0 or 0 [default: all devices, also those that come later].
    #[arg(value_name = "DEVICE")]
    pub(crate) device: Vec<String>,
    /// Seconds between two looks at the devices.
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
    /// What nbd-serve shall serve, like file:/srv/disk.img, mem:1G or nbd://storage.example/disk
    /// (see `nbd-serve --help`); or the name of a device in the file.
    pub(crate) spec: Option<String>,
    /// Your own backend and its arguments.
    #[arg(last = true)]
    pub(crate) program: Vec<String>,
    /// Attach all devices of the file that are not attached, but those with auto = false.
    #[arg(long)]
    pub(crate) all: bool,
    /// The file with the devices [default: $NBD_CTL_CONFIG, else /etc/nbd-ctl/devices.toml].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Become the holder and stay, as service managers want it; adopts a device of this name.
    #[arg(long, conflicts_with = "all")]
    pub(crate) foreground: bool,
    /// Call the device so, as its name in the file would.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Start no backend; wait until one joins.
    #[arg(long)]
    pub(crate) external: bool,
    /// The device to use [default: a free one].
    #[arg(long)]
    pub(crate) device: Option<String>,
    #[command(flatten)]
    pub(crate) options: AttachOptions,
    /// One of them was typed, be it the default.
    #[arg(skip)]
    pub(crate) typed_options: bool,
    /// Do without the second nbd-serve that is kept started to take over at once.
    #[arg(long, conflicts_with_all = ["program", "external"])]
    pub(crate) no_spare: bool,
}

#[derive(Debug, Args)]
pub(crate) struct OrderArguments {
    /// nbd0, /dev/nbd0 or 0.
    pub(crate) device: String,
    /// Kill a backend that is in the way.
    #[arg(long)]
    pub(crate) kill: bool,
    #[command(flatten)]
    pub(crate) limit: Limit,
}

#[derive(Debug, Args)]
#[command(group = one_of("to", ["size", "to_backend"]))]
pub(crate) struct ResizeArguments {
    /// nbd0, /dev/nbd0 or 0.
    pub(crate) device: String,
    /// The new size in bytes, or with K, M, G or T: at most what the backend has by now.
    #[arg(value_parser = size)]
    pub(crate) size: Option<u64>,
    /// The size that the backend has by now.
    #[arg(long)]
    pub(crate) to_backend: bool,
    /// Shrink a device that is in use, or whose file system or partitions need more.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) limit: Limit,
}

#[derive(Debug, Args)]
#[command(group = one_of("which", ["device", "all"]))]
pub(crate) struct DetachArguments {
    /// nbd0, /dev/nbd0 or 0.
    pub(crate) device: Option<String>,
    /// Detach all devices.
    #[arg(long)]
    pub(crate) all: bool,
    /// Succeed if the device is not attached (any more).
    #[arg(long)]
    pub(crate) if_attached: bool,
    /// Fail what is in flight, also while the device is in use; ends within 10 s.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) limit: Limit,
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Limit {
    /// Give up after so many seconds; fractions are fine.
    #[arg(long = "timeout", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct TraceArguments {
    /// nbd0, /dev/nbd0 or 0.
    pub(crate) device: String,
    /// Go on with what is executed from now on, until Ctrl-C or the end of the device.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Only these commands, like read,write or flush.
    #[arg(long, value_name = "COMMANDS", value_delimiter = ',', value_enum)]
    pub(crate) kind: Vec<Kind>,
    /// Only requests that touch these bytes.
    #[arg(long, value_name = "OFFSET+LENGTH")]
    pub(crate) range: Option<Range>,
    /// Only requests that took longer than so many milliseconds, from being read to their end.
    #[arg(long, value_name = "MS", value_parser = milliseconds)]
    pub(crate) slower_than: Option<f64>,
    /// Only requests that were answered with an error.
    #[arg(long)]
    pub(crate) errors: bool,
    /// Show dates and times in UTC, in place of seconds since boot.
    #[arg(long)]
    pub(crate) wall_clock: bool,
    /// Only the latest so many of those.
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<usize>,
    /// Print a JSON object for each request, one a line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RecordArguments {
    /// nbd0, /dev/nbd0 or 0.
    pub(crate) device: String,
    /// The recording, a new file that only its owner may read.
    #[arg(required_unless_present = "stop", conflicts_with = "stop")]
    pub(crate) file: Option<PathBuf>,
    /// End the recording that is under way, and tell what is in it.
    #[arg(long, conflicts_with_all = ["limit", "time", "background"])]
    pub(crate) stop: bool,
    /// End it when FILE would become larger: bytes, or with K, M, G or T.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1G")]
    pub(crate) limit: u64,
    /// End it after so many seconds.
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds, conflicts_with = "background")]
    pub(crate) time: Option<Duration>,
    /// Return while it goes on.
    #[arg(long)]
    pub(crate) background: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArguments {
    /// The recording.
    pub(crate) file: PathBuf,
    /// What nbd-serve shall serve, like file:copy.img.
    #[arg(conflicts_with = "program")]
    pub(crate) spec: Option<String>,
    /// Your own backend and its arguments.
    #[arg(last = true)]
    pub(crate) program: Vec<String>,
    /// List all requests in FILE: when, what, and how each was answered.
    #[arg(long, conflicts_with_all = ["spec", "program", "one_by_one", "minimise", "before"])]
    pub(crate) list: bool,
    /// Send each request only when the one before it is answered.
    #[arg(long)]
    pub(crate) one_by_one: bool,
    /// Find the fewest requests with which the backend still ends in the same way, and write them
    /// to this new file.
    #[arg(long, value_name = "OUT")]
    pub(crate) minimise: Option<PathBuf>,
    /// Run this by sh before each attempt, to bring the storage into its former state.
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
