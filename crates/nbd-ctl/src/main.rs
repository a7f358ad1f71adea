//! nbd-ctl: what operators type to attach, inspect and detach NBD devices.
//!
//! It speaks to the holders of devices over their control sockets, and starts them.
//!
//! - It opens no device and asks the driver nothing, so a device that is stuck cannot make a command stuck. All else
//!   that may take long has a limit, and ends on Ctrl-C with a word on what is left.
//! - What a command prints for scripts goes to stdout, and words to stderr ([`context`]).
//! - Each way to fail has an exit status of its own kind ([`error`]), which holders use as well.
//!
//! | module | idea |
//! |---|---|
//! | [`cli`] | the command line as typed |
//! | [`action`] | the same as checked; between the two; and completing it for a shell |
//! | [`config`] | the devices of this machine by name: `devices.toml` |
//! | [`device`] | the name of a device |
//! | [`context`] | what every command needs: the registry, the terminal, and Ctrl-C |
//! | [`holder`] | what there is of a device, and its holder: found, asked, started, replaced |
//! | [`lifecycle`] | commands from attach to detach |
//! | [`inspect`] | commands that look: status, why, top, trace, metrics |
//! | [`debug`] | gdb on a backend; requests with their data, and the same requests again |
//! | [`doctor`] | what on this machine keeps devices from working |
//! | [`program`], [`spec`] | finding programs; what nbd-serve makes of a SPEC |
//! | [`text`] | values as text in columns; colours; dates |
//! | [`error`] | every way to fail, and its exit status |

mod action;
mod cli;
mod config;
mod context;
mod debug;
mod device;
mod doctor;
mod error;
mod holder;
mod inspect;
mod lifecycle;
mod program;
mod spec;
mod text;

use std::process::ExitCode;
use std::sync::Arc;

use crate::action::Action;
use crate::context::{Context, eprint};
use crate::debug::{record, replay};
use crate::device::Device;
use crate::error::Error;
use crate::holder::{adopt, logs};
use crate::inspect::{events, list, metrics, status, top, trace, why};
use crate::lifecycle::{attach, check_config, detach, set, wait};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(text) = error.chain() {
                eprint(&text);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<(), Error> {
    let Some(arguments) = action::parse::parse()? else {
        return Ok(());
    };
    let context = Arc::new(Context::new(arguments.runtime_dir)?);
    Device::known_by_names_in(&context.registry);
    match Action::check(arguments.command)? {
        Action::Attach(wanted) => attach::attach(&context, &wanted),
        Action::AttachAll { config } => attach::attach_all(&context, &config),
        Action::Doctor { json, fix } => doctor::doctor(&context, json, fix),
        Action::Metrics { listen: None } => metrics::metrics(&context),
        Action::Metrics { listen: Some(listen) } => metrics::serve(&context, &listen),
        Action::Top { devices, wanted } => top::top(&context, devices, &wanted),
        Action::CheckConfig { file } => check_config::check_config(&file),
        Action::Detach(wanted) => detach::detach(&context, &wanted),
        Action::Status { device, json } => status::status(&context, device, json),
        Action::Trace { device, wanted } => trace::trace(&context, device, &wanted),
        Action::Record(wanted) => record::record(&context, &wanted),
        Action::StopRecording { device } => record::stop(&context, device),
        Action::Replay(wanted) => replay::replay(&context, &wanted),
        Action::Logs { device, last, lines } => logs::logs(&context, device, last, lines),
        Action::Events { device, json } => events::events(&context, device, json),
        Action::Why { target, json } => why::why(&context, target, json),
        Action::List(wanted) => list::list(&context, &wanted),
        Action::Upgrade { device, limit } => lifecycle::upgrade(&context, device, limit),
        Action::Order { device, request, doing, limit } => {
            lifecycle::order(&context, device, &request, doing, limit)
        }
        Action::Debug(wanted) => debug::debug(&context, &wanted),
        Action::Wait { device, until, limit } => wait::wait(&context, device, until, limit),
        Action::WaitAttached { name, limit } => wait::wait_attached(&context, &name, limit),
        Action::Set { device, assignments, json } => set::set(&context, device, assignments, json),
        Action::Adopt { device } => adopt::adopt_explicitly(&context, device),
    }
}
