//! `nbd-ctl wait`.

use std::time::{Duration, Instant};

use nbd_control::control::Request;

use crate::cli::Until;
use crate::context::{Context, eprint, progress};
use crate::device::Device;
use crate::error::Error;
use crate::holder::abandoned::Abandoned;
use crate::holder::client::HolderClient;
use crate::holder::device_state::{DeviceState, probe};
use crate::holder::take_down::clear;

/// How often to look at what cannot be listened to.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Waiting without a limit, as a limit.
const UNLIMITED_TIMEOUT: Duration = Duration::from_secs(3_000_000_000);

/// Waits for a device to be ready or gone.
pub(crate) fn wait(
    context: &Context,
    device: Device,
    until: Until,
    limit: Option<Duration>,
) -> Result<(), Error> {
    match until {
        Until::Ready | Until::Attached => {
            let mut holder = HolderClient::connect(context, device)?;
            holder.order(&Request::WaitReady, limit, "waiting for a backend")?;
            Ok(())
        }
        Until::Gone => wait_gone(context, device, limit.unwrap_or(UNLIMITED_TIMEOUT)),
    }
}

/// Waits until there is a device of this name, and it is served.
pub(crate) fn wait_attached(
    context: &Context,
    name: &str,
    limit: Option<Duration>,
) -> Result<(), Error> {
    let limit = limit.unwrap_or(UNLIMITED_TIMEOUT);
    let deadline = Instant::now() + limit;
    let mut told = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(device) = Device::literal(name).or_else(|| Device::named(name))
            && let DeviceState::Listening(stream) = probe(&context.registry, device)?
        {
            let mut holder = HolderClient::over(context, device, stream)?;
            match holder.order(&Request::WaitReady, Some(left), "waiting for a backend") {
                // Its attach has failed, and another one may come.
                Err(Error::Ended { .. } | Error::Talk { .. }) => {}
                other => return other.map(drop),
            }
        }
        if Instant::now() >= deadline {
            return Err(Error::NotAttached { name: name.into(), limit });
        }
        if !told {
            told = true;
            progress(&format!("{name}: waiting until it is attached"));
        }
        if !context.sleep(POLL_INTERVAL) {
            return Err(Error::Interrupted(format!("{name} is not attached")));
        }
    }
}

/// A device that lost its holder is not gone, and one that never was is.
fn wait_gone(context: &Context, device: Device, limit: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + limit;
    let mut told = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let entry = probe(&context.registry, device)?;
        if !told && !matches!(entry, DeviceState::Absent) {
            told = true;
            progress(&format!("{device}: waiting until it is detached"));
        }
        match entry {
            DeviceState::Absent => return Ok(()),
            DeviceState::Abandoned(abandoned @ Abandoned { backend: Some(_), .. }) => {
                return Err(Error::Abandoned { device, abandoned });
            }
            DeviceState::Stale | DeviceState::Abandoned(_) => {
                if clear(context, device)? {
                    eprint(&format!("{device} was stale: what was left of it is removed"));
                }
                continue;
            }
            DeviceState::Listening(stream) => match HolderClient::over(context, device, stream) {
                Ok(mut holder) => {
                    holder.outlasts(left)?;
                }
                // It ended while we connected.
                Err(Error::Ended { .. }) => {}
                Err(error) => return Err(error),
            },
            DeviceState::Orphaned(_) | DeviceState::Unsettled { .. } => {}
        }
        if Instant::now() >= deadline {
            return Err(Error::NotGone { device, limit });
        }
        if !context.sleep(POLL_INTERVAL) {
            return Err(Error::Interrupted(format!("{device} is not gone")));
        }
    }
}
