//! Bugs of the kernel's driver that matter to our devices, by kernel version.
//!
//! The versions are those in which the stable kernels got the fix, as the changelog of Debian's
//! kernel 6.1 lists them. What is not known of a series is not said.

/// A version: major, minor, patch.
pub(super) type Version = (u32, u32, u32);

/// Something that is wrong with some kernels.
#[derive(Debug)]
pub(super) struct KernelBug {
    /// The first version that has it.
    since: Version,
    /// The first one of the same series, or of all later ones, that does not.
    fixed_in: Version,
    pub(super) text: &'static str,
}

const KERNEL_BUGS: [KernelBug; 4] = [
    KernelBug {
        since: (0, 0, 0),
        fixed_in: (5, 18, 4),
        text: "I/O can hang for ever when a device is disconnected, and so can removing the module: \
               write back and unmount before a detach",
    },
    KernelBug {
        since: (6, 1, 0),
        fixed_in: (6, 1, 63),
        text: "opening a device at the moment at which it is removed can crash the kernel: do not \
               unload the nbd module while devices are looked at",
    },
    KernelBug {
        since: (6, 1, 0),
        fixed_in: (6, 1, 146),
        text: "an attach by netlink that the driver refuses can crash the kernel: use \
               --kernel-api ioctl",
    },
    KernelBug {
        since: (6, 1, 0),
        fixed_in: (6, 1, 160),
        text: "an attach by netlink whose sockets are closed at the same moment can crash the kernel \
               (CVE-2025-68366, CVE-2025-68372): use --kernel-api ioctl",
    },
];

/// What is wrong with this version.
pub(super) fn of(version: Version) -> impl Iterator<Item = &'static KernelBug> {
    KERNEL_BUGS.iter().filter(move |bug| (bug.since..bug.fixed_in).contains(&version))
}

impl KernelBug {
    /// From which version on it is fixed_in.
    pub(super) fn fixed_in(&self) -> String {
        let (major, minor, patch) = self.fixed_in;
        format!("{major}.{minor}.{patch}")
    }
}

/// The version of a running kernel. Distributions that build another patch level under one release,
/// like Debian, tell it in `version`: `#1 SMP Debian 6.1.128-1 (2025-02-07)`.
pub(super) fn version(release: &str, version: &str) -> Version {
    let told = version.split_once("Debian ").map(|(_, rest)| numbers(rest));
    let released = numbers(release);
    told.filter(|told| (told.0, told.1) == (released.0, released.1)).unwrap_or(released)
}

fn numbers(text: &str) -> Version {
    let mut numbers =
        text.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distributions_patch_level_counts() {
        let debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.128-1 (2025-02-07)";
        assert_eq!(version("6.1.0-31-amd64", debian), (6, 1, 128));
        assert_eq!(version("6.12.3", "#1 SMP"), (6, 12, 3));
        assert_eq!(version("7.2-rc1", ""), (7, 2, 0));
        assert_eq!(version("6.6.9", "Debian 6.1.1"), (6, 6, 9), "of another kernel");
    }

    #[test]
    fn a_fixed_kernel_has_no_bugs_and_others_have_theirs() {
        for (version, count) in [
            ((5, 10, 200), 1),
            ((5, 18, 4), 0),
            ((5, 19, 0), 0),
            ((6, 1, 62), 3),
            ((6, 1, 63), 2),
            ((6, 1, 159), 1),
            ((6, 1, 160), 0),
            ((6, 12, 0), 0),
        ] {
            assert_eq!(of(version).count(), count, "{version:?}");
        }
        assert_eq!(of((6, 1, 159)).next().unwrap().fixed_in(), "6.1.160");
    }
}
