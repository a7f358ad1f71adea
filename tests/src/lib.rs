//! Shared parts of the whole-system tests.
//!
//! The tests in `tests/kernel_*.rs` need root and the kernel's nbd driver; `scripts/test` runs
//! them in a virtual machine, each file in one of its own. What is missing fails a test.
//!
//! | module | idea |
//! |---|---|
//! | [`command`], [`ctl`] | programs with a time limit, none left behind; ours among them |
//! | [`delay`] | packets that arrive late |
//! | [`device`] | an attached device, gone at the end of its test whatever happens |
//! | [`machine_state`], [`sysfs`] | what an attach changes on the machine, to see that a failed one changed nothing |
//! | [`fio`] | I/O that knows what it wrote |
//! | [`busy`] | a device with such I/O on it |
//! | [`c_program`] | programs in C with libnbdbackend |
//! | [`killer`] | SIGKILL for backends at random moments |
//! | [`trouble`] | full directories, short limits and kills around a device |
//! | [`stall`] | how long a device answers nothing |
//! | [`gdb`] | a debugger, and that its prompt comes back |
//! | [`screen`] | a terminal with a program in it, keys sent and the screen read back |
//! | [`full_run`] | a runtime directory without room |
//! | [`kernel_log`] | what the driver had to say meanwhile |
//! | [`disk`], [`mount`], [`tree`] | bytes on a device, file systems and something to put on them |
//! | [`page`], [`session`] | commands of the documentation, and a shell that types them |
//! | [`loop_device`], [`mapping`] | block devices on top of the device |
//! | [`taken_down`] | anything else that a test puts on a device |
//! | [`ceph`] | a cluster of Ceph, its images, and trouble for its daemons |
//! | [`cgroup`] | processes with little memory, or frozen |
//! | [`nbdkit`] | a server that somebody else runs |
//! | [`under`] | a block device under an export, which fails or falls silent |
//! | [`process`], [`temp`], [`random`], [`wait`] | odds and ends |

#![allow(clippy::missing_panics_doc, reason = "what does not hold panics, which fails the test")]

mod devices;
mod faults;
mod on_top;
mod programs;
pub mod random;
pub mod temp;
pub mod wait;

pub use devices::{busy, device, fio, kernel_log, machine_state, sysfs};
pub use faults::{cgroup, delay, full_run, killer, stall, trouble, under};
pub use on_top::{disk, loop_device, mapping, mount, taken_down, tree};
pub use programs::{c_program, ceph, command, ctl, gdb, nbdkit, page, process, screen, session};

use std::io::Write;

/// How a test talks to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// A process sits in NBD_DO_IT.
    Ioctl,
    /// Generic netlink.
    Netlink,
}

impl Api {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ioctl, Self::Netlink];

    /// The value of `--kernel-api`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ioctl => "ioctl",
            Self::Netlink => "netlink",
        }
    }
}

/// Makes two tests, `NAME::ioctl` and `NAME::netlink`, of each function that takes an [`Api`].
#[macro_export]
macro_rules! kernel_tests {
    ($($name:ident),* $(,)?) => { $(
        mod $name {
            #[test]
            #[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
            fn ioctl() {
                super::$name($crate::Api::Ioctl);
            }

            #[test]
            #[ignore = "needs the nbd driver: scripts/test runs it in a virtual machine"]
            fn netlink() {
                super::$name($crate::Api::Netlink);
            }
        }
    )* };
}

/// Tells what this kernel lacks of what the test needs. The test then returns, and `scripts/test`
/// counts it as not run: never as passed.
pub fn not_run(lacks: &str) {
    report(&format!("not run: {lacks}"));
}

/// Tells a number that is worth knowing also when the test passes. The test harness keeps back
/// what `eprintln!` prints, and nothing else.
pub fn report(text: &str) {
    let _ = writeln!(std::io::stderr(), "\n    {text}");
}
