//! The command line as it is typed. `Action::check` makes sense of it.
//!
//! The manual is made of these definitions too (`crates/nbd-manual` has this file as a module of
//! its own), so it depends on nothing but clap and nbd-control.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};

use nbd_control::attach_options::AttachOptions;

const EXIT_CODES: &str = "\
Exit status:
  0    done
  1    failed
  2    wrong usage
  3    no such device, or nothing attached to it
  4    the device is in use
  5    it took too long
  6    data could not be written
  130  interrupted (Ctrl-C)

Example:
  nbd-ctl attach file:/srv/disk.img
  nbd-ctl list
  nbd-ctl detach nbd0";

/// Attaches, inspects and detaches NBD devices whose backends may die.
#[derive(Debug, Parser)]
#[command(name = "nbd-ctl", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// Where attached devices are registered [default: $NBD_RUNTIME_DIR, else /run/nbd].
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a block device of an export, and print its path once it can be used
    #[command(
        override_usage = "\
nbd-ctl attach [OPTIONS] SPEC
       nbd-ctl attach [OPTIONS] -- PROGRAM [ARGUMENTS]...
       nbd-ctl attach [OPTIONS] --external
       nbd-ctl attach [--config FILE] [--foreground] NAME
       nbd-ctl attach [--config FILE] --all",
        after_help = "\
A NAME, which has no colon in it, is that of a device in /etc/nbd-ctl/devices.toml, where all its
options are. Once attached it can be used wherever a device is asked for.

Example:
  nbd-ctl attach file:/srv/disk.img
  nbd-ctl attach --device nbd3 --restart never mem:1G
  nbd-ctl attach nbds://storage.example/disk
  nbd-ctl attach 'exec:nbdkit -s memory 1G'
  nbd-ctl attach -- ./my-backend --verbose
  nbd-ctl attach --external        # then: nbd-serve --join nbd0 file:disk.img
  nbd-ctl attach backup            # [backup] in /etc/nbd-ctl/devices.toml"
    )]
    Attach(AttachArguments),
    /// Look for what on this machine keeps devices from working
    #[command(after_help = "\
Looks at the driver, the kernel, rights, limits, udev, our programs, what is left of devices whose
processes are gone, and who else sets up devices. Exit status 1 if something will not work.

Example:
  nbd-ctl doctor
  nbd-ctl doctor --fix
  nbd-ctl doctor --json | jq '.[] | select(.level == \"trouble\")'")]
    Doctor {
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
        /// Clean up stale entries and adopt devices without holder.
        #[arg(long)]
        fix: bool,
    },
    /// Print what the holders have counted, as OpenMetrics text
    #[command(after_help = "\
With --listen it answers GET /metrics by HTTP until Ctrl-C.

The text has the name of each device, what it serves (paths, URIs, command lines) and how much is read
and written. TCP has no users: a port on a loopback address shows all of that to every user and
container that can reach this machine's loopback, and to no other machine. A unix socket shows it to
the user that has started this, and with --group to the members of a group. Use one if names are
confidential; other machines want a proxy with authentication in front of it.

Over TCP only requests for localhost, a loopback address or a --host are answered (others: 421), so
that pages in a browser cannot read them. Up to 16 clients are connected at the same time; a further
one takes the place of the oldest that is slow. Each has 5 s to ask and 5 s to take its answer.

Example:
  nbd-ctl metrics
  nbd-ctl metrics --listen 9103
  nbd-ctl metrics --listen 9103 --host host.docker.internal
  nbd-ctl metrics --listen unix:/run/nbd-metrics --group prometheus")]
    Metrics {
        /// Answer here: unix:PATH, a port, or a loopback address with a port.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<String>,
        /// Also answer clients that ask by this name over TCP; may be repeated.
        #[arg(long, value_name = "NAME", requires = "listen")]
        host: Vec<String>,
        /// Let members of this group connect to the unix socket [default: its owner only].
        #[arg(long, value_name = "GROUP", requires = "listen")]
        group: Option<String>,
    },
    /// Watch devices: requests, bandwidth, latency, who serves them
    #[command(after_help = "\
