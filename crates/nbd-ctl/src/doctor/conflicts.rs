//! Others who have set up devices, or will: two who take the same one end with the data of one.

use std::fs;

use nbd_control::remains::stray;

use crate::config::{Config, default_file};
use crate::context::Context;
use crate::device::Device;
use crate::doctor::findings::{Findings, Level, read};
use crate::error::Error;
use crate::holder::device_state::devices;

/// Programs that pick a device by themselves, by the names that the kernel gives them.
const OTHER_NBD_TOOLS: [&str; 3] = ["nbd-client", "qemu-nbd", "rbd-nbd"];

/// Others who have set devices up, or will.
pub(super) fn check(context: &Context, found: &mut Findings) -> Result<(), Error> {
    let ours = devices(&context.registry)?;
    let file = default_file();
    let config = match Config::read(&file) {
        Ok(config) => Some(config),
        Err(_) if !file.exists() => None,
        Err(error) => {
            found.add("config", Level::Trouble, Error::from(error).chain().unwrap_or_default());
            None
        }
    };
    let wanted = |device: Device| config.as_ref().and_then(|config| config.owner_of(device));
    for device in drivers_devices() {
        let attribute = |name: &str| read(format!("/sys/block/{device}/{name}"));
        let pid = attribute("pid");
        if !ours.contains(&device)
            && let Some(pid) = stray(device.0)
        {
            found.add("registry", Level::Trouble, Error::Stray { device, pid }.to_string());
            continue;
        }
        let sitter = context.registry.read_state(device.0).ok().flatten();
        let sitter = sitter.map(|state| state.sitter.pid.to_string());
        match pid {
            Some(pid)
                if ours.contains(&device)
                    && sitter.as_ref().is_some_and(|sitter| *sitter != pid) =>
            {
                let text = format!("{device}: set up by {} as well", describe(&pid));
                found.add("rivals", Level::Trouble, text);
            }
            Some(_) if ours.contains(&device) => {}
            Some(pid) => match wanted(device) {
                Some(name) => {
                    let text =
                        format!("{device} is meant for {name}, and {} has it", describe(&pid));
                    found.add("rivals", Level::Trouble, text);
                }
                None => {
                    let text = format!("{device} is set up by {}", describe(&pid));
                    found.add("rivals", Level::Fine, text);
                }
            },
            None if !ours.contains(&device) && attribute("size").is_some_and(|it| it != "0") => {
                let text = format!(
                    "{device} is set up, but no process uses it: free it with nbd-client -d {device}"
                );
                found.add("rivals", Level::Trouble, text);
            }
            None => {}
        }
    }
    let table = read("/etc/nbdtab").unwrap_or_default();
    for line in table.lines().filter(|line| !line.starts_with('#')) {
        let device = line.split_ascii_whitespace().next().and_then(Device::literal);
        if let Some(device) = device
            && let Some(name) = wanted(device)
        {
            let text = format!("{device} is meant for {name}, and /etc/nbdtab has it too");
            found.add("rivals", Level::Trouble, text);
        }
    }
    for (folder, unit) in enabled_units() {
        let device = unit.strip_prefix("nbd@").and_then(|rest| rest.strip_suffix(".service"));
        if let Some(device) = device.and_then(Device::literal)
            && let Some(name) = wanted(device)
        {
            let text = format!("{device} is meant for {name}, and {unit} in {folder} takes it too");
            found.add("rivals", Level::Trouble, text);
        }
    }
    for (pid, name) in takers() {
        let text = format!(
            "{name} (pid {pid}) may take NBD devices too: give yours fixed numbers with the key `device`"
        );
        found.add("rivals", Level::Fine, text);
    }
    Ok(())
}

/// Units that are started at boot, of the kind that comes with nbd-client.
fn enabled_units() -> Vec<(String, String)> {
    let folders = fs::read_dir("/etc/systemd/system").into_iter().flatten().flatten();
    let wants = folders
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "wants" || end == "requires"));
    let units = wants.flat_map(|folder| {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        entries.filter_map(move |entry| {
            Some((folder.display().to_string(), entry.file_name().into_string().ok()?))
        })
    });
    units.filter(|(_, unit)| unit.starts_with("nbd@")).collect()
}

/// Programs of others that set up devices, and run.
fn takers() -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let named = pids.filter_map(|pid: i32| Some((pid, read(format!("/proc/{pid}/comm"))?)));
    let mut found: Vec<_> = named.filter(|(_, name)| OTHER_NBD_TOOLS.contains(&&**name)).collect();
    found.sort();
    found
}

fn describe(pid: &str) -> String {
    match read(format!("/proc/{pid}/comm")) {
        Some(name) => format!("{name} (pid {pid})"),
        None => format!("pid {pid}, which is gone"),
    }
}

fn drivers_devices() -> Vec<Device> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<_> = names
        .filter(|name| name.starts_with("nbd"))
        .filter_map(|name| Device::literal(&name))
        .collect();
    found.sort();
    found
}
