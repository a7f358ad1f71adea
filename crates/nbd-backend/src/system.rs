//! Kernel settings for a process that writeback may depend on.
#![allow(unsafe_code)]

use std::sync::Once;

/// `linux/prctl.h`, since 5.6; the libc crate does not have it.
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// `linux/capability.h`.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const CAP_IPC_LOCK: u32 = 14;

/// Prevents a deadlock of writeback: the kernel may need this process in order to free memory, so
/// the process must neither be swapped out nor start I/O when it allocates. Errors are ignored: an
/// unprivileged process may be refused both, and then runs without.
///
/// The flag is the calling thread's, and that of all threads that it starts afterwards. The lock is the
/// process's, and set once: each call would visit all of its mappings.
pub fn request_flusher_privileges() {
    static LOCK: Once = Once::new();
    // SAFETY: it takes plain numbers and changes only how the kernel treats this thread.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    LOCK.call_once(|| {
        if may_lock_all() {
            // SAFETY: it takes plain numbers and changes only how the kernel treats the memory of this
            // process. MCL_ONFAULT locks what is touched, and not all of the ledger's sparse memory.
            unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
        }
    });
}

/// Whether memory of any amount may be locked. With a limit, mmap(2) would fail once the ledgers of
/// several devices, which are large and sparse, exceed it.
fn may_lock_all() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it fills in the structure.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } == 0;
    (known && limit.rlim_cur == libc::RLIM_INFINITY) || has_capability(CAP_IPC_LOCK)
}

fn has_capability(capability: u32) -> bool {
    let mut header = [CAPABILITY_VERSION_3, 0];
    // Effective, permitted and inheritable ones, of two words each.
    let mut data = [[0u32; 3]; 2];
    // SAFETY: of this version, the kernel reads a header of two words and fills in six.
    let failed = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) };
    failed == 0 && data[capability as usize / 32][0] >> (capability % 32) & 1 != 0
}
