//! `nbd-ctl metrics`: what the holders count, printed once or told to clients of HTTP.
//!
//! | module | idea |
//! |---|---|
//! | [`text`] | a survey of the devices as OpenMetrics text |
//! | [`listen`] | where to answer, and who may connect there |
//! | [`server`] | clients at the same time, and how long each may take |
//! | [`http`] | what a client asks, and whether it asks us |

mod http;
mod listen;
mod server;
mod text;

use crate::context::{Context, print};
use crate::error::Error;
use crate::inspect::status::survey;

pub(crate) use http::HostNames;
pub(crate) use listen::Listen;
pub(crate) use server::serve;

/// Prints them once.
pub(crate) fn metrics(context: &Context) -> Result<(), Error> {
    let (text, failed) = collect(context)?;
    print(&text)?;
    failed.map_or(Ok(()), |code| Err(Error::Several(code)))
}

/// The text, and the exit status of a device that could not be asked.
fn collect(context: &Context) -> Result<(String, Option<u8>), Error> {
    let mut failed = None;
    let found = survey(context, &mut failed)?;
    Ok((text::render(&found), failed))
}
