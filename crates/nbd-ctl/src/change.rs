//! `nbd-ctl detach`, `restart`, `replace`, `upgrade`, `fail`, `pause`, `resume` and `resize`.

use std::time::Duration;

use nbd_control::control::Request;
use nbd_control::remains::stray;

use crate::action::{Detach, DetachTarget};
use crate::context::{Context, say};
use crate::device::Device;
use crate::entry::devices;
use crate::error::Error;
use crate::holder::Holder;
use crate::program;
use crate::take_down::take_down;

/// How long a detach may take unless the operator says otherwise. The holder gives a flush 60 s,
/// and then the backend 15 s.
const DETACH_LIMIT: Duration = Duration::from_secs(100);
/// The holder promises 10 s.
const FORCE_LIMIT: Duration = Duration::from_secs(20);
/// How long a backend may take to start unless the operator says otherwise.
const BACKEND_LIMIT: Duration = Duration::from_secs(60);
/// How long a holder that has detached its device may take to exit.
const EXIT_LIMIT: Duration = Duration::from_secs(2);

/// Detaches a device, or all of them.
pub(crate) fn detach(context: &Context, wanted: &Detach) -> Result<(), Error> {
    match &wanted.target {
        DetachTarget::All => detach_all(context, wanted),
        DetachTarget::One(device) if wanted.if_attached => {
            succeed_if_absent(detach_one(context, *device, wanted))
        }
        DetachTarget::One(device) => detach_one(context, *device, wanted),
        DetachTarget::Unknown(name) => {
            tell(&format!("{name} is not attached"));
            Ok(())
        }
    }
}

fn detach_one(context: &Context, device: Device, wanted: &Detach) -> Result<(), Error> {
    let usual = if wanted.force { FORCE_LIMIT } else { DETACH_LIMIT };
    let mut holder = match Holder::connect(context, device) {
        Ok(holder) => holder,
        Err(error) => return take_down_instead(context, device, wanted, error),
    };
    let request = Request::Detach { force: wanted.force };
    let limit = wanted.limit.unwrap_or(usual);
    tell(&holder.order(&request, Some(limit), "detaching")?);
    // The device may be attached again as soon as we return. If the holder is slow to go, that
    // is not the detach's failure.
    let _ = holder.outlasts(EXIT_LIMIT);
    Ok(())
}

/// Detaches a device that has no holder and gets none.
fn take_down_instead(
    context: &Context,
    device: Device,
    wanted: &Detach,
    error: Error,
) -> Result<(), Error> {
    match error {
        Error::Abandoned { .. } => take_down(context, device, wanted.force, wanted.limit),
        // What could be adopted is not known. The operator gives it up, whatever it is.
        Error::State { .. } if wanted.force => take_down(context, device, true, wanted.limit),
        Error::NoDevice { .. } => match stray(device.0) {
            Some(_) if wanted.force => take_down(context, device, true, wanted.limit),
            Some(pid) => Err(Error::Stray { device, pid }),
            None => Err(error),
        },
        error => Err(error),
    }
}

fn detach_all(context: &Context, wanted: &Detach) -> Result<(), Error> {
    each(context, |device| succeed_if_absent(detach_one(context, device, wanted)))
}

/// A stale entry was cleaned up, so a device that is gone is what was asked for.
fn succeed_if_absent(detached: Result<(), Error>) -> Result<(), Error> {
    match detached {
        Err(error @ (Error::Stale { .. } | Error::NoDevice { .. })) => {
            tell(&error.chain().unwrap_or_default());
            Ok(())
        }
        result => result,
    }
}

/// Does something to every device. One that fails does not keep it from the others.
fn each(context: &Context, mut act: impl FnMut(Device) -> Result<(), Error>) -> Result<(), Error> {
    let mut failed = None;
    let all = devices(&context.registry)?;
    if all.is_empty() {
        say("nothing is attached");
    }
    for device in all {
        match act(device) {
            Err(error @ Error::Interrupted(_)) => return Err(error),
            Err(error) => {
                tell(&error.chain().unwrap_or_default());
                failed.get_or_insert(error.exit_code());
            }
            Ok(()) => {}
        }
    }
    failed.map_or(Ok(()), |code| Err(Error::Several(code)))
}

/// Has the backend killed and started anew.
pub(crate) fn restart(
    context: &Context,
    device: Device,
    limit: Option<Duration>,
) -> Result<(), Error> {
    order(context, device, &Request::Restart, "restarting its backend", limit)
}

/// Has another program take over from the backend.
pub(crate) fn replace(
    context: &Context,
    device: Device,
    program: Option<Vec<String>>,
    limit: Option<Duration>,
) -> Result<(), Error> {
    let request = Request::Replace { program };
    order(context, device, &request, "replacing its backend", limit)
}

/// Has the holder, or all of them, become the program that a device would now be attached with.
pub(crate) fn upgrade(
    context: &Context,
    device: Option<Device>,
    limit: Option<Duration>,
) -> Result<(), Error> {
    match device {
        Some(device) => upgrade_one(context, device, limit),
        None => each(context, |device| upgrade_one(context, device, limit)),
    }
}

fn upgrade_one(context: &Context, device: Device, limit: Option<Duration>) -> Result<(), Error> {
    let mut holder = Holder::connect(context, device)?;
    let request = Request::Upgrade { program: program::holder()? };
    let limit = limit.unwrap_or(BACKEND_LIMIT);
    let upgraded = holder.order(&request, Some(limit), "changing to its new program");
    if let Err(Error::Ended { .. }) = &upgraded {
        // The new program has died of it. The device is adopted as after any holder's death.
        Holder::connect(context, device)?;
    }
    upgraded.map(|text| tell(&text))
}

/// Has the holder do something that may take as long as a backend takes.
pub(crate) fn order(
    context: &Context,
    device: Device,
    request: &Request,
    doing: &str,
    limit: Option<Duration>,
) -> Result<(), Error> {
    let limit = limit.unwrap_or(BACKEND_LIMIT);
    tell(&Holder::connect(context, device)?.order(request, Some(limit), doing)?);
    Ok(())
}

fn tell(text: &str) {
    if !text.is_empty() {
        say(text);
    }
}
