//! nbd-kernel-holder: owns a kernel NBD device, its lanes and its ledger, so that the backend
//! that serves it may come and go.
//!
//! It is not on the data path. Its own death disturbs no I/O either: `nbd-ctl adopt` starts
//! another one.

mod adopt;
mod args;
mod core;
mod eio_backend;
mod ending;
mod holder;
mod io;
mod kernel;
mod pick;
mod sandbox;
mod system;
mod take_down;
mod view;

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use clap::Parser;
use nbd_control::Channel;
use nbd_control::attach_options::AttachOptions;
use nbd_control::control::{Failure, FailureKind, Report};
use nbd_control::registry::Registry;
use nbd_control::system_error::explain;

use args::Args;
use core::event::{AttachError, Released};
use core::{End, Event};
use holder::{Holder, Settings};
use io::become_program;
use nbd_log::{Filter, Output};

/// How our lines in a log begin, with a colon behind it.
const PROGRAM: &str = "nbd-kernel-holder";
/// How often to look for another device when another program took the picked one.
const MAX_PICKS: usize = 5;
/// Exit status after a signal during attach.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.stand_in {
        nbd_log::init("nbd-kernel-holder --stand-in", args.filter(), Output::Stderr);
        let code = eio_backend::run();
        nbd_log::finish();
        return code;
    }
    system::close_inherited(args.report_fd.or(args.take_over));
    if let Some(index) = args.can_take_over {
        return tell_abilities(&Registry::new(args.runtime_dir), index);
    }
    // The words of a daemon are in its device's folder, where nbd-ctl and people look for them.
    let output = match args.report_fd {
        Some(_) => Output::ReplacedStderr,
        None => Output::JournalOrStderr,
    };
    // A process that forks has no threads.
    nbd_log::summarise_by_caller();
    nbd_log::init(PROGRAM, filter(&args), output);
    let code = run(&args);
    nbd_log::finish();
    code
}

fn run(args: &Args) -> ExitCode {
    let report = match args.report_fd.map(open_report).transpose() {
        Ok(report) => report,
        Err(text) => {
            tracing::error!("--report-fd: {text}");
            return ExitCode::from(FailureKind::Usage.exit_code());
        }
    };
    if let Some(index) = args.take_down {
        return take_down(args, index, report);
    }
    match start(args, report) {
        Ok(mut holder) => {
            // A client that asked for an upgrade was told already, and an attach announces itself.
            if args.adopt.is_some() {
                holder.announce();
            }
            serve(&mut holder)
        }
        Err(Stopped::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(Stopped::Failed(failure, report)) => {
            let code = failure.kind.exit_code();
            match report {
                Some(report) => drop(report.send(&Report::Failed(failure), &[])),
                None => tracing::error!(event = "attach-failed", "{}", failure.text),
            }
            ExitCode::from(code)
        }
    }
}

/// Which events are wanted: a holder that adopts a device goes by what the one before was told.
fn filter(args: &Args) -> Option<Filter> {
    args.filter().or_else(|| {
        let state = Registry::new(args.runtime_dir.clone()).read_state(args.adopt?).ok()??;
        state.log_level?.parse().ok()
    })
}

/// Tells a holder whether it could become this program.
fn tell_abilities(registry: &Registry, index: u32) -> ExitCode {
    match become_program::answer(registry, index) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("nbd-kernel-holder: {text}");
            ExitCode::FAILURE
        }
    }
}

/// Clears away what is left of a device, and says what that was.
fn take_down(args: &Args, index: u32, report: Option<Channel>) -> ExitCode {
    let registry = Registry::new(args.runtime_dir.clone());
    let (told, code) = match take_down::take_down(&registry, index, args.force) {
        Ok(text) => (Report::Notice { text }, 0),
        Err(failure) => (Report::Failed(failure.clone()), failure.kind.exit_code()),
    };
    match (report, told) {
        // A client that asked and no longer listens sees the registry.
        (Some(report), told) => drop(report.send(&told, &[])),
        (None, Report::Notice { text }) => println!("{text}"),
        (None, Report::Failed(failure)) => tracing::error!("{}", failure.text),
        (None, Report::Ready { .. }) => {}
    }
    ExitCode::from(code)
}

/// Why there is no device.
enum Stopped {
    Failed(Failure, Option<Channel>),
    Interrupted,
}

