//! Looking at devices.
//!
//! A client that connects to a stopped holder may wait, without a limit if many clients have connected. So
//! each look has a thread, and a device is not looked at again before the last look has ended:
//! then one thread waits, and no other.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use nbd_control::trace::Executed;

use crate::context::Context;
use crate::device::Device;
use crate::error::Error;
use crate::holder::client::HolderClient;
use crate::holder::device_state::{self, DeviceState, probe};
use crate::inspect::listed::Listed;
use crate::inspect::status::look_at;
use crate::inspect::trace::fetch;

/// What came of a look.
#[derive(Debug)]
pub(crate) struct Looked {
    pub(crate) device: Device,
    pub(crate) at: Instant,
    /// What there is; `None` if the device is gone.
    pub(crate) found: Option<Listed>,
    /// What was executed since the numbers that were asked for, and what to ask for next.
    pub(crate) traced: Option<(Vec<Executed>, Vec<u64>)>,
}

type Tell = dyn Fn(Looked) + Send + Sync;

/// Looks under way.
pub(crate) struct Looks {
    context: Arc<Context>,
    /// Empty for all.
    wanted: Vec<Device>,
    busy: Arc<Mutex<BTreeSet<Device>>>,
    tell: Arc<Tell>,
}

impl fmt::Debug for Looks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Looks").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

impl Looks {
    /// Each look ends in a call of `tell`.
    pub(crate) fn new(
        context: &Arc<Context>,
        wanted: Vec<Device>,
        tell: impl Fn(Looked) + Send + Sync + 'static,
    ) -> Self {
        Self { context: Arc::clone(context), wanted, busy: Arc::default(), tell: Arc::new(tell) }
    }

    /// The devices that there are to look at now.
    pub(crate) fn devices(&self) -> Result<Vec<Device>, Error> {
        let mut devices = device_state::devices(&self.context.registry)?;
        devices.retain(|device| self.wanted.is_empty() || self.wanted.contains(device));
        devices.sort();
        Ok(devices)
    }

    /// Begins to look at those devices that are not being looked at; of the one that is followed,
    /// also at what was executed since these numbers.
    pub(crate) fn look(&self, devices: &[Device], followed: Option<&(Device, Vec<u64>)>) {
        for &device in devices {
            if !lock(&self.busy).insert(device) {
                continue;
            }
            let from = followed.filter(|(it, _)| *it == device);
            let from = from.map(|(_, from)| from.clone());
            let (context, busy) = (Arc::clone(&self.context), Arc::clone(&self.busy));
            let tell = Arc::clone(&self.tell);
            let started = thread::Builder::new().spawn(move || {
                let looked = look(&context, device, from);
                lock(&busy).remove(&device);
                tell(looked);
            });
            if started.is_err() {
                // The next round tries again.
                lock(&self.busy).remove(&device);
            }
        }
    }
}

fn look(context: &Context, device: Device, from: Option<Vec<u64>>) -> Looked {
    let found =
        look_at(context, device).unwrap_or_else(|error| Some(Listed::unreachable(device, &error)));
    let at = Instant::now();
    let traced = from.and_then(|mut from| {
        let Ok(DeviceState::Listening(stream)) = probe(&context.registry, device) else {
            return None;
        };
        let mut holder = HolderClient::over(context, device, stream).ok()?;
        let executed = fetch(&mut holder, device, &mut from, &mut None).ok()?;
        Some((executed, from))
    });
    Looked { device, at, found, traced }
}

fn lock(set: &Mutex<BTreeSet<Device>>) -> std::sync::MutexGuard<'_, BTreeSet<Device>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}
