//! A helper process that has not reported.

use std::fs::File;
use std::os::fd::BorrowedFd;

use crate::kernel::device_users::Scan;
use crate::kernel::helper_process::HelperProcess;

/// A helper process that has not reported.
#[derive(Debug)]
pub(crate) struct Helper {
    pub(crate) process: HelperProcess,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Status,
    Users(Scan),
    Flush,
    Resize,
    SilenceTimeouts,
    CompareLimits,
    Program { name: String, answer: File },
}

impl Helper {
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.process.descriptor()
    }

    pub(crate) fn is_scan(&self) -> bool {
        matches!(self.kind, Kind::Users(_))
    }
}
