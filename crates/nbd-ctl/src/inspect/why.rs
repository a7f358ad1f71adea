//! `nbd-ctl why`: who waits for what, and the way out.
//!
//! Nothing is asked of a backend or of the driver, and no device is opened: the holder reads the
//! ledger, and the rest is in `/proc` and `/sys`. A process that is stuck cannot make this command stuck.
//!
//! | module | idea |
//! |---|---|
//! | `facts` | what is known, as plain values |
//! | `above` | a device and what is stacked on it, by all names |
//! | `probe` | from `/proc` and `/sys` to facts |
//! | `stack` | what a thread does, by its kernel stack |
//! | `explain` | from facts to an explanation: who waits for what, and the way out; pure |
//! | `words` | an explanation as text |

mod above;
mod explain;
mod explanation;
mod facts;
mod probe;
mod process;
mod stack;
mod words;

use std::str::FromStr;

use crate::context::{Context, eprint, print};
use crate::device::Device;
use crate::error::Error;
use crate::holder::device_state::{devices, no_device};
use crate::inspect::status::{look_at, print_json};

use above::Stack;
use explain::explain;
use explanation::Explanation;
use facts::Facts;

/// What to explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Device(Device),
    Process(i32),
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.parse() {
            Ok(pid) if text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Self::Process(pid)),
            _ => Ok(Self::Device(Device::below(text)?)),
        }
    }
}

/// Explains a device, a process, or all devices.
pub(crate) fn why(context: &Context, target: Option<Target>, json: bool) -> Result<(), Error> {
    match target {
        Some(Target::Device(device)) => {
            let explanation = of_device(context, device)?;
            let explanation = explanation.ok_or_else(|| no_device(&context.registry, device))?;
            if json { print_json(&explanation) } else { print(&words::text(&explanation)) }
        }
        Some(Target::Process(pid)) => of_process(context, pid, json),
        None => {
            let all = of_all(context)?;
            match (json, all.is_empty()) {
                (true, _) => print_json(&all),
                (false, true) => {
                    eprint("nothing is attached");
                    Ok(())
                }
                (false, false) => print(&texts(&all)),
            }
        }
    }
}

fn texts(all: &[Explanation]) -> String {
    let texts: Vec<String> = all.iter().map(words::text).collect();
    texts.join("\n")
}

fn of_device(context: &Context, device: Device) -> Result<Option<Explanation>, Error> {
    let Some(listed) = look_at(context, device)? else {
        return Ok(None);
    };
    Ok(Some(explain(&Facts::gather(device, listed))))
}

/// Why a device does not go on, in one sentence, if that can be told.
pub(crate) fn in_short(context: &Context, device: Device) -> Option<String> {
    words::in_short(&of_device(context, device).ok()??)
}

fn of_all(context: &Context) -> Result<Vec<Explanation>, Error> {
    let mut all = Vec::new();
    for device in devices(&context.registry)? {
        all.extend(of_device(context, device)?);
    }
    Ok(all)
}

/// What a process does, and the devices that it has to do with.
fn of_process(context: &Context, pid: i32, json: bool) -> Result<(), Error> {
    let process = probe::process(pid).ok_or(Error::NoProcess { pid })?;
    let mut about = Vec::new();
    let mut roles = Vec::new();
    for device in devices(&context.registry)? {
        let Some(listed) = look_at(context, device)? else { continue };
        let role = probe::role(pid, &listed);
        if role.is_some() || probe::uses(pid, &Stack::of(device)) {
            roles.extend(role.map(|role| format!("{role} of {device}")));
            about.push(explain(&Facts::gather(device, listed)));
        }
    }
    let own = words::process(&process, &roles, about.is_empty());
    if json {
        return print_json(&serde_json::json!({
            "process": process, "roles": roles, "says": own, "devices": about,
        }));
    }
    let devices = if about.is_empty() { String::new() } else { texts(&about) };
    print(&format!("{own}\n{devices}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_number_is_a_process() {
        assert_eq!("7".parse::<Target>().unwrap(), Target::Process(7));
        assert_eq!("nbd7".parse::<Target>().unwrap(), Target::Device(Device(7)));
        for part in ["nbd7p1", "/dev/nbd7p12"] {
            assert_eq!(part.parse::<Target>().unwrap(), Target::Device(Device(7)), "{part}");
        }
        for wrong in ["-7", "+7", "sda", "nbd", "", "nbd7p", "/dev/null"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}
