//! Kernel settings for a process that writeback may depend on.
#![allow(unsafe_code)]

/// `linux/prctl.h`, since 5.6; the libc crate does not have it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Prevents a deadlock of writeback: the kernel may need this process in order to free memory, so
/// the process must neither be swapped out nor start I/O when it allocates. Errors are ignored: an
/// unprivileged process may be refused both, and then runs without.
pub(crate) fn request_flusher_privileges() {
    // SAFETY: both calls take plain numbers and change only how the kernel treats this process.
    // MCL_ONFAULT locks what is touched, and not all of the ledger's sparse memory.
    unsafe {
        libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0);
        libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
    }
}