Keys are explained by ?, and q leaves. Needs a terminal of 50 columns and 10 lines or more; colours
are left out if NO_COLOR is set. Latency is the time from when a backend took a request to the end
of its execution; a percentile is an upper bound, a quarter too high at most.
With --once it watches for one interval, prints that, and needs no terminal. A device whose holder
does not answer has a line that says so, and makes the exit status of --once 5.

Example:
  nbd-ctl top
  nbd-ctl top nbd0 nbd1 --interval 5
  nbd-ctl top --once
  nbd-ctl top --once --json | jq '.[] | {device, p99: .latency.p99_ms}'")]
    Top(TopArguments),
    /// Check the file with the devices of this machine
    #[command(after_help = "\
Tells mistakes with line and key: values, SPECs, relative paths, programs and users that are not there.
Prints the devices that have none. Exit status 2 if there is a mistake.

Example:
  nbd-ctl check-config
  nbd-ctl check-config ./devices.toml")]
    CheckConfig {
        /// The file [default: $NBD_CTL_CONFIG, else /etc/nbd-ctl/devices.toml].
        file: Option<PathBuf>,
    },
    /// Flush a device and take it away
    #[command(after_help = "\
Refuses while the device is mounted or held open. With --force, what is in flight fails.

Example:
  nbd-ctl detach nbd0
  nbd-ctl detach --all --force")]
    Detach(DetachArguments),
    /// Tell everything about a device, or about all
    #[command(after_help = "\
Answers at once, whatever state the backend is in.

Example:
  nbd-ctl status nbd0
  nbd-ctl status nbd0 --json | jq '.in_flight | length'")]
    Status {
        /// nbd0, /dev/nbd0 or 0, a partition or a mapping on it [default: all devices].
        device: Option<String>,
        /// Print JSON: an object, or an array without DEVICE.
        #[arg(long)]
        json: bool,
    },
    /// Say why I/O does not go on: who waits for what, and the way out
    #[command(after_help = "\
Reads /proc, /sys and, through the holder, the shared memory; asks neither the backend nor the
driver, so it answers whatever is stuck. A bare number is a process: what it waits for. Mappings
(LUKS, LVM) and loop devices on the device are seen through, and named with what closes them.

Example:
  nbd-ctl why nbd0
  nbd-ctl why /dev/mapper/secret
  nbd-ctl why 4711
  nbd-ctl why nbd0 --json | jq -r .verdict")]
    Why {
        /// nbd0, a partition or a mapping on it, or the pid of a process [default: all devices].
        #[arg(value_name = "DEVICE|PID")]
        target: Option<String>,
        /// Print JSON: an object, or an array without DEVICE.
        #[arg(long)]
        json: bool,
    },
    /// Show the end of a device's log: what its holder and its backends had to say
    #[command(after_help = "\
The log of a device that is not attached any more, or that could not be attached, is kept until the
next one of that number ends. Asks no process, so it works whatever is stuck.

Example:
  nbd-ctl logs nbd0
  nbd-ctl logs nbd0 --lines 500 | grep event=
  nbd-ctl logs nbd0 --last    # of the time before this one")]
    Logs {
        /// nbd0, /dev/nbd0, 0, or the name of an attached device.
        device: String,
        /// Show that of the time before this one.
        #[arg(long)]
        last: bool,
        /// How many lines at most; those of the last MiB or two are kept.
        #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 50)]
        lines: usize,
    },
    /// Show the latest requests that were executed, with times and results
    #[command(after_help = "\
The device's shared memory keeps the latest 4095 requests of each lane, whatever becomes of the
backend: see what it did before it crashed. Those that are not answered yet are in nbd-ctl status.
Times are seconds since boot, like those of the kernel's log.

