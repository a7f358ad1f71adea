//! Confining a backend: between fork and exec it gives up what a server of one disk does not need.
//!
//! It may still do what its user may do to files, and what it is there for: see, change, delay and
//! refuse the data of its device. docs/design/security.md says what that leaves.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::args::Sandbox;

/// Descriptors are enough for a file, the lanes, and connections to servers.
const MOST_FILES: libc::rlim_t = 4096;

/// System calls by which a process leaves its cell or reaches into others, by which it asks a
/// kernel for more than its users do, or by which a write could land after its death. Refused
/// with EPERM, so that a library that merely tries goes on without. See also [`filters`].
const REFUSED: &[libc::c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Other places.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_personality,
    libc::SYS_vhangup,
    // What few programs need, and most holes were in.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Writes that are under way when their process is dead.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
];

/// All that confining takes, made before the fork.
pub(crate) struct SandboxPlan {
    namespaces: CloneFlags,
    /// The registry, with the sockets of other devices.
    hidden: CString,
    filters: [BpfProgram; 2],
}

/// Those system calls, each if one of its rules fits or if it has none, get that error.
fn refuse(calls: BTreeMap<i64, Vec<SeccompRule>>, errno: libc::c_int) -> io::Result<BpfProgram> {
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let error = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, error, arch);
    filter.and_then(BpfProgram::try_from).map_err(io::Error::other)
}

/// Makes the filters. In a user namespace of its own a process has all capabilities again. It is
/// made by unshare, by clone, whose flags a filter sees, and by clone3, whose flags it does not:
/// that does not exist in here, and C libraries take clone.
fn filters() -> io::Result<[BpfProgram; 2]> {
    let flag = libc::CLONE_NEWUSER as u64;
    let has_flag = SeccompCmpOp::MaskedEq(flag);
    let new_user = SeccompCondition::new(0, SeccompCmpArgLen::Qword, has_flag, flag)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(io::Error::other)?;
    let mut refused: BTreeMap<_, _> = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    refused.insert(libc::SYS_clone, vec![new_user]);
    let missing = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok([refuse(refused, libc::EPERM)?, refuse(missing, libc::ENOSYS)?])
}

impl SandboxPlan {
    /// `directory` is one that the backend shall not see into.
    pub(crate) fn new(sandbox: Sandbox, directory: &Path) -> io::Result<Self> {
        let mut namespaces = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP;
        if sandbox == Sandbox::Local {
            namespaces |= CloneFlags::CLONE_NEWNET;
        }
        let hidden = CString::new(directory.as_os_str().as_bytes())?;
        Ok(Self { namespaces, hidden, filters: filters()? })
    }

    /// Enters namespaces of its own and gives capabilities up, while it still may. `fork_safe`.
    pub(crate) fn enter(&self) -> io::Result<()> {
        unshare(self.namespaces)?;
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        let plain =
            MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("tmpfs"), self.hidden.as_c_str(), Some("tmpfs"), plain, Some("mode=0"))?;
        let limit = libc::rlimit { rlim_cur: MOST_FILES, rlim_max: MOST_FILES };
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: system calls on plain numbers and local structures.
        unsafe {
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
            libc::setrlimit(libc::RLIMIT_MSGQUEUE, &raw const none);
            libc::setrlimit(libc::RLIMIT_RTPRIO, &raw const none);
            libc::setrlimit(libc::RLIMIT_NICE, &raw const none);
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
            for capability in 0..64 {
                if libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) == 1
                    && libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) != 0
                {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    }

    /// Puts the filters in place, when it is its user. There is no way back, not even by exec.
    /// `fork_safe`.
    pub(crate) fn lock(&self) -> io::Result<()> {
        // It also says that nothing that is executed may give privileges.
        self.filters.iter().try_for_each(|filter| {
            seccompiler::apply_filter(filter).map_err(|_| io::Error::last_os_error())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_can_be_made_for_this_processor() {
        let cell = SandboxPlan::new(Sandbox::Local, Path::new("/run/nbd")).unwrap();
        assert!(cell.filters[0].len() > REFUSED.len() && !cell.filters[1].is_empty());
        assert!(cell.namespaces.contains(CloneFlags::CLONE_NEWNET));
        let cell = SandboxPlan::new(Sandbox::Network, Path::new("/run/nbd")).unwrap();
        assert!(!cell.namespaces.contains(CloneFlags::CLONE_NEWNET));
    }
}
