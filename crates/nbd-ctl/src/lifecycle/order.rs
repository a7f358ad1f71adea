//! Orders to a holder, which may take as long as a backend takes.

use std::time::Duration;

use nbd_control::control::{Request, Response};

use crate::error::Error;
use crate::holder::client::HolderClient;
use crate::inspect::why;

impl HolderClient<'_> {
    /// Sends a request that is answered with `Done`; the result is what that says.
    pub(crate) fn order(
        &mut self,
        request: &Request,
        limit: Option<Duration>,
        doing: &str,
    ) -> Result<String, Error> {
        self.send(request)?;
        match self.answer_order(limit, doing)? {
            Response::Done { text } => Ok(text),
            _ => Err(Error::Confused { device: self.device }),
        }
    }

    /// The answer to an order. If none comes, the error tells what the device waits for as well: a look
    /// would have waited for nothing but the holder itself.
    pub(crate) fn answer_order(
        &mut self,
        limit: Option<Duration>,
        doing: &str,
    ) -> Result<Response, Error> {
        self.answer(limit, doing).map_err(|error| match error {
            Error::Silent { device, limit, holder, log } if !doing.is_empty() => {
                let cause = why::in_short(self.context, device);
                let cause = cause
                    .map(|cause| format!("; {device}: {cause}: see nbd-ctl why {device}"))
                    .unwrap_or_default();
                Error::Silent { device, limit, holder: holder + &cause, log }
            }
            error => error,
        })
    }
}