Example:
  nbd-ctl trace nbd0 --last 20
  nbd-ctl trace nbd0 --follow --kind write --slower-than 50
  nbd-ctl trace nbd0 --range 1048576+4096 --json | jq .took_ms")]
    Trace(TraceArguments),
    /// Write down the requests of a device with their data, to replay them after a crash
    #[command(
        override_usage = "\
nbd-ctl record [OPTIONS] DEVICE FILE
       nbd-ctl record --stop DEVICE",
        after_help = "\
Starts the backend anew, as a recording begins with a backend's life; one that joined by hand is to
be ended and run again by yourself. A request is in FILE before it is executed, so whatever crashes
the backend is there. When backends die, the recording goes on with the next one. It ends when the
limit is reached or FILE cannot be written to; the device goes on. To replay it you need the storage
as it was before: copy it while the device is paused.

Example:
  nbd-ctl pause nbd0 && cp disk.img before.img; nbd-ctl resume nbd0
  nbd-ctl record nbd0 crash.nbdrec
  nbd-ctl record nbd0 crash.nbdrec --limit 10G --background
  nbd-ctl record --stop nbd0"
    )]
    Record(RecordArguments),
    /// Send the requests of a recording to a backend, without a device
    #[command(
        override_usage = "\
nbd-ctl replay FILE
       nbd-ctl replay [OPTIONS] FILE SPEC
       nbd-ctl replay [OPTIONS] FILE -- PROGRAM [ARGUMENTS]...",
        after_help = "\
Starts any backend as a holder does and plays the kernel for it; needs neither root nor the driver.
Requests that overlapped may overlap again, all others keep their order. Without SPEC or PROGRAM it
tells what is in FILE. The storage is changed by it: give it a copy, or cow:.

Exit status:
  0  replayed to the end, with the recorded results; with --minimise: OUT is written
  1  failed; with --minimise also: the backend does not crash
  7  the backend ended before it was told to
  8  replayed to the end, and results differ from the recorded ones

Example:
  nbd-ctl replay crash.nbdrec
  nbd-ctl replay crash.nbdrec cow:before.img+diff.cow
  nbd-ctl replay crash.nbdrec -- gdb -ex run --args ./my-backend copy.img
  nbd-ctl replay crash.nbdrec --minimise small.nbdrec --before 'cp before.img copy.img' -- \\
      ./my-backend copy.img"
    )]
    Replay(ReplayArguments),
    /// List the attached devices
    #[command(after_help = "\
The member \"entry\" of a JSON object is attached, orphaned (its holder is gone: nbd-ctl adopt),
ending, stale (its processes are gone) or unreachable. Sizes are bytes, times milliseconds.