fn open_report(fd: std::os::fd::RawFd) -> Result<Channel, String> {
    let stream: UnixStream = system::inherited(fd).map_err(|error| error.to_string())?.into();
    // The parent's terminal must not interrupt us: the parent does, by closing its end.
    let _ = nix::unistd::setsid();
    Channel::new(stream).map_err(|error| error.to_string())
}

fn start(args: &Args, mut report: Option<Channel>) -> Result<Holder, Stopped> {
    let settings = match validate(args) {
        Ok(settings) => settings,
        Err(failure) => return Err(Stopped::Failed(failure, report)),
    };
    system::stay_in_memory();
    // Best effort: the process that holds the device together should be the last one to go.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let registry = Registry::new(args.runtime_dir.clone());
    if let Some(fd) = args.take_over {
        return adopt::take_over(registry, fd).map_err(|failure| Stopped::Failed(failure, report));
    }
    if let Some(index) = args.adopt {
        return adopt::adopt(registry, index, &mut report)
            .map_err(|failure| Stopped::Failed(failure, report));
    }
    let (mut avoid, is_foreground) = (Vec::new(), report.is_none());
    loop {
        let picked = match pick::pick(&registry, args.device, settings.api, &avoid) {
            Ok(picked) => picked,
            Err(failure) => return Err(Stopped::Failed(failure, report)),
        };
        let index = picked.device.index;
        let (device, lock, given) = (picked.device, picked.lock, picked.given);
        let mut holder = match Holder::new(registry.clone(), settings.clone(), device, lock, given)
        {
            Ok(holder) => holder,
            Err(error) => {
                let mut text = error.to_string();
                if let Err(error) = registry.remove(index) {
                    text.push_str(&format!(
                        "; cannot remove its registry entry: {}",
                        explain(&error)
                    ));
                }
                return Err(Stopped::Failed(Failure::new(FailureKind::Other, text), report));
            }
        };
        if report.is_some() {
            holder.redirect_output();
        }
        holder.sockets.is_foreground = is_foreground;
        holder.sockets.report = report.take();
        holder.sockets.control = Some(picked.control);
        holder.feed(Event::Begin);
        holder.run_until_idle();
        let Some(End::NotAttached(error)) = holder.core.end().cloned() else {
            return Ok(holder);
        };
        report = holder.sockets.report.take();
        let Some(failure) = holder.told.failures.attach.take() else {
            return Err(Stopped::Interrupted);
        };
        // What wanted the device may have gone away while it was not to be had.
        if holder.core.is_told_to_stop() || (report.is_none() && !is_foreground) {
            return Err(Stopped::Interrupted);
        }
        let is_taken = matches!(error, AttachError::Taken(_));
        if !is_taken || args.device.is_some() || avoid.len() >= MAX_PICKS {
            return Err(Stopped::Failed(failure, report));
        }
        avoid.push(index);
    }
}

fn validate(args: &Args) -> Result<Settings, Failure> {
    let fail = |kind, text: String| Err(Failure::new(kind, text));
    if !nix::unistd::geteuid().is_root() {
        return fail(FailureKind::Other, "setting up a block device needs root".into());
    }
    if let Err(error) = kernel::check_driver() {
        return fail(FailureKind::Other, error.to_string());
    }
    let options = AttachOptions { warm_spare: args.warm_spare, ..args.options.clone() };
    let settings = Settings::new(options);
    let settings = settings.map_err(|text| Failure::new(FailureKind::Usage, text))?;
    if let Some((user, uid, _)) = settings.user.as_ref().filter(|_| settings.sandbox.is_some())
        && uid.is_root()
    {
        let text =
            format!("--sandbox cannot confine {user}, whose user id is 0: use --user with another");
        return fail(FailureKind::Usage, text);
    }
    Ok(Settings {
        program: args.program.clone(),
        name: args.name.clone(),
        log_level: args.filter().map(|filter| filter.to_string()),
        ready_timeout: args.ready_timeout(),
        ..settings
    })
}

/// Holds the device until it is detached or lost.
fn serve(holder: &mut Holder) -> ExitCode {
    holder.run();
    match holder.core.end() {
        Some(End::Detached(Released::Clear)) => ExitCode::SUCCESS,
        Some(End::Detached(Released::InUse(_))) => ExitCode::from(FailureKind::Busy.exit_code()),
        Some(End::Stopped(error)) => ExitCode::from(holder.not_detached(error).kind.exit_code()),
        Some(End::Dropped | End::NotAttached(_)) | None => ExitCode::FAILURE,
    }
}
