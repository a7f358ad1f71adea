//! `nbd-ctl attach`.

use std::time::{Duration, Instant};

use nbd_control::control::Request;

use crate::action::Attach;
use crate::context::{Context, print, reassure, say};
use crate::device::Device;
use crate::error::Error;
use crate::holder::Holder;
use crate::spawn::{Ending, Outcome, Starting};

/// When somebody who watches should hear that we wait.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often to look up from waiting without a limit.
const LONG: Duration = Duration::from_secs(3600);
/// How long the detach of a device that came too late may take.
const DETACH_LIMIT: Duration = Duration::from_secs(15);

/// Starts a holder and prints the path of its device once that can be used.
pub(crate) fn attach(context: &Context, wanted: &Attach) -> Result<(), Error> {
    let mut starting = Starting::spawn(context, &arguments(wanted), None)?;
    let start = Instant::now();
    let mut patience = PATIENCE;
    loop {
        match starting.outcome(patience)? {
            Outcome::Ready { path } => return print(&format!("{path}\n")),
            Outcome::Interrupted => return Err(abandon(context, &mut starting)),
            Outcome::Died(status) => {
                return Err(Error::Died {
                    goal: "ready",
                    status,
                    log: match wanted.device {
                        Some(Device(index)) => context.registry.log(index).display().to_string(),
                        None => "its words above".into(),
                    },
                });
            }
            Outcome::TimedOut => {
                if patience == PATIENCE && start.elapsed() >= PATIENCE {
                    reassure("waiting for the device to be ready; Ctrl-C gives up");
                }
                patience = LONG;
            }
        }
    }
}

fn arguments(wanted: &Attach) -> Vec<String> {
    let mut arguments = Vec::new();
    if let Some(device) = wanted.device {
        arguments.extend(["--device".to_string(), device.to_string()]);
    }
    arguments.extend_from_slice(&wanted.options);
    match &wanted.program {
        Some(program) => {
            arguments.push("--".into());
            arguments.extend_from_slice(program);
        }
        None => arguments.push("--external".into()),
    }
    arguments
}

/// Leaves nothing attached after Ctrl-C, or says what is.
fn abandon(context: &Context, starting: &mut Starting<'_>) -> Error {
    Error::Interrupted(match starting.give_up() {
        Ending::Ended => "nothing is attached".into(),
        Ending::Lingers { pid } => format!(
            "nbd-kernel-holder (pid {pid}) has not ended within 10 s: see nbd-ctl list for what \
             is attached"
        ),
        Ending::Ready { path } => match detach(context, &path) {
            Ok(()) => "nothing is attached".into(),
            Err(error) => {
                if let Some(text) = error.chain() {
                    say(&text);
                }
                format!("{path} was ready already, and is attached: nbd-ctl detach {path}")
            }
        },
    })
}

/// Detaches a device that was ready at the moment it was no longer wanted.
fn detach(context: &Context, path: &str) -> Result<(), Error> {
    let device: Device = path.parse()?;
    // Ctrl-C has been heard; it must not end this as well.
    let calm = context.without_interrupts()?;
    let request = Request::Detach { force: false };
    Holder::connect(&calm, device)?.order(&request, Some(DETACH_LIMIT), "detaching")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_gets_its_options_before_the_program() {
        let wanted = Attach {
            device: Some(Device(3)),
            options: vec!["--lanes".into(), "2".into()],
            program: Some(vec!["/bin/mine".into(), "--lanes".into()]),
        };
        assert_eq!(arguments(&wanted).join(" "), "--device nbd3 --lanes 2 -- /bin/mine --lanes");
        let external = Attach { device: None, options: Vec::new(), program: None };
        assert_eq!(arguments(&external), ["--external"]);
    }
}
