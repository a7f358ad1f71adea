//! `nbd-ctl detach`, `restart`, `replace`, `fail`, `pause`, `resume` and `resize`.

use std::time::Duration;

use nbd_control::control::Request;

use crate::action::Detach;
use crate::context::{Context, say};
use crate::device::Device;
use crate::entry::devices;
use crate::error::Error;
use crate::holder::Holder;

/// How long a detach may take unless the operator says otherwise. The holder gives a flush 60 s.
const DETACH_LIMIT: Duration = Duration::from_secs(90);
/// The holder promises 10 s.
const FORCE_LIMIT: Duration = Duration::from_secs(20);
/// How long a backend may take to start unless the operator says otherwise.
const BACKEND_LIMIT: Duration = Duration::from_secs(60);
/// How long a holder that has detached its device may take to exit.
const EXIT_LIMIT: Duration = Duration::from_secs(2);

/// Detaches a device, or all of them.
pub(crate) fn detach(context: &Context, wanted: &Detach) -> Result<(), Error> {
    match wanted.device {
        Some(device) => detach_one(context, device, wanted),
        None => detach_all(context, wanted),
    }
}

fn detach_one(context: &Context, device: Device, wanted: &Detach) -> Result<(), Error> {
    let usual = if wanted.force { FORCE_LIMIT } else { DETACH_LIMIT };
    let mut holder = Holder::connect(context, device)?;
    let request = Request::Detach { force: wanted.force };
    let limit = wanted.limit.unwrap_or(usual);
    tell(&holder.order(&request, Some(limit), "detaching")?);
    // The device may be attached again as soon as we return. If the holder is slow to go, that
    // is not the detach's failure.
    let _ = holder.outlasts(EXIT_LIMIT);
    Ok(())
}

/// One that fails does not keep the others from being detached.
fn detach_all(context: &Context, wanted: &Detach) -> Result<(), Error> {
    let mut failed = None;
    let all = devices(&context.registry)?;
    if all.is_empty() {
        say("nothing is attached");
    }
    for device in all {
        match detach_one(context, device, wanted) {
            Err(error @ Error::Interrupted(_)) => return Err(error),
            Err(error) => {
                if let Some(text) = error.chain() {
                    say(&text);
                }
                // What is stale is cleaned up now, and gone is what was asked for.
                let gone = matches!(error, Error::Stale { .. } | Error::NoDevice { .. });
                if !gone {
                    failed.get_or_insert(error.exit_code());
                }
            }
            Ok(()) => {}
        }
    }
    match failed {
        Some(code) => Err(Error::Several(code)),
        None => Ok(()),
    }
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
