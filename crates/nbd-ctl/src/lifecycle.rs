//! The life of a device: its attach, what changes it, and its detach.
//!
//! Here are the commands that a holder carries out by itself: `restart`, `replace`, `upgrade`, `fail`, `pause`,
//! `resume` and `resize`.
//!
//! | module | idea |
//! |---|---|
//! | [`attach`] | `attach`: starts a holder, or becomes one |
//! | [`check_config`] | `check-config`: what a file with devices says that cannot be meant |
//! | [`detach`] | `detach`: has a holder end its device, or takes down what is left |
//! | [`mod@order`] | what a holder is told to do, and why it may take long |
//! | [`set`] | `set`: settings of a backend |
//! | [`wait`] | `wait`: until a device is served, or gone |

pub(crate) mod attach;
pub(crate) mod check_config;
pub(crate) mod detach;
mod order;
pub(crate) mod set;
pub(crate) mod wait;

use std::time::Duration;

use nbd_control::control::Request;

use crate::context::{Context, eprint};
use crate::device::Device;
use crate::error::Error;
use crate::holder::client::HolderClient;
use crate::holder::device_state::devices;
use crate::program;

/// How long a backend may take to start unless the operator says otherwise.
const BACKEND_START_TIMEOUT: Duration = Duration::from_secs(60);
/// Does something to every device. One that fails does not keep it from the others.
fn each(context: &Context, mut act: impl FnMut(Device) -> Result<(), Error>) -> Result<(), Error> {
    let mut failed = None;
    let all = devices(&context.registry)?;
    if all.is_empty() {
        eprint("nothing is attached");
    }
    for device in all {
        match act(device) {
            Err(error @ Error::Interrupted(_)) => return Err(error),
            Err(error) => {
                notify(&error.chain().unwrap_or_default());
                failed.get_or_insert(error.exit_code());
            }
            Ok(()) => {}
        }
    }
    failed.map_or(Ok(()), |code| Err(Error::Several(code)))
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
    let mut holder = HolderClient::connect(context, device)?;
    let request = Request::Upgrade { program: program::holder()? };
    let limit = limit.unwrap_or(BACKEND_START_TIMEOUT);
    let upgraded = holder.order(&request, Some(limit), "changing to its new program");
    if let Err(Error::Ended { .. }) = &upgraded {
        // The new program has died of it. The device is adopted as after any holder's death.
        HolderClient::connect(context, device)?;
    }
    upgraded.map(|text| notify(&text))
}

/// Has the holder do something that may take as long as a backend takes.
pub(crate) fn order(
    context: &Context,
    device: Device,
    request: &Request,
    doing: &str,
    limit: Option<Duration>,
) -> Result<(), Error> {
    let limit = limit.unwrap_or(BACKEND_START_TIMEOUT);
    notify(&HolderClient::connect(context, device)?.order(request, Some(limit), doing)?);
    Ok(())
}

/// What the holder has to say about it, if anything.
fn notify(text: &str) {
    if !text.is_empty() {
        eprint(text);
    }
}
