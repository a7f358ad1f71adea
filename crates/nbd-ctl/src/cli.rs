//! The command line as it is typed. `Action::check` makes sense of it.
//!
//! The manual is made of these definitions too (`crates/nbd-manual` has this file as a module of
//! its own), so it depends on nothing but clap and nbd-control. For the same reason the modules below have
//! their paths written out.
//!
//! | module | idea |
//! |---|---|
//! | [`arguments`] | the arguments of commands that have many |
//! | [`values`] | what arguments may be, and how they are read |
//! | [`groups`] | the commands by what they are for, as `--help` and the manual show them |

#[path = "cli/arguments.rs"]
mod arguments;
#[path = "cli/groups.rs"]
pub(crate) mod groups;
#[path = "cli/values.rs"]
mod values;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand};

use arguments::one_of;
pub(crate) use arguments::{
    AttachArguments, DetachArguments, Limit, ListArguments, OrderArguments, RecordArguments,
    ReplayArguments, ResizeArguments, TopArguments, TraceArguments,
};
pub(crate) use values::{Kind, ListColumn, Until};

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

/// Attaches, inspects and detaches NBD devices. A device survives the process that serves it.
#[derive(Debug, Parser)]
#[command(name = "nbd-ctl", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// Directory with the state of attached devices [default: $NBD_RUNTIME_DIR, else /run/nbd].
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) runtime_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a block device of an export and print its path when it is ready
    #[command(
        override_usage = "\
nbd-ctl attach [OPTIONS] SPEC
       nbd-ctl attach [OPTIONS] -- PROGRAM [ARGUMENTS]...
       nbd-ctl attach [OPTIONS] --external
       nbd-ctl attach [--config FILE] [--foreground] NAME
       nbd-ctl attach [--config FILE] --all",
        after_help = "\
SPEC says what to serve, like file:PATH or mem:1G; nbd-serve --help lists all. A word without a colon is
the NAME of a device in /etc/nbd-ctl/devices.toml, which has its options. Every command takes the name of an
attached device in place of nbd0.

Example:
  nbd-ctl attach file:/srv/disk.img
  nbd-ctl attach --device nbd3 --restart never mem:1G
  nbd-ctl attach nbds://storage.example/disk
  nbd-ctl attach 'exec:nbdkit -s file disk.img'
  nbd-ctl attach -- ./my-backend --verbose
  nbd-ctl attach --external        # then: nbd-serve --join nbd0 file:disk.img
  nbd-ctl attach backup            # [backup] in /etc/nbd-ctl/devices.toml"
    )]
    Attach(AttachArguments),
    /// Write everything back, then remove a device
    #[command(after_help = "\
Refuses while the device is in use, and names its users. Refuses if data cannot be written, and the device
stays. --force does neither: unanswered requests get EIO, and unwritten data is lost.

Example:
  nbd-ctl detach nbd0
  nbd-ctl detach --all --force")]
    Detach(DetachArguments),
    /// Wait until a device is served, attached or gone
    #[command(after_help = "\
Example:
  nbd-ctl wait nbd0 --timeout 10
  nbd-ctl wait backup --for attached --timeout 60
  nbd-ctl wait nbd0 --for gone")]
    Wait {
        /// The device: nbd0, /dev/nbd0, 0, or its name; with --for attached it need not exist yet.
        device: String,
        /// What to wait for.
        #[arg(long = "for", value_name = "WHAT", value_enum, default_value_t = Until::Ready)]
        until: Until,
        #[command(flatten)]
        limit: Limit,
    },
    /// Change the size of a device while it is in use
    #[command(after_help = "\
