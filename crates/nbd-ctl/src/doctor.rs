//! `nbd-ctl doctor`: what on this machine keeps devices from being attached, kept or let go.

mod conflicts;
mod findings;
mod kernel_bugs;

use std::fs;
use std::path::Path;

use crate::context::{Context, print};
use crate::error::Error;
use crate::holder::abandoned::Abandoned;
use crate::holder::adopt::adopt;
use crate::holder::device_state::{DeviceState, devices, probe};
use crate::holder::take_down::clear;
use crate::inspect::status::print_json;
use crate::program;
use crate::text::style::is_coloured;
use findings::{Findings, Level, read};

/// The least kernel: `close_range`. Adoption takes `pidfd_getfd`, which is older.
const MIN_KERNEL: (u32, u32) = (5, 9);
const UDEV_RULES: &str = "udev/rules.d/59-nbd-ctl.rules";
/// A mebibyte of locked memory is what a holder touches; backends need some more.
const MIN_LOCKED_BYTES: u64 = 16 << 20;
const MIN_OPEN_FILES: u64 = 1024;

/// Looks at everything; with `fix`, also cleans and adopts what was left behind.
pub(crate) fn doctor(context: &Context, json: bool, fix: bool) -> Result<(), Error> {
    let mut found = Findings::default();
    check_driver(&mut found);
    check_kernel(&mut found);
    check_rights(context, &mut found);
    check_limits(&mut found);
    check_udev(&mut found);
    check_programs(&mut found);
    check_registry(context, fix, &mut found)?;
    conflicts::check(context, &mut found)?;
    if json {
        print_json(&found.0)?;
    } else {
        let coloured = is_coloured();
        let lines = found.0.iter().map(|finding| {
            let level = format!("{:<8}", format!("{:?}", finding.level).to_lowercase());
            let level = if coloured { finding.level.style().paint(&level) } else { level };
            format!("{level} {:<9} {}\n", finding.check, finding.text)
        });
        print(&lines.collect::<String>())?;
    }
    match found.0.iter().any(|finding| finding.level == Level::Trouble) {
        true => Err(Error::Several(1)),
        false => Ok(()),
    }
}

fn check_driver(found: &mut Findings) {
    let module = Path::new("/sys/module/nbd");
    if !module.exists() {
        let text = "the nbd driver is not loaded: modprobe nbd";
        return found.add("driver", Level::Trouble, text);
    }
    let parameter = |name: &str| read(module.join("parameters").join(name));
    let (devices, partitions) = (parameter("nbds_max"), parameter("max_part"));
    let text = format!(
        "loaded, nbds_max={} max_part={}",
        devices.as_deref().unwrap_or("?"),
        partitions.as_deref().unwrap_or("?")
    );
    found.add("driver", Level::Fine, text);
    if partitions.as_deref() == Some("0") {
        let text = "max_part=0: partitions are not shown; load the driver with max_part=16";
        found.add("driver", Level::Warning, text);
    }
}

fn check_kernel(found: &mut Findings) {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = read("/proc/sys/kernel/version").unwrap_or_default();
    let version = kernel_bugs::version(&release, &version);
    if (version.0, version.1) < MIN_KERNEL {
        let text = format!("{release}: at least {}.{} is needed", MIN_KERNEL.0, MIN_KERNEL.1);
        return found.add("kernel", Level::Trouble, text);
    }
    let (major, minor, patch) = version;
    found.add("kernel", Level::Fine, format!("{release} ({major}.{minor}.{patch})"));
    for bug in kernel_bugs::of(version) {
        let text = format!("until {}: {}", bug.fixed_in(), bug.text);
        found.add("kernel", Level::Warning, text);
    }
}

