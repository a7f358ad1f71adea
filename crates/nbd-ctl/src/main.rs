//! nbd-ctl: what operators type to attach, inspect and detach NBD devices.
//!
//! It speaks to the holders of devices over their control sockets, and starts them. It never
//! opens a device.
//!
//! | module | idea |
//! |---|---|
//! | [`cli`], [`action`] | the command line as typed, and as checked |
//! | [`parse`] | between the two; completes it for a shell |
//! | [`device`] | the name of a device |
//! | [`config`] | the devices of this machine by name |
//! | [`context`] | what every command needs: the registry, and Ctrl-C |
//! | [`entry`] | what there is of a device: a holder, an orphan, a stale folder |
//! | [`holder`] | a conversation with the holder of a device |
//! | [`spawn`], [`program`] | starting a holder, finding programs |
//! | [`attach`], [`adopt`], [`change`], [`wait`], [`inspect`], [`why`], [`trace`] | the commands |
//! | [`set`] | settings of a backend |
//! | [`logs`] | the log of a device, also after its end |
//! | [`record`], [`replay`] | requests with their data, and the same requests again |
//! | [`doctor`], [`metrics`] | the machine, and numbers for monitoring |
//! | [`top`] | devices as they are at work, on a terminal |
//! | [`debug`], [`footing`] | gdb on a backend, and what it must not stand on |
//! | [`render`], [`table`] | values to text |
//! | [`error`] | every way to fail, and its exit status |

mod action;
mod adopt;
mod attach;
mod change;
mod cli;
mod config;
mod context;
mod debug;
mod device;
mod doctor;
mod entry;
mod error;
mod footing;
mod holder;
mod inspect;
mod logs;
mod metrics;
mod parse;
mod program;
mod record;
mod render;
mod replay;
mod set;
mod spawn;
mod table;
mod take_down;
mod top;
mod trace;
mod wait;
mod why;

use std::process::ExitCode;
use std::sync::Arc;

use crate::action::Action;
use crate::context::{Context, say};
use crate::device::Device;
use crate::error::Error;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(text) = error.chain() {
                say(&text);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<(), Error> {
    let Some(arguments) = parse::parse()? else {
        return Ok(());
    };
    let context = Arc::new(Context::new(arguments.runtime_dir)?);
    Device::known_by_names_in(&context.registry);
    match Action::check(arguments.command)? {
        Action::Attach(wanted) => attach::attach(&context, &wanted),
        Action::AttachAll { config } => attach::attach_all(&context, &config),
        Action::Doctor { json, fix } => doctor::doctor(&context, json, fix),
        Action::Metrics { listen: None } => metrics::metrics(&context),
        Action::Metrics { listen: Some(address) } => metrics::serve(&context, &address),
        Action::Top { devices, wanted } => top::top(&context, devices, &wanted),
        Action::CheckConfig { file } => attach::check_config(&file),
        Action::Detach(wanted) => change::detach(&context, &wanted),
        Action::Status { device, json } => inspect::status(&context, device, json),
        Action::Trace { device, wanted } => trace::trace(&context, device, &wanted),
        Action::Record(wanted) => record::record(&context, &wanted),
        Action::StopRecording { device } => record::stop(&context, device),
        Action::Replay(wanted) => replay::replay(&context, &wanted),
        Action::Logs { device, last, lines } => logs::logs(&context, device, last, lines),
        Action::Why { target, json } => why::why(&context, target, json),
        Action::List { json } => inspect::list(&context, json),
        Action::Restart { device, limit } => change::restart(&context, device, limit),
        Action::Replace { device, program, limit } => {
            change::replace(&context, device, program, limit)
        }
        Action::Upgrade { device, limit } => change::upgrade(&context, device, limit),
        Action::Order { device, request, doing, limit } => {
            change::order(&context, device, &request, doing, limit)
        }
        Action::Debug(wanted) => debug::debug(&context, &wanted),
        Action::Wait { device, until, limit } => wait::wait(&context, device, until, limit),
        Action::Set { device, assignments, json } => set::set(&context, device, assignments, json),
        Action::Adopt { device } => adopt::adopt_explicitly(&context, device),
    }
}