To grow, first enlarge the storage (`truncate -s`, `lvextend`, the other server's export), then the device,
then its file system. The backend is started again to read the new size; I/O waits meanwhile. mem:, null:,
pattern:, cow:, offset: and partition: cannot grow while attached; exec: has its new size only after another attach.

To shrink is refused while the device is in use, and if a file system (ext, XFS, btrfs) or a partition
on it needs more space: make that smaller first. The storage itself keeps its size. A device whose requests
wait is not resized. The size is kept until the device is detached.

Example:
  nbd-ctl resize nbd0 --to-backend   # after truncate -s 20G disk.img; then resize2fs /dev/nbd0
  nbd-ctl resize nbd0 15G
  nbd-ctl resize nbd0 1G --force")]
    Resize(ResizeArguments),
    /// List the attached devices
    #[command(after_help = "\
USED-BY shows where a device is mounted and what else uses it: swap, mappings, loop devices. In JSON, \"entry\"
is attached, orphaned (its holder has died: nbd-ctl adopt), ending, abandoned (holder and sitter have died),
stale (all its processes have died) or unreachable; sizes are in bytes, times in milliseconds. States have colours on a terminal, unless NO_COLOR
is set.

Example:
  nbd-ctl list
  nbd-ctl list -o device,name,state,used-by --watch
  nbd-ctl list --json | jq -r '.[] | select(.entry == \"attached\") | .path'")]
    List(ListArguments),
    /// Show the state of a device, or of all devices
    #[command(after_help = "\
Shows backend, holder, restarts, unanswered requests with their ages, totals and latencies. Reads shared
memory, so it answers also while the backend is stopped or dead.

Example:
  nbd-ctl status nbd0
  nbd-ctl status nbd0 --json | jq '.in_flight | length'")]
    Status {
        /// The device: nbd0, /dev/nbd0, 0, its name, or a partition or mapping on it [default: all devices].
        device: Option<String>,
        /// Print JSON: an object, or an array without DEVICE.
        #[arg(long)]
        json: bool,
    },
    /// Explain why I/O waits: which process waits for what, and the ways out
    #[command(after_help = "\
Reads /proc, /sys and shared memory. It asks neither backend nor driver, so it answers whatever is stuck.
A number is the pid of a process, and shows what that process waits for. Mappings (LUKS, LVM) and loop
devices on the device are named with the command that closes them.

Example:
  nbd-ctl why nbd0
  nbd-ctl why /dev/mapper/secret
  nbd-ctl why 4711
  nbd-ctl why nbd0 --json | jq -r .verdict")]
    Why {
        /// The device, a partition or mapping on it, or the pid of a process [default: all devices].
        #[arg(value_name = "DEVICE|PID")]
        target: Option<String>,
        /// Print JSON: an object, or an array without DEVICE.
        #[arg(long)]
        json: bool,
    },
    /// Watch requests, bandwidth and latency of devices, and their backends
    #[command(after_help = "\
Press ? for the keys, q to leave. Needs a terminal of at least 50 columns and 10 lines; NO_COLOR turns
colours off. Latency is the time from when a backend took a request to the end of its execution. A
percentile is an upper bound, at most 25 % too high.
--once watches for one interval, prints it, and needs no terminal. If a holder does not answer, its line
says so, and --once ends with exit status 5.

Example:
  nbd-ctl top
  nbd-ctl top nbd0 nbd1 --interval 5
  nbd-ctl top --once
  nbd-ctl top --once --json | jq '.[] | {device, p99: .latency.p99_ms}'")]
    Top(TopArguments),
    /// Show the end of a device's log: messages of its holder and its backends
    #[command(after_help = "\
The log is kept after a detach or a failed attach, until the next device of that number ends. Reads files
only, so it works whatever is stuck. The holder of a systemd unit writes to the journal instead:
journalctl -u nbd-holder@NAME.

Example:
  nbd-ctl logs nbd0
  nbd-ctl logs nbd0 --lines 500 | grep event=
  nbd-ctl logs nbd0 --last    # before the present attach")]
    Logs {
        /// The device: nbd0, /dev/nbd0, 0, or its name.
        device: String,
        /// Show the log of the time before the present attach.
        #[arg(long)]
        last: bool,
        /// Show at most so many lines; the log keeps the last 1 to 2 MiB.
        #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 50)]
        lines: usize,
    },
    /// Follow what happens to devices: attach, loss and recovery of backends, detach
    #[command(after_help = "\
Follows the logs of all devices, also of those attached later, and prints their events; nbd-logs(7) lists
them. Times are UTC, when the event was read. Reads files only. Ctrl-C ends it. Holders of systemd units write to
the journal instead: journalctl -f -u 'nbd-holder@*'.

Example:
  nbd-ctl events
  nbd-ctl events nbd0 --json | jq -r 'select(.event == \"backend-lost\").text'")]
    Events {
        /// The device: nbd0, /dev/nbd0, 0, or its name [default: all devices].
        device: Option<String>,
        /// Print a JSON object for each event, one a line.
        #[arg(long)]
        json: bool,
    },
    /// Print counters of all devices as OpenMetrics text, or serve them to Prometheus
    #[command(after_help = "\
With --listen it answers GET /metrics by HTTP until Ctrl-C.

The text has the name of each device, what it serves (paths, URIs, command lines) and how much is read and
written. Every user and container of this machine can read a TCP port, no other machine can. A unix socket
is readable by its owner only, and with --group by a group: use one if names are confidential. For other
machines, put a proxy with authentication in front of it.

Over TCP only requests for localhost, a loopback address or a --host are answered (others: 421), so that
pages in a browser cannot read them. At most 16 clients are connected; a further one replaces the oldest
slow one. Each has 5 s to ask and 5 s to take its answer.

Example:
  nbd-ctl metrics
  nbd-ctl metrics --listen 9103
  nbd-ctl metrics --listen 9103 --host host.docker.internal
  nbd-ctl metrics --listen unix:/run/nbd-metrics --group prometheus")]
    Metrics {
        /// Listen here: unix:PATH, a port, or a loopback address with a port.
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<String>,
        /// Also answer clients that ask by this name over TCP; may be repeated.
        #[arg(long, value_name = "NAME", requires = "listen")]
        host: Vec<String>,
        /// Let members of this group connect to the unix socket [default: its owner only].
        #[arg(long, value_name = "GROUP", requires = "listen")]
        group: Option<String>,
    },
    /// Kill the backend and start it again; I/O waits meanwhile
    #[command(after_help = "\
The next backend executes again what was not answered. Also ends a pause between failed starts.

Example:
  nbd-ctl restart nbd0")]
    Restart {
        /// The device: nbd0, /dev/nbd0, 0, or its name.
        device: String,
        #[command(flatten)]
        limit: Limit,
    },
    /// Replace the backend by a newer build or another program; I/O waits meanwhile
    #[command(after_help = "\
Without SPEC or PROGRAM, the present command line is started again, with the program that is installed now. If
the new backend cannot serve the device, the present one goes on.

Example:
  nbd-ctl replace nbd0
  nbd-ctl replace nbd0 file:/srv/disk.img
  nbd-ctl replace nbd0 -- ./my-backend-2 --verbose")]
    Replace {
        /// The device: nbd0, /dev/nbd0, 0, or its name.
        device: String,
        /// What nbd-serve serves, like file:/srv/disk.img.
        #[arg(conflicts_with = "program")]
        spec: Option<String>,
        /// Your own backend and its arguments.
        #[arg(last = true)]
        program: Vec<String>,
        #[command(flatten)]
        limit: Limit,
    },
    /// Change settings of the layers delay, error, rate and log while the device is in use
    #[command(after_help = "\
Without NAME=VALUE it prints the settings. They are kept until the device is detached. A device that was
attached without such a layer has none.

Example:
  nbd-ctl attach error:rate=0@delay:read=5ms@file:/srv/disk.img
  nbd-ctl set nbd0 error.rate=1% delay.read=100ms
  nbd-ctl set nbd0 --json | jq -r '.\"error.rate\"'")]
    Set {
        /// The device: nbd0, /dev/nbd0, 0, or its name.
        device: String,
        /// New values. If one is wrong, none is set.
        #[arg(value_name = "NAME=VALUE")]
        assignments: Vec<String>,
        /// Print a JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Stop serving a device until resume, to copy its storage; I/O waits meanwhile
    #[command(after_help = "\
Kills the backend and waits until it is dead. From then on no process touches the storage until nbd-ctl
resume. A backend that joined by hand is killed only with --kill.

Example:
  nbd-ctl pause nbd0 && cp disk.img copy.img; nbd-ctl resume nbd0")]
    Pause(OrderArguments),
    /// Serve a paused device again
    #[command(after_help = "\
Starts the backend again; it executes the requests that have waited.

Example:
  nbd-ctl resume nbd0")]
    Resume {
        /// The device: nbd0, /dev/nbd0, 0, or its name.
        device: String,
        #[command(flatten)]
        limit: Limit,
    },
    /// Answer the requests that wait with EIO, and keep the device
    #[command(after_help = "\
Programs that wait get EIO. Later requests are served, or wait, as usual. A living backend, also one that
is stopped in a debugger, may still answer, so the command refuses; --kill kills it first, and it is started
again afterwards. A backend that waits in the kernel for its storage cannot die: after 10 s the order is
withdrawn, and no request gets EIO later.

Example:
  nbd-ctl fail nbd0
  nbd-ctl fail --kill nbd0")]
    Fail(OrderArguments),
    /// Start gdb on the backend; I/O waits while gdb stops it
    #[command(
        override_usage = "nbd-ctl debug [OPTIONS] <DEVICE> [-- GDB-ARGUMENTS...]",
        after_help = "\
In gdb, `nbd requests` lists unanswered requests and `nbd request N` prints one with its data. The backend
goes on when gdb quits. Refuses if a file that gdb needs is on the device itself: gdb would wait for itself.

Example:
  nbd-ctl debug nbd0
  nbd-ctl debug nbd0 --source ~/my-backend/src
  nbd-ctl debug nbd0 -- -batch -ex 'thread apply all backtrace'"
    )]
    Debug {
        /// The device: nbd0, /dev/nbd0, 0, or its name.
        device: String,
        /// Another directory with the backend's sources; may be repeated.
        #[arg(long, value_name = "DIR")]
        source: Vec<PathBuf>,
        /// Warn instead of refusing if a file that gdb needs is on the device.
        #[arg(long)]
        yes: bool,
        /// More arguments for gdb.
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Show the latest executed requests with times and results
    #[command(after_help = "\
Shared memory keeps the latest 4095 requests of each lane, also after the backend has crashed. Unanswered
requests are in nbd-ctl status. Times are seconds since boot, as in the kernel's log. With --wall-clock they
are dates, also \"finished\" in JSON; they are wrong by any time that the machine was suspended since.

Example:
  nbd-ctl trace nbd0 --last 20
  nbd-ctl trace nbd0 --follow --kind write --slower-than 50
  nbd-ctl trace nbd0 --range 1048576+4096 --json | jq .took_ms")]
    Trace(TraceArguments),
    /// Record the requests of a device with their data, to replay them after a crash
    #[command(
        override_usage = "\
nbd-ctl record [OPTIONS] DEVICE FILE
       nbd-ctl record --stop DEVICE",
        after_help = "\
Restarts the backend, because a recording begins with a backend's life. End a backend that joined by hand
and run it again yourself. Each request is in FILE before it is executed, so the request that crashes the
backend is there. The recording goes on with the next backend. It ends when the limit is reached or FILE
cannot be written to; the device goes on. A replay needs the storage as it was before: copy it while the
device is paused.

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
nbd-ctl replay [--list] FILE
       nbd-ctl replay [OPTIONS] FILE SPEC
       nbd-ctl replay [OPTIONS] FILE -- PROGRAM [ARGUMENTS]...",
        after_help = "\
Starts a backend and sends it the recorded requests; needs neither root nor the driver. Requests that
overlapped may overlap again; all others keep their order. Without SPEC or PROGRAM it prints what is in
FILE. A replay changes the storage: give it a copy, or use cow:.

Exit status:
  0  replayed to the end, with the recorded results; with --minimise: OUT is written
  1  failed; with --minimise also: the backend does not crash
  7  the backend ended too early: the crash is reproduced
  8  replayed to the end, but results differ from the recorded ones

Example:
  nbd-ctl replay crash.nbdrec
  nbd-ctl replay crash.nbdrec --list
  nbd-ctl replay crash.nbdrec cow:before.img+diff.cow
  nbd-ctl replay crash.nbdrec -- gdb -ex run --args ./my-backend copy.img
  nbd-ctl replay crash.nbdrec --minimise small.nbdrec --before 'cp before.img copy.img' -- \\
      ./my-backend copy.img"
    )]
    Replay(ReplayArguments),
    /// Check this machine: driver, rights, limits, leftovers, other tools at NBD devices
    #[command(after_help = "\
