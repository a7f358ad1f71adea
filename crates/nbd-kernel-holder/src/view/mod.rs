//! What status, why, trace and the log show of a device. All is read without asking the backend or the
//! driver for anything.

pub(crate) mod ages;
pub(crate) mod clock;
pub(crate) mod outage;
pub(crate) mod poison;
pub(crate) mod status;
mod trace;
