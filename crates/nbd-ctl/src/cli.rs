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
    /// Flush a device and take it away
    #[command(after_help = "\
Refuses while the device is mounted or held open. With --force, what is in flight fails.

Example:
  nbd-ctl detach nbd0
  nbd-ctl detach --all --force")]
    Detach(DetachArguments),
    /// Wait until a device is served, or gone
    #[command(after_help = "\
Example:
  nbd-ctl wait nbd0 --timeout 10
  nbd-ctl wait backup --for attached --timeout 60
  nbd-ctl wait nbd0 --for gone")]
    Wait {
        /// nbd0, /dev/nbd0 or 0, or the name of a device; with --for attached also one that there is not yet.
        device: String,
        /// What to wait for.
        #[arg(long = "for", value_name = "WHAT", value_enum, default_value_t = Until::Ready)]
        until: Until,
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
    /// List the attached devices
    #[command(after_help = "\
USED-BY is where a device is mounted, and what else keeps it: swap, mappings, loop devices. The member
\"entry\" of a JSON object is attached, orphaned (its holder is gone: nbd-ctl adopt), ending, stale (its
processes are gone) or unreachable. Sizes are bytes, times milliseconds. On a terminal states have colours,
unless NO_COLOR is set.

Example:
  nbd-ctl list
  nbd-ctl list -o device,name,state,used-by --watch
  nbd-ctl list --json | jq -r '.[] | select(.entry == \"attached\") | .path'")]
    List(ListArguments),
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
    /// Tell what happens to devices, as it happens
    #[command(after_help = "\
Follows the logs of all devices, also of those that are attached later, and shows their events: attach,
backend-lost, recovered, poison, detach and so on; nbd-logs(7) has them all. Dates are UTC, of when the
event was seen. Asks no process. Ends on Ctrl-C.

Example:
  nbd-ctl events
  nbd-ctl events nbd0 --json | jq -r 'select(.event == \"backend-lost\").text'")]
    Events {
        /// nbd0, /dev/nbd0, 0, or the name of an attached device [default: all devices].
        device: Option<String>,
        /// Print a JSON object for each event, one a line.
        #[arg(long)]
        json: bool,
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
    /// Keep all backends off a device for a while; I/O waits meanwhile
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
    /// Answer what is in flight with EIO, and keep the device
    #[command(after_help = "\
A backend that is alive, also one that is stopped in a debugger, may still answer what it has, so the
holder may not: --kill kills it first, and it is started again afterwards. Programs that wait get EIO;
requests that come later are served or wait as usual. A backend that its storage keeps in the
kernel cannot die: after 10 s the order is withdrawn, and nothing is answered with EIO later.

Example:
  nbd-ctl fail nbd0
  nbd-ctl fail --kill nbd0")]
    Fail(OrderArguments),
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
    /// Show the latest requests that were executed, with times and results
    #[command(after_help = "\
The device's shared memory keeps the latest 4095 requests of each lane, whatever becomes of the
backend: see what it did before it crashed. Those that are not answered yet are in nbd-ctl status.
Times are seconds since boot, like those of the kernel's log; with --wall-clock dates, which are wrong by
the time that the machine was suspended since. Then the member \"finished\" of JSON is such a date.

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
nbd-ctl replay [--list] FILE
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
  nbd-ctl replay crash.nbdrec --list
  nbd-ctl replay crash.nbdrec cow:before.img+diff.cow
  nbd-ctl replay crash.nbdrec -- gdb -ex run --args ./my-backend copy.img
  nbd-ctl replay crash.nbdrec --minimise small.nbdrec --before 'cp before.img copy.img' -- \\
      ./my-backend copy.img"
    )]
    Replay(ReplayArguments),
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
    /// Start a new holder for a device whose holder is gone
    #[command(after_help = "\
I/O goes on without a holder, but a lost backend is not started again. Every other command that
names the device adopts it first; list and status without DEVICE only tell.

Example:
  nbd-ctl adopt nbd0")]
    Adopt {
        /// nbd0, /dev/nbd0 or 0.
        device: String,
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
