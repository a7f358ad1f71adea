//! `nbd-ctl set`.

use std::time::Duration;

use nbd_control::control::{Request, Response};
use serde_json::Value;

use crate::context::{Context, print};
use crate::device::Device;
use crate::error::Error;
use crate::holder::client::HolderClient;

/// The holder does it by itself, whatever state the backend is in.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Changes settings, and prints all of them as they are then.
pub(crate) fn set(
    context: &Context,
    device: Device,
    assignments: Vec<String>,
    json: bool,
) -> Result<(), Error> {
    let mut holder = HolderClient::connect(context, device)?;
    holder.send(&Request::Set { assignments })?;
    let Response::Settings(settings) = holder.answer(Some(ANSWER_TIMEOUT), "")? else {
        return Err(Error::Confused { device });
    };
    let text = if json {
        let members = settings.into_iter().map(|(name, value)| (name, Value::from(value)));
        format!("{}\n", Value::Object(members.collect()))
    } else {
        settings.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    };
    print(&text)
}
