//! Taking down what is left of a device that nothing can adopt. The holder's program does it, as only
//! that one speaks to the driver.

use std::time::Duration;

use crate::context::Context;
use crate::device::Device;
use crate::error::Error;
use crate::holder::abandoned::Abandoned;
use crate::holder::device_state::{DeviceState, clean, probe};
use crate::holder::logs;
use crate::holder::spawn::{Ending, Outcome, Starting};

/// How long that may take in order: the flush, and then the end of the backend.
const TAKE_DOWN_TIMEOUT: Duration = Duration::from_secs(90);
/// The same by force.
const FORCED_TAKE_DOWN_TIMEOUT: Duration = Duration::from_secs(20);

/// Has it taken down, and passes on what is said of that; `force` writes nothing back.
pub(crate) fn take_down(
    context: &Context,
    device: Device,
    force: bool,
    limit: Option<Duration>,
) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot { command: "detach" });
    }
    let mut arguments = vec!["--take-down".to_string(), device.to_string()];
    if force {
        arguments.push("--force".into());
    }
    let mut starting = Starting::spawn(context, &arguments, None)?;
    let limit = limit.unwrap_or(if force { FORCED_TAKE_DOWN_TIMEOUT } else { TAKE_DOWN_TIMEOUT });
    match starting.outcome(limit)? {
        // It says what it has done, and ends.
        Outcome::Died(Some(status)) if status.success() => Ok(()),
        Outcome::Ready { .. } => Err(Error::Confused { device }),
        Outcome::Died(status) => {
            let words = logs::last_words(context, device);
            Err(Error::Died { goal: "taken down", status, words })
        }
        Outcome::TimedOut => Err(Error::NotGone { device, limit }),
        Outcome::Interrupted => Err(Error::Interrupted(match starting.give_up() {
            Ending::Lingers { pid } => format!("pid {pid} is still taking {device} down"),
            Ending::Ended | Ending::Ready { .. } => format!("see nbd-ctl list for {device}"),
        })),
    }
}

/// Removes what is left of a device that no process serves any more; false if there is one that does, or
/// that holds it by now.
pub(crate) fn clear(context: &Context, device: Device) -> Result<bool, Error> {
    match probe(&context.registry, device)? {
        DeviceState::Stale => clean(context, device),
        // All that was in flight is lost already: there is nothing to write back through.
        DeviceState::Abandoned(Abandoned { backend: None, .. }) => {
            take_down(context, device, true, None).map(|()| true)
        }
        _ => Ok(false),
    }
}