Example:
  nbd-ctl list
  nbd-ctl list --json | jq -r '.[] | select(.entry == \"attached\") | .path'")]
    List {
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Kill a device's backend and start it anew; I/O waits meanwhile
    #[command(after_help = "\
Example:
  nbd-ctl restart nbd0")]
    Restart {
        /// nbd0, /dev/nbd0 or 0.
        device: String,
        #[command(flatten)]
        limit: Limit,
    },
    /// Let another program take over from the backend; I/O waits meanwhile
    #[command(after_help = "\
Without SPEC or PROGRAM, the present program is started again from its file: a newer build.

Example:
  nbd-ctl replace nbd0
  nbd-ctl replace nbd0 file:/srv/disk.img
  nbd-ctl replace nbd0 -- ./my-backend-2 --verbose")]
    Replace {
        /// nbd0, /dev/nbd0 or 0.
        device: String,
        /// What nbd-serve shall serve, like file:/srv/disk.img.
        #[arg(conflicts_with = "program")]
        spec: Option<String>,
        /// Your own backend and its arguments.
        #[arg(last = true)]
        program: Vec<String>,
        #[command(flatten)]
        limit: Limit,
    },
    /// Answer what is in flight with EIO, and keep the device
    #[command(after_help = "\
A backend that is alive, and be it stopped in a debugger, may still answer what it has, so nobody
else may: it is killed first if you say --kill, and started again afterwards. Whoever waits gets
EIO; requests that come later are served or wait as usual. A backend that its storage keeps in the
kernel cannot die: after 10 s the order is withdrawn, and nothing is answered with EIO later.

Example:
  nbd-ctl fail nbd0
  nbd-ctl fail --kill nbd0")]
    Fail(OrderArguments),
    /// Let nobody serve a device for a while; I/O waits meanwhile
    #[command(after_help = "\
Kills the backend and waits for its end; then nothing touches its storage any more. No backend is
granted the device before nbd-ctl resume. One that has joined by hand is killed only with --kill.

Example:
  nbd-ctl pause nbd0 && cp disk.img copy.img; nbd-ctl resume nbd0")]
    Pause(OrderArguments),
    /// Let backends serve a paused device again
    #[command(after_help = "\
Example:
  nbd-ctl resume nbd0")]
    Resume {
        /// nbd0, /dev/nbd0 or 0.
        device: String,
        #[command(flatten)]
        limit: Limit,
    },
    /// Give a device another size while it is in use
    #[command(after_help = "\
Grow what the device is made of first (`truncate -s`, `lvextend`, the other server's export), then
the device, then the file system on it. The backend is started again to look how large its storage
is by now; I/O waits meanwhile. mem: and cow: keep their size; exec: has it only after a new attach.

To shrink is refused while the device is in use, and if a file system (ext, XFS, btrfs) or a partition
on it needs more; make that smaller first. What it is made of is not touched. A device whose requests
wait is not resized at all. The size survives backends and holders, not the detach.

Example:
  nbd-ctl resize nbd0 --to-backend   # after truncate -s 20G disk.img; then resize2fs /dev/nbd0
  nbd-ctl resize nbd0 15G
  nbd-ctl resize nbd0 1G --force")]
    Resize(ResizeArguments),
    /// Start gdb on a device's backend; I/O waits whenever gdb stops it
    #[command(
        override_usage = "nbd-ctl debug [OPTIONS] <DEVICE> [-- GDB-ARGUMENTS...]",
        after_help = "\
In gdb, `nbd requests` lists what the backend was asked and has not answered, and `nbd request N`
prints one. Quitting gdb leaves the backend as it is. Refuses if something that gdb needs is on the
device itself, as gdb would wait for itself.

Example:
  nbd-ctl debug nbd0
  nbd-ctl debug nbd0 --source ~/my-backend/src
  nbd-ctl debug nbd0 -- -batch -ex 'thread apply all backtrace'"
    )]
    Debug {
        /// nbd0, /dev/nbd0 or 0.
        device: String,
        /// Where the backend's sources are, besides where they were compiled; may be repeated.
        #[arg(long, value_name = "DIR")]
        source: Vec<PathBuf>,
        /// Only warn of what gdb needs and is on the device itself.
        #[arg(long)]
        yes: bool,
        /// More arguments for gdb.
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Wait until a device is served, or gone
    #[command(after_help = "\
Example:
  nbd-ctl wait nbd0 --timeout 10
  nbd-ctl wait nbd0 --for gone")]
    Wait {
        /// nbd0, /dev/nbd0 or 0.
        device: String,
        /// What to wait for.
        #[arg(long = "for", value_name = "WHAT", value_enum, default_value_t = Until::Ready)]
        until: Until,
        #[command(flatten)]
        limit: Limit,
    },
    /// Change what the layers of a device do (delay, error, rate, log) while it is in use
    #[command(after_help = "\
Without NAME=VALUE, the settings are only printed. They survive the backend.

Example:
  nbd-ctl attach error:rate=0@delay:read=5ms@file:/srv/disk.img
  nbd-ctl set nbd0 error.rate=1% delay.read=100ms
  nbd-ctl set nbd0 --json | jq -r '.\"error.rate\"'")]
    Set {
        /// nbd0, /dev/nbd0 or 0.
        device: String,
        /// New values; all of them, or none if one is wrong.
        #[arg(value_name = "NAME=VALUE")]
        assignments: Vec<String>,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Let the holder become another build of itself; I/O goes on meanwhile
    #[command(
        group = one_of("whose", ["device", "all"]),
        after_help = "\
The new build is the nbd-kernel-holder that nbd-ctl attach would start. It is asked first whether
it can take over; if not, the present one goes on. Process, backend and device stay the same; for a
new build of nbd-serve there is nbd-ctl replace.

Example:
  nbd-ctl upgrade nbd0
  nbd-ctl upgrade --all"
    )]
    Upgrade {
        /// nbd0, /dev/nbd0 or 0.
        device: Option<String>,
        /// The holders of all devices.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        limit: Limit,
    },
    /// Start a new holder for a device whose holder is gone
    #[command(after_help = "\
