//! `nbd-ctl detach`.

use std::time::Duration;

use nbd_control::control::Request;
use nbd_control::remains::stray;

use crate::action::{Detach, DetachTarget};
use crate::context::Context;
use crate::device::Device;
use crate::error::Error;
use crate::holder::client::HolderClient;
use crate::holder::take_down::take_down;
use crate::lifecycle::{each, notify};

/// How long a detach may take unless the operator says otherwise. The holder gives a flush 60 s,
/// and then the backend 15 s.
const DETACH_TIMEOUT: Duration = Duration::from_secs(100);
/// The holder promises 10 s.
const FORCED_DETACH_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a holder that has detached its device may take to exit.
const HOLDER_EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Detaches a device, or all of them.
pub(crate) fn detach(context: &Context, wanted: &Detach) -> Result<(), Error> {
    match &wanted.target {
        DetachTarget::All => detach_all(context, wanted),
        DetachTarget::One(device) if wanted.if_attached => {
            succeed_if_absent(detach_one(context, *device, wanted))
        }
        DetachTarget::One(device) => detach_one(context, *device, wanted),
        DetachTarget::Unknown(name) => {
            notify(&format!("{name} is not attached"));
            Ok(())
        }
    }
}

fn detach_one(context: &Context, device: Device, wanted: &Detach) -> Result<(), Error> {
    let usual = if wanted.force { FORCED_DETACH_TIMEOUT } else { DETACH_TIMEOUT };
    let mut holder = match HolderClient::connect(context, device) {
        Ok(holder) => holder,
        Err(error) => return take_down_instead(context, device, wanted, error),
    };
    let request = Request::Detach { force: wanted.force };
    let limit = wanted.limit.unwrap_or(usual);
    notify(&holder.order(&request, Some(limit), "detaching")?);
    // The device may be attached again as soon as we return. If the holder is slow to go, that
    // is not the detach's failure.
    let _ = holder.outlasts(HOLDER_EXIT_TIMEOUT);
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
            notify(&error.chain().unwrap_or_default());
            Ok(())
        }
        result => result,
    }
}
