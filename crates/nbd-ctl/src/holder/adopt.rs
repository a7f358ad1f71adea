//! `nbd-ctl adopt`: a new holder for a device whose holder is gone.

use std::path::PathBuf;
use std::time::Duration;

use nbd_control::registry::State;

use crate::context::{Context, eprint};
use crate::device::Device;
use crate::error::Error;
use crate::holder::abandoned::Abandoned;
use crate::holder::device_state::{DeviceState, no_device, probe};
use crate::holder::logs;
use crate::holder::spawn::{Ending, Outcome, Starting};
use crate::holder::take_down::clear;

/// How long an adoption may take.
const ADOPTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Adopts a device because the operator says so.
pub(crate) fn adopt_explicitly(context: &Context, device: Device) -> Result<(), Error> {
    let registry = &context.registry;
    match probe(registry, device)? {
        DeviceState::Absent => Err(no_device(registry, device)),
        DeviceState::Listening(_) => {
            Err(Error::HasHolder { device, holder: holder_pid(context, device) })
        }
        DeviceState::Unsettled { holder } => Err(Error::HasHolder { device, holder: Some(holder) }),
        DeviceState::Orphaned(state) => adopt(context, device, &state),
        DeviceState::Abandoned(abandoned @ Abandoned { backend: Some(_), .. }) => {
            Err(Error::Abandoned { device, abandoned })
        }
        // If it has come to life meanwhile, then with a holder.
        DeviceState::Stale | DeviceState::Abandoned(_) => Err(match clear(context, device)? {
            true => Error::Stale { device, cleaned: true },
            false => Error::HasHolder { device, holder: holder_pid(context, device) },
        }),
    }
}

/// Starts a holder that takes over from the dead one that wrote `state`.
pub(crate) fn adopt(context: &Context, device: Device, state: &State) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot { command: "adopt" });
    }
    let arguments = ["--adopt".to_string(), device.to_string()];
    // Relative paths in the backend's command line are meant from where its first holder was
    // started, and the sitter is still there.
    let directory = PathBuf::from(format!("/proc/{}/cwd", state.sitter.pid));
    let directory = Some(directory.as_path()).filter(|directory| directory.is_dir());
    let mut starting = Starting::spawn(context, &arguments, directory)?;
    let log = context.registry.log(device.0);
    match starting.outcome(ADOPTION_TIMEOUT)? {
        Outcome::Ready { .. } => {
            let pid = holder_pid(context, device).unwrap_or(starting.pid().cast_signed());
            eprint(&format!(
                "{device}: its holder (pid {}) had died; adopted by pid {pid}",
                state.holder.pid
            ));
            Ok(())
        }
        Outcome::Died(status) => {
            Err(Error::Died { goal: "adopted", status, words: logs::last_words(context, device) })
        }
        Outcome::TimedOut => {
            starting.give_up();
            Err(Error::AdoptionTimedOut { device, limit: ADOPTION_TIMEOUT, log })
        }
        Outcome::Interrupted => Err(Error::Interrupted(match starting.give_up() {
            Ending::Ended => format!("{device} has no holder: nbd-ctl adopt {device}"),
            Ending::Ready { .. } => format!("{device} was adopted"),
            Ending::Lingers { pid } => format!("pid {pid} is still adopting {device}"),
        })),
    }
}

fn holder_pid(context: &Context, device: Device) -> Option<i32> {
    let state = context.registry.read_state(device.0).ok()??;
    Some(state.holder.pid)
}