I/O goes on without a holder, but nobody starts a lost backend again. Every other command that
names the device adopts it first; list and status without DEVICE only tell.

Example:
  nbd-ctl adopt nbd0")]
    Adopt {
        /// nbd0, /dev/nbd0 or 0.
        device: String,
    },
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
    /// Fail what is in flight, whoever uses the device; ends within 10 s.
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

/// A command, by the name that traces and statuses give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
}

/// Bytes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('+').and_then(|(offset, length)| {
            Some(Self { offset: offset.parse().ok()?, length: length.parse().ok()? })
        });
        numbers
            .filter(|range| range.length > 0)
            .ok_or_else(|| "use OFFSET+LENGTH in bytes, like 1048576+4096".into())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Until {
    /// A backend serves the device.
    Ready,
    /// The device is detached.
    Gone,
}

impl AttachArguments {
    /// Whether anything is given that a file with devices would say.
    pub(crate) fn has_options(&self) -> bool {
        self.typed_options || self.no_spare || self.device.is_some() || self.name.is_some()
    }
}

/// Exactly one of these must be given.
fn one_of<const N: usize>(name: &'static str, arguments: [&'static str; N]) -> ArgGroup {
    ArgGroup::new(name).required(true).args(arguments)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if !(number > 0.0 && number <= 1e8) {
        return Err("must be more than 0 and at most 100000000 seconds".into());
    }
    Ok(Duration::from_secs_f64(number))
}

fn size(text: &str) -> Result<u64, String> {
    nbd_control::size::parse(text).map_err(|error| error.to_string())
}

fn interval(text: &str) -> Result<Duration, String> {
    let number: Option<f64> = text.parse().ok();
    let seconds = number.filter(|number| (0.1..=3600.0).contains(number));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "must be 0.1 to 3600 seconds".into())
}

fn milliseconds(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|number| *number >= 0.0).ok_or_else(|| "must be a number from 0 on".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Arguments::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string);
            assert!(
                help.is_some_and(|help| help.contains("Example:\n  nbd-ctl ")),
                "{}",
                command.get_name()
            );
        }
    }

    #[test]
    fn a_range_is_two_numbers() {
        assert_eq!("7+512".parse(), Ok(Range { offset: 7, length: 512 }));
        for wrong in ["", "7", "7+", "+7", "7+0", "-1+1", "1-2", "1+2+3"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!((size("1"), size("10k"), size("2T")), (Ok(1), Ok(10 << 10), Ok(2 << 40)));
        for wrong in ["", "0", "G", "-1", "1.5G", "18446744073709551615K", "1GB", "1\u{b5}"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn timeouts_are_positive_numbers() {
        assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2500)));
        for wrong in ["0", "-1", "nan", "inf", "1e300", "soon", ""] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
