//! A device that is in use: whatever happens to its processes, whoever reads and writes notices
//! nothing.

use nbd_control::status::BackendState;

use crate::Api;
use crate::device::Device;
use crate::fio::{Area, Fio};
use crate::temp::TempDir;
use crate::wait::{EVENT_TIMEOUT, wait_until};

const MIB: u64 = 1 << 20;
/// What the load works on.
const AREA: u64 = MIB;

/// A device with a verified load on it.
pub struct Busy {
    /// The device.
    pub device: Device,
    /// The load.
    pub load: Fio,
    /// Where its file is, with room for others.
    pub files: TempDir,
}

impl Busy {
    /// Attaches a file of 16 MiB and sets the load on it.
    #[must_use]
    pub fn attach(api: Api) -> Self {
        let files = TempDir::new();
        let device = Device::attach(api, [files.spec("disk.img", 16 * MIB)]);
        Self::on(device, files)
    }

    /// Sets the load on a device of files.
    #[must_use]
    pub fn on(device: Device, files: TempDir) -> Self {
        let path = device.path();
        let area = Area::of_device(&path, AREA);
        area.fill();
        let load = area.start_verified();
        device.wait_progress();
        Self { device, load, files }
    }

    /// Ends the load, and panics if it has noticed anything.
    #[track_caller]
    pub fn ends_well(mut self) {
        self.device.wait_progress();
        self.load.goes_on();
        self.load.stop().is_good();
        let path = self.device.path();
        Area::of_device(&path, AREA).check();
        assert_eq!(self.device.wait_running().totals.errors, 0);
        self.device.detach();
    }

    /// Waits until another backend than this serves.
    #[track_caller]
    pub fn is_followed(&self, backend: i32) {
        wait_until("another backend", EVENT_TIMEOUT, || {
            let now = self.device.status().backend;
            now.state == BackendState::Running && now.pid != Some(backend)
        });
    }
}