fn check_rights(context: &Context, found: &mut Findings) {
    let status = read("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let capabilities = capabilities.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    // CAP_SYS_ADMIN
    match capabilities.is_some_and(|set| set & (1 << 21) != 0) && nix::unistd::geteuid().is_root() {
        true => found.add("rights", Level::Fine, "root, with CAP_SYS_ADMIN"),
        false => {
            let text = "attaching needs root with CAP_SYS_ADMIN: run nbd-ctl doctor with sudo to check everything";
            found.add("rights", Level::Trouble, text);
        }
    }
    let directory = context.registry.directory();
    if let Ok(meta) = fs::metadata(directory) {
        use std::os::unix::fs::MetadataExt;
        if meta.mode() & 0o022 != 0 || meta.uid() != 0 {
            let text = format!(
                "{}: other users may write to it: run `chmod go-w` on it",
                directory.display()
            );
            found.add("rights", Level::Trouble, text);
        }
    }
}

/// Hard limits, as started processes may raise their own to those.
fn check_limits(found: &mut Findings) {
    let limits = read("/proc/self/limits").unwrap_or_default();
    for (name, least, what, setting, flag) in [
        ("Max locked memory", MIN_LOCKED_BYTES, "bytes of locked memory", "MEMLOCK", 'l'),
        ("Max open files", MIN_OPEN_FILES, "open files", "NOFILE", 'n'),
    ] {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let hard = line.and_then(|line| line.split_ascii_whitespace().nth(1)).unwrap_or("?");
        match hard.parse::<u64>() {
            // Root is not held to a limit of locked memory, but its backends may be others.
            Ok(limit) if limit < least => {
                found.add("limits", Level::Warning, low_limit(limit, least, what, setting, flag));
            }
            _ => found.add("limits", Level::Fine, format!("{hard} {what} (hard limit)")),
        }
    }
}

/// Which limit it is, and the places where it can be raised.
fn low_limit(limit: u64, least: u64, what: &str, setting: &str, flag: char) -> String {
    // ulimit -l counts KiB.
    let value = if flag == 'l' { least >> 10 } else { least };
    format!(
        "the hard limit is {limit} {what} (RLIMIT_{setting}), and holders and backends may need \
         {least}: raise it with `ulimit -H{flag} {value}` in a shell of root, Limit{setting}={least} \
         in a unit, or `* hard {} {value}` in /etc/security/limits.conf",
        setting.to_lowercase()
    )
}

fn check_udev(found: &mut Findings) {
    if !Path::new("/run/udev/control").exists() {
        return found.add("udev", Level::Fine, "does not run here");
    }
    let folders = ["/etc", "/run", "/usr/lib", "/lib"];
    match folders.iter().any(|folder| Path::new(folder).join(UDEV_RULES).exists()) {
        true => found.add("udev", Level::Fine, "our rules are installed"),
        false => {
            let text = "59-nbd-ctl.rules are not installed: there are no links in /dev/disk/by-nbd, and udev may open a device during its detach. Install the package, or copy packaging/59-nbd-ctl.rules to /etc/udev/rules.d";
            found.add("udev", Level::Warning, text);
        }
    }
}

fn check_programs(found: &mut Findings) {
    for looked_up in [program::holder(), program::nbd_serve()] {
        match looked_up {
            Ok(path) => found.add("programs", Level::Fine, path),
            Err(error) => found.add("programs", Level::Trouble, error.to_string()),
        }
    }
}

fn check_registry(context: &Context, fix: bool, found: &mut Findings) -> Result<(), Error> {
    for device in devices(&context.registry)? {
        let done = match probe(&context.registry, device) {
            Ok(DeviceState::Stale | DeviceState::Abandoned(Abandoned { backend: None, .. }))
                if fix =>
            {
                clear(context, device).map(|_| "cleaned up")
            }
            Ok(DeviceState::Orphaned(state)) if fix => {
                adopt(context, device, &state).map(|()| "has a holder again")
            }
            Ok(DeviceState::Stale) => {
                let text = format!(
                    "{device}: its processes have died: nbd-ctl doctor --fix removes what is left"
                );
                found.add("registry", Level::Trouble, text);
                continue;
            }
            Ok(DeviceState::Abandoned(abandoned)) => {
                let text = Error::Abandoned { device, abandoned }.to_string();
                found.add("registry", Level::Trouble, text);
                continue;
            }
            Ok(DeviceState::Orphaned(_)) => {
                let text = format!("{device}: its holder has died: nbd-ctl doctor --fix adopts it");
                found.add("registry", Level::Trouble, text);
                continue;
            }
            Ok(DeviceState::Unsettled { holder }) => {
                let text = format!("{device}: its holder (pid {holder}) does not listen");
                found.add("registry", Level::Warning, text);
                continue;
            }
            Ok(DeviceState::Listening(_)) => {
                found.add("registry", Level::Fine, format!("{device} is held"));
                continue;
            }
            Ok(DeviceState::Absent) => continue,
            Err(error) => Err(error),
        };
        match done {
            Ok(text) => found.add("registry", Level::Fixed, format!("{device}: {text}")),
            Err(error @ Error::Interrupted(_)) => return Err(error),
            Err(error) => {
                found.add("registry", Level::Trouble, error.chain().unwrap_or_default());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_limit_is_named_and_told_how_to_be_raised() {
        let text = low_limit(65536, MIN_LOCKED_BYTES, "bytes of locked memory", "MEMLOCK", 'l');
        for words in [
            "the hard limit is 65536 bytes of locked memory (RLIMIT_MEMLOCK)",
            "`ulimit -Hl 16384`",
            "LimitMEMLOCK=16777216",
            "`* hard memlock 16384` in /etc/security/limits.conf",
        ] {
            assert!(text.contains(words), "{text}");
        }
        let text = low_limit(256, MIN_OPEN_FILES, "open files", "NOFILE", 'n');
        assert!(text.contains("`ulimit -Hn 1024`") && text.contains("LimitNOFILE=1024"), "{text}");
    }
}
