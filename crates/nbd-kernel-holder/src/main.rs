//! nbd-kernel-holder: owns a kernel NBD device, its lanes and its ledger, so that the backend
//! that serves it may come and go.
//!
//! It is not on the data path. Its own death disturbs no I/O either: `nbd-ctl adopt` starts
//! another one.

mod adopt;
mod ages;
mod args;
mod attach;
mod backends;
mod control;
mod detach;
mod device_users;
mod fail;
mod force;
mod holder;
mod io;
mod kernel;
mod lanes;
mod loss;
mod orders;
mod peers;
mod pick;
mod poison;
mod program;
mod pump;
mod recording;
mod resize;
mod retry;
mod sandbox;
mod signals;
mod stand_in;
mod state;
mod status;
mod supervisor;
mod system;
mod take_down;
mod teardown;
mod trace;
mod udev;
mod upgrade;

use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use nbd_control::Channel;
use nbd_control::attach_options::AttachOptions;
use nbd_control::control::{Failure, FailureKind, Report, Response};
use nbd_control::registry::Registry;

use args::Args;
use attach::AttachError;
use detach::{Detached, TEARDOWN};
use holder::{Holder, Settings};
use nbd_log::{Filter, Output};
use teardown::Released;

/// How our lines in a log begin, with a colon behind it.
const PROGRAM: &str = "nbd-kernel-holder";
/// How often to look for another device when somebody else took the picked one.
const TRIES: usize = 5;
/// Exit status after a signal during attach.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.stand_in {
        nbd_log::init("nbd-kernel-holder --stand-in", args.filter(), Output::Stderr);
        let code = stand_in::run();
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
    let daemon = report.is_some();
    match start(args, report) {
        Ok(mut holder) => {
            // Who asked for an upgrade was told already, and others are not to notice.
            if args.take_over.is_none() {
                announce(&mut holder, daemon);
            }
            serve(holder)
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

/// Which events are wanted: whoever adopts a device goes by what its holder was told.
fn filter(args: &Args) -> Option<Filter> {
    args.filter().or_else(|| {
        let state = Registry::new(args.runtime_dir.clone()).read_state(args.adopt?).ok()??;
        state.log_level?.parse().ok()
    })
}

/// Tells a holder whether it could become this program.
fn tell_abilities(registry: &Registry, index: u32) -> ExitCode {
    match upgrade::answer(registry, index) {
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
    let mut avoid = Vec::new();
    loop {
        let picked = match pick::pick(&registry, args.device, settings.api, &avoid) {
            Ok(picked) => picked,
            Err(failure) => return Err(Stopped::Failed(failure, report)),
        };
        let index = picked.device.index;
        let (device, lock) = (picked.device, picked.lock);
        let mut holder = match Holder::new(registry.clone(), settings.clone(), device, lock) {
            Ok(holder) => holder,
            Err(error) => {
                let mut text = error.to_string();
                if let Err(error) = registry.remove(index) {
                    text.push_str(&format!("; cannot remove its registry entry: {error}"));
                }
                return Err(Stopped::Failed(Failure::new(FailureKind::Other, text), report));
            }
        };
        if report.is_some() {
            holder.redirect_output();
        }
        holder.report = report.take();
        match holder.attach(picked.control, picked.given) {
            Ok(()) => return Ok(holder),
            Err(AttachError::Interrupted) => return Err(Stopped::Interrupted),
            Err(AttachError::Taken(_)) if args.device.is_none() && avoid.len() < TRIES => {
                avoid.push(index);
                report = holder.report.take();
            }
            Err(AttachError::Taken(failure) | AttachError::Failed(failure)) => {
                return Err(Stopped::Failed(failure, holder.report.take()));
            }
        }
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
    Ok(Settings {
        program: args.program.clone(),
        name: args.name.clone(),
        log_level: args.filter().map(|filter| filter.to_string()),
        patience: args.patience(),
        ..settings
    })
}

/// Tells whoever started us that the device can be used.
fn announce(holder: &mut Holder, daemon: bool) {
    let path = holder.device.path().display().to_string();
    if !daemon {
        println!("{path}");
        nbd_control::service::ready(&format!("holds {path}"));
        return;
    }
    holder.report(&Report::Ready { path });
    holder.report = None;
}

/// Holds the device until it is detached or lost.
fn serve(mut holder: Holder) -> ExitCode {
    loop {
        // A detach by force may have come while one without it was being refused.
        if holder.pending_detach.is_none() && holder.pending_upgrade.is_none() {
            holder.pump(None);
        }
        if let Some((client, program)) = holder.pending_upgrade.take() {
            let failure = holder.upgrade(client, &program);
            holder.answer(client, &Response::Failed(failure));
        }
        if let Some(asked) = holder.pending_detach
            && let Some(end) = detach_for(&mut holder, asked)
        {
            return end;
        }
        holder.settle_resize();
        if std::mem::take(&mut holder.interrupted) {
            return stop(&mut holder);
        }
        if holder.dropped || (holder.sitter_gone && holder.failed.is_none() && !holder.is_netlink())
        {
            holder.clear_dropped();
            return ExitCode::FAILURE;
        }
    }
}

/// Takes down what the driver has let go of, or what is left of an attach that failed.
pub(crate) fn clear_away(holder: &mut Holder) {
    match holder.teardown(Instant::now() + TEARDOWN) {
        Ok(Released::Clear) => {}
        Ok(Released::InUse(users)) => {
            let (words, _) = device_users::words_for(&users);
            holder.warn(&format!("the driver keeps it for its users: it is {words}"));
        }
        Err(failure) => holder.warn(&failure.text),
    }
}

/// Detaches for a client; nothing if the device stays.
fn detach_for(holder: &mut Holder, asked: (u64, bool)) -> Option<ExitCode> {
    let result = holder.detach(asked.1);
    // Perhaps another one than at the beginning: see `Request::Detach`.
    let client = holder.pending_detach.map_or(asked.0, |(client, _)| client);
    match result {
        Ok(Detached::Clear(text)) => {
            holder.answer(client, &Response::Done { text });
            Some(ExitCode::SUCCESS)
        }
        Ok(Detached::Held(failure)) => {
            let code = failure.kind.exit_code();
            holder.answer(client, &Response::Failed(failure));
            Some(ExitCode::from(code))
        }
        Err(failure) => {
            // A detach by force that came meanwhile is still to be done, unless this one was it.
            if holder.pending_detach == Some(asked) || holder.supervisor.is_abandoned() {
                holder.pending_detach = None;
                holder.answer(client, &Response::Failed(failure));
            }
            None
        }
    }
}

/// This process is to end.
fn stop(holder: &mut Holder) -> ExitCode {
    nbd_control::service::stopping();
    let failure = match holder.detach(false) {
        Ok(Detached::Clear(_)) => return ExitCode::SUCCESS,
        Ok(Detached::Held(failure)) => {
            holder.warn(&failure.text);
            return ExitCode::from(failure.kind.exit_code());
        }
        Err(failure) => failure,
    };
    holder.warn(&format!(
        "asked to stop: {}; the device stays as it is, and `nbd-ctl` adopts it",
        failure.text
    ));
    ExitCode::from(failure.kind.exit_code())
}
