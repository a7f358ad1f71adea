//! What there is of each device, for `status`, `list` and others.

use std::time::{Duration, Instant};

use nbd_control::control::{Request, Response};
use nbd_control::process::ProcessId;
use nbd_control::registry::State;
use nbd_control::status::Status;
use serde::Serialize;

use crate::context::{Context, eprint, print};
use crate::device::Device;
use crate::error::Error;
use crate::holder::client::HolderClient;
use crate::holder::device_state::{DeviceState, devices, probe};
use crate::inspect::listed::{Entry, Listed, Orphan};
use crate::inspect::render;

/// How long a holder may take to tell its status: it never waits for anything to do that.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// A device about which something is known already, or is being asked.
enum Asked<'a> {
    Known(Listed),
    Holder(HolderClient<'a>),
}

/// The status of one device or of all.
pub(crate) fn status(context: &Context, device: Option<Device>, json: bool) -> Result<(), Error> {
    let Some(device) = device else {
        return all(context, json, |devices| {
            let attached = devices.iter().filter_map(render::status);
            attached.collect::<Vec<_>>().join("\n")
        });
    };
    let status = of(context, device)?;
    let entry = Entry::new(&context.registry, device, Listed::Attached(status));
    if json { print_json(&entry) } else { print(&render::status(&entry).unwrap_or_default()) }
}

/// What its holder tells of a device.
pub(crate) fn of(context: &Context, device: Device) -> Result<Box<Status>, Error> {
    let mut holder = HolderClient::connect_to_look(context, device)?;
    holder.send(&Request::Status)?;
    told(&mut holder, device, Instant::now() + STATUS_TIMEOUT)
}

/// Tells what there is, and says what is wrong with it. The exit status is that of the first
/// device that could not be asked.
pub(crate) fn all(
    context: &Context,
    json: bool,
    text: impl Fn(&[Entry]) -> String,
) -> Result<(), Error> {
    let mut failed = None;
    let found = survey(context, &mut failed)?.into_iter();
    let found: Vec<_> = found
        .filter_map(|listed| {
            let device = Device::literal(listed.device())?;
            Some(Entry::new(&context.registry, device, listed))
        })
        .collect();
    if json {
        print_json(&found)?;
    } else if found.is_empty() {
        eprint("nothing is attached");
    } else {
        print(&text(&found))?;
    }
    for entry in &found {
        if let Some(remark) = remark(&entry.listed) {
            eprint(&remark);
        }
    }
    match failed {
        Some(code) => Err(Error::Several(code)),
        None => Ok(()),
    }
}

fn remark(listed: &Listed) -> Option<String> {
    let device = listed.device();
    match listed {
        Listed::Attached(_) => None,
        Listed::Orphaned(orphan) => Some(format!(
            "{device}: its holder (pid {}) is gone; the device works on: nbd-ctl adopt {device}",
            orphan.holder_pid
        )),
        Listed::Ending { .. } => Some(format!("{device}: its holder is ending")),
        Listed::Abandoned { detail, .. }
        | Listed::Stale { detail, .. }
        | Listed::Unreachable { detail, .. } => Some(detail.clone()),
    }
}

/// Asks all holders at once, so that several silent ones take no longer than one.
pub(crate) fn survey(context: &Context, failed: &mut Option<u8>) -> Result<Vec<Listed>, Error> {
    let mut asked = Vec::new();
    for device in devices(&context.registry)? {
        match ask(context, device) {
            Ok(Some(answer)) => asked.push((device, answer)),
            Ok(None) => {}
            Err(error) => asked.push((device, Asked::Known(unreachable(device, &error, failed)))),
        }
    }
    let deadline = Instant::now() + STATUS_TIMEOUT;
    let mut found = Vec::with_capacity(asked.len());
    for (device, answer) in asked {
        found.push(match answer {
            Asked::Known(listed) => listed,
            Asked::Holder(mut holder) => {
                match told(&mut holder, device, deadline) {
                    Ok(status) => Listed::Attached(status),
                    Err(error @ Error::Interrupted(_)) => return Err(error),
                    // It was detached while we asked.
                    Err(Error::Ended { .. })
                        if matches!(probe(&context.registry, device), Ok(DeviceState::Absent)) =>
                    {
                        continue;
                    }
                    Err(error) => unreachable(device, &error, failed),
                }
            }
        });
    }
    Ok(found)
}

/// What there is of one device. Does not adopt it, and cleans nothing up.
pub(crate) fn look_at(context: &Context, device: Device) -> Result<Option<Listed>, Error> {
    let told = match ask(context, device) {
        Ok(Some(Asked::Holder(mut holder))) => {
            told(&mut holder, device, Instant::now() + STATUS_TIMEOUT)
        }
        Ok(Some(Asked::Known(listed))) => return Ok(Some(listed)),
        Ok(None) => return Ok(None),
        Err(error) => Err(error),
    };
    match told {
        Ok(status) => Ok(Some(Listed::Attached(status))),
        Err(error @ (Error::Interrupted(_) | Error::Forbidden { .. })) => Err(error),
        Err(error) => Ok(Some(unreachable(device, &error, &mut None))),
    }
}

fn ask(context: &Context, device: Device) -> Result<Option<Asked<'_>>, Error> {
    let known = match probe(&context.registry, device)? {
        DeviceState::Absent => return Ok(None),
        DeviceState::Listening(stream) => {
            let holder = HolderClient::over(context, device, stream)?;
            holder.send(&Request::Status)?;
            return Ok(Some(Asked::Holder(holder)));
        }
        DeviceState::Orphaned(state) => Listed::Orphaned(Box::new(orphan(device, *state))),
        DeviceState::Unsettled { holder } => {
            Listed::Ending { device: device.to_string(), holder_pid: holder }
        }
        DeviceState::Abandoned(abandoned) => Listed::Abandoned {
            device: device.to_string(),
            backend_pid: abandoned.backend,
            connected: abandoned.connected,
            detail: Error::Abandoned { device, abandoned }.to_string(),
        },
        DeviceState::Stale => {
            let cleaned = false;
            Listed::Stale {
                device: device.to_string(),
                detail: Error::Stale { device, cleaned }.to_string(),
            }
        }
    };
    Ok(Some(Asked::Known(known)))
}

/// The answer to a request for status.
fn told(
    holder: &mut HolderClient<'_>,
    device: Device,
    deadline: Instant,
) -> Result<Box<Status>, Error> {
    let left = deadline.saturating_duration_since(Instant::now());
    match holder.answer(Some(left), "") {
        Ok(Response::Status(status)) => Ok(status),
        Ok(_) => Err(Error::Confused { device }),
        // However little was left of it when its turn came.
        Err(Error::Silent { holder, log, .. }) => {
            Err(Error::Silent { device, limit: STATUS_TIMEOUT, holder, log })
        }
        Err(error) => Err(error),
    }
}

fn orphan(device: Device, state: State) -> Orphan {
    let backend = state.backend.filter(ProcessId::is_alive);
    Orphan {
        device: device.to_string(),
        holder_pid: state.holder.pid,
        sitter_pid: state.sitter.pid,
        backend_pid: backend.map(|backend| backend.pid),
        description: state.description,
        export: state.export,
        lanes: state.options.lanes,
        restarts: state.restarts,
    }
}

fn unreachable(device: Device, error: &Error, failed: &mut Option<u8>) -> Listed {
    failed.get_or_insert(error.exit_code());
    Listed::unreachable(device, error)
}

pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Error::Output(error.into()))?;
    print(&format!("{text}\n"))
}