Each line is fine, a warning or trouble, and says what to do. Checks the driver, the kernel, rights, limits,
udev, our programs, leftovers of dead devices, and other programs that set up NBD devices. Exit status 1 if
there is trouble.

Example:
  nbd-ctl doctor
  nbd-ctl doctor --fix
  nbd-ctl doctor --json | jq '.[] | select(.level == \"trouble\")'")]
    Doctor {
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
        /// Remove leftovers of dead devices, and adopt devices without a holder.
        #[arg(long)]
        fix: bool,
    },
    /// Check devices.toml, the file with the devices of this machine
    #[command(after_help = "\
Prints each mistake with its line and key: wrong values and SPECs, relative paths, missing programs and
users. Prints the devices without mistakes. Exit status 2 if there is a mistake.

Example:
  nbd-ctl check-config
  nbd-ctl check-config ./devices.toml")]
    CheckConfig {
        /// The file to check [default: $NBD_CTL_CONFIG, else /etc/nbd-ctl/devices.toml].
        file: Option<PathBuf>,
    },
    /// Start a new holder for a device whose holder has died
    #[command(after_help = "\
I/O goes on without a holder, but a lost backend is not started again. Every other command that names the
device adopts it first; list and status of all devices only report it.

Example:
  nbd-ctl adopt nbd0")]
    Adopt {
        /// The device: nbd0, /dev/nbd0, 0, or its name.
        device: String,
    },
    /// Change a holder to the installed nbd-kernel-holder; I/O goes on meanwhile
    #[command(
        group = one_of("whose", ["device", "all"]),
        after_help = "\
First asks the installed program whether it can take over. If not, the present one goes on. Process id,
backend and device stay the same. For a new nbd-serve use nbd-ctl replace.

Example:
  nbd-ctl upgrade nbd0
  nbd-ctl upgrade --all"
    )]
    Upgrade {
        /// The device: nbd0, /dev/nbd0, 0, or its name.
        device: Option<String>,
        /// Change the holders of all devices.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        limit: Limit,
    },
}

impl Arguments {
    /// The definition, with the commands in groups.
    pub(crate) fn definition() -> clap::Command {
        groups::grouped(Self::command())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::definition().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Arguments::definition().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string);
            assert!(
                help.is_some_and(|help| help.contains("Example:\n  nbd-ctl ")),
                "{}",
                command.get_name()
            );
        }
    }
}
