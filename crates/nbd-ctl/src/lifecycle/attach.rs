//! `nbd-ctl attach`.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nbd_control::control::Request;

use crate::action::{Attach, check_attach};
use crate::config::Config;
use crate::context::{Context, eprint, print, progress};
use crate::device::Device;
use crate::error::Error;
use crate::holder::abandoned::Abandoned;
use crate::holder::client::HolderClient;
use crate::holder::device_state::{DeviceState, devices, probe};
use crate::holder::logs;
use crate::holder::spawn::{Ending, Outcome, Starting};
use crate::holder::take_down::clear;
use crate::program;

/// After how long an operator at a terminal is told what is waited for.
const PROGRESS_DELAY: Duration = Duration::from_secs(2);
/// How often to look up from waiting without a limit.
const WAKE_UP_INTERVAL: Duration = Duration::from_secs(3600);
/// How long the detach of a device that came too late may take.
const DETACH_TIMEOUT: Duration = Duration::from_secs(20);

/// Starts a holder and prints the path of its device once that can be used.
pub(crate) fn attach(context: &Context, wanted: &Attach) -> Result<(), Error> {
    if wanted.foreground {
        return Err(become_holder(context, wanted)?);
    }
    if let Some(name) = &wanted.name
        && let Some(device) = attached_as(context, name)?
    {
        return Err(Error::Attached { name: name.clone(), device });
    }
    let starting = Starting::spawn(context, &arguments(wanted), None)?;
    finish(context, wanted, starting)
}

/// Waits until a holder that was started is ready, and prints the path of its device.
fn finish(context: &Context, wanted: &Attach, mut starting: Starting<'_>) -> Result<(), Error> {
    let start = Instant::now();
    let mut limit = PROGRESS_DELAY;
    loop {
        match starting.outcome(limit)? {
            Outcome::Ready { path } => return announce(context, path),
            Outcome::Interrupted => return Err(abandon(context, &mut starting)),
            Outcome::Died(status) => {
                return Err(Error::Died {
                    goal: "ready",
                    status,
                    words: last_words(context, wanted.device),
                });
            }
            Outcome::TimedOut => {
                if limit == PROGRESS_DELAY && start.elapsed() >= PROGRESS_DELAY {
                    progress("waiting until the device is ready; Ctrl-C gives up");
                }
                limit = WAKE_UP_INTERVAL;
            }
        }
    }
}

/// Prints the path. A script that cannot learn it would leave the device attached for ever.
fn announce(context: &Context, path: String) -> Result<(), Error> {
    let Err(Error::Output(source)) = print(&format!("{path}\n")) else {
        return Ok(());
    };
    let detached = detach(context, &path);
    if let Some(text) = detached.as_ref().err().and_then(Error::chain) {
        eprint(&text);
    }
    Err(Error::Untold { path, is_detached: detached.is_ok(), source })
}

/// What a holder that died while it attached has left in a log, and where. It has not told
/// which device it had picked: that of the stale entry that was written to last.
fn last_words(context: &Context, device: Option<Device>) -> String {
    let registry = &context.registry;
    let stale = |device: &Device| matches!(probe(registry, *device), Ok(DeviceState::Stale));
    let written = |device: &Device| registry.log(device.0).metadata()?.modified();
    let found = device.or_else(|| {
        let stale = devices(registry).ok()?.into_iter().filter(stale);
        stale.max_by_key(|device| written(device).ok())
    });
    found.map_or_else(|| "it has left no log".into(), |device| logs::last_words(context, device))
}

/// The device that has this name, unless all that is left of it is its entry.
fn attached_as(context: &Context, name: &str) -> Result<Option<Device>, Error> {
    let Some(device) = Device::named(name) else {
        return Ok(None);
    };
    let gone = match probe(&context.registry, device)? {
        DeviceState::Absent => true,
        DeviceState::Stale | DeviceState::Abandoned(_) => clear(context, device)?,
        _ => false,
    };
    Ok((!gone).then_some(device))
}

/// Attaches every device of the file that has `auto` and is not attached. After a failure the others follow.
pub(crate) fn attach_all(context: &Context, config: &Config) -> Result<(), Error> {
    let mut failed = None;
    let mut external = Vec::new();
    let mut others = Vec::new();
    for name in config.automatic() {
        if attached_as(context, name)?.is_some() {
            continue;
        }
        match config.device(name).map_err(Error::from).and_then(check_attach) {
            Ok(wanted) if wanted.program.is_none() && !wanted.foreground => {
                external.push((name, wanted));
            }
            Ok(wanted) => others.push((name, wanted)),
            Err(error) => tell_failure(&mut failed, name, error)?,
        }
    }
    // One process may serve all that it is to join from outside. So their holders are started before
    // any of them is waited for: it would wait for the last one as well, before it joins the first.
    let mut joining = Vec::new();
    for (name, wanted) in &external {
        match Starting::spawn(context, &arguments(wanted), None) {
            Ok(starting) => joining.push((name, wanted, starting)),
            Err(error) => tell_failure(&mut failed, name, error)?,
        }
    }
    for (name, wanted) in &others {
        if let Err(error) = attach(context, wanted) {
            tell_failure(&mut failed, name, error)?;
        }
    }
    // After an interrupt the others are dropped, and their holders take them down for that.
    for (name, wanted, starting) in joining {
        if let Err(error) = finish(context, wanted, starting) {
            tell_failure(&mut failed, name, error)?;
        }
    }
    failed.map_or(Ok(()), |code| Err(Error::Several(code)))
}

/// Tells why one of several devices is not attached, and keeps the first one's exit code.
///
/// # Errors
///
/// Those after which no other device is attached either.
fn tell_failure(failed: &mut Option<u8>, name: &str, error: Error) -> Result<(), Error> {
    if matches!(error, Error::Interrupted(_) | Error::NotRoot { .. }) {
        return Err(error);
    }
    eprint(&format!("{name}: {}", error.chain().unwrap_or_default()));
    failed.get_or_insert(error.exit_code());
    Ok(())
}

/// Becomes the holder of a device, a new one or one that has lost its holder; returns if it
/// cannot.
fn become_holder(context: &Context, wanted: &Attach) -> Result<Error, Error> {
    let program = program::holder()?;
    let mut command = Command::new(&program);
    command.arg("--runtime-dir").arg(context.registry.directory());
    let device = wanted.name.as_deref().and_then(Device::named);
    let found = device.map(|device| probe(&context.registry, device).map(|state| (device, state)));
    match found.transpose()? {
        Some((device, DeviceState::Orphaned(state))) => {
            let directory = PathBuf::from(format!("/proc/{}/cwd", state.sitter.pid));
            command.args(["--adopt", &device.to_string()]).current_dir(directory);
        }
        Some((device, DeviceState::Abandoned(abandoned @ Abandoned { backend: Some(_), .. }))) => {
            return Err(Error::Abandoned { device, abandoned });
        }
        Some((device, DeviceState::Listening(_) | DeviceState::Unsettled { .. })) => {
            return Err(Error::Attached { name: wanted.name.clone().unwrap_or_default(), device });
        }
        Some((_, DeviceState::Absent)) | None => {
            command.args(arguments(wanted));
        }
        Some((device, DeviceState::Stale | DeviceState::Abandoned(_))) => {
            clear(context, device)?;
            command.args(arguments(wanted));
        }
    }
    if wanted.options.survive_shutdown {
        command.arg0("@nbd-kernel-holder");
    }
    Ok(Error::Start { program, source: command.exec() })
}

fn arguments(wanted: &Attach) -> Vec<String> {
    let mut arguments = Vec::new();
    if let Some(device) = wanted.device {
        arguments.extend(["--device".to_string(), device.to_string()]);
    }
    if let Some(name) = &wanted.name {
        arguments.extend(["--name".to_string(), name.clone()]);
    }
    arguments.extend(wanted.options.arguments());
    match &wanted.program {
        Some(program) => {
            arguments.push("--".into());
            arguments.extend_from_slice(program);
        }
        None => arguments.push("--external".into()),
    }
    arguments
}

/// Leaves nothing attached after Ctrl-C, or says what is.
fn abandon(context: &Context, starting: &mut Starting<'_>) -> Error {
    Error::Interrupted(match starting.give_up() {
        Ending::Ended => "nothing is attached".into(),
        Ending::Lingers { pid } => format!(
            "nbd-kernel-holder (pid {pid}) has not ended within 10 s: see nbd-ctl list for what \
             is attached"
        ),
        Ending::Ready { path } => match detach(context, &path) {
            Ok(()) => "nothing is attached".into(),
            Err(error) => {
                if let Some(text) = error.chain() {
                    eprint(&text);
                }
                format!("{path} was ready already, and is attached: nbd-ctl detach {path}")
            }
        },
    })
}

/// Detaches a device that was ready at the moment it was no longer wanted.
fn detach(context: &Context, path: &str) -> Result<(), Error> {
    let device: Device = path.parse()?;
    // Ctrl-C has been heard; it must not end this as well.
    let calm = context.without_interrupts()?;
    let request = Request::Detach { force: false };
    HolderClient::connect(&calm, device)?.order(&request, Some(DETACH_TIMEOUT), "detaching")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nbd_control::attach_options::AttachOptions;

    use super::*;

    #[test]
    fn the_holder_gets_its_options_before_the_program() {
        let wanted = Attach {
            name: None,
            foreground: false,
            device: Some(Device(3)),
            options: AttachOptions { poison_limit: 2, ..AttachOptions::default() },
            program: Some(vec!["/bin/mine".into(), "--lanes".into()]),
        };
        assert_eq!(
            arguments(&wanted).join(" "),
            "--device nbd3 --poison-limit=2 -- /bin/mine --lanes"
        );
        let external =
            Attach { device: None, options: AttachOptions::default(), program: None, ..wanted };
        assert_eq!(arguments(&external), ["--external"]);
    }
}
