//! Request headers, in the form that was negotiated.

use nbd_proto::handshake::ReplyStyle;
use nbd_proto::payload::StatusFilter;
use nbd_proto::{
    Command, CommandType, ExtendedRequest, NbdError, Rejection, Request, RequestRules as Rules,
    WrongMagic,
};
use thiserror::Error;

use crate::reply::ReplyTarget;

/// The client broke the protocol so that the end of its request cannot be found. The connection
/// must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum ProtocolError {
    #[error("sent something that is no request")]
    Magic(#[from] WrongMagic),
    #[error("announced a payload of {0} bytes")]
    PayloadTooLong(u64),
}

/// The header of a received request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RequestHeader {
    Plain(Request),
    Extended(ExtendedRequest),
}

impl RequestHeader {
    /// Length on the wire, in bytes.
    pub(crate) const fn len(style: ReplyStyle) -> usize {
        match style {
            ReplyStyle::Simple | ReplyStyle::Structured => Request::LEN,
            ReplyStyle::Extended => ExtendedRequest::LEN,
        }
    }

    /// Reads a header; `None` if `bytes` has only a part of it.
    pub(crate) fn parse(bytes: &[u8], style: ReplyStyle) -> Result<Option<Self>, ProtocolError> {
        Ok(match style {
            ReplyStyle::Simple | ReplyStyle::Structured => match bytes.first_chunk() {
                Some(bytes) => Some(Self::Plain(Request::decode(bytes)?)),
                None => None,
            },
            ReplyStyle::Extended => match bytes.first_chunk() {
                Some(bytes) => Some(Self::Extended(ExtendedRequest::decode(bytes)?)),
                None => None,
            },
        })
    }

    /// Bytes of payload behind the header, whether or not the command takes one.
    pub(crate) fn payload_len(&self) -> Result<u32, ProtocolError> {
        match self {
            Self::Plain(request) => Ok(request.payload_len()),
            Self::Extended(request) => {
                let length = request.payload_len();
                u32::try_from(length).map_err(|_| ProtocolError::PayloadTooLong(length))
            }
        }
    }

    pub(crate) fn command_type(&self) -> CommandType {
        match self {
            Self::Plain(request) => request.command,
            Self::Extended(request) => request.command,
        }
    }

    pub(crate) fn address(&self) -> ReplyTarget {
        match *self {
            Self::Plain(Request { cookie, offset, .. })
            | Self::Extended(ExtendedRequest { cookie, offset, .. }) => {
                ReplyTarget { cookie, offset }
            }
        }
    }

    /// Bytes of data that the request reads or writes, if it is valid.
    pub(crate) fn data_len(&self) -> u64 {
        match (self.command_type(), self) {
            (CommandType::READ | CommandType::WRITE, Self::Plain(request)) => {
                u64::from(request.length)
            }
            (CommandType::READ | CommandType::WRITE, Self::Extended(request)) => request.length,
            _ => 0,
        }
    }

    /// The command, if the request is valid. `payload` is the whole payload.
    pub(crate) fn check(
        &self,
        rules: &Rules,
        payload: &[u8],
        allocation: Option<u32>,
    ) -> Result<Command, RefusalReason> {
        match self {
            Self::Plain(request) => Ok(request.check(rules)?),
            Self::Extended(request) if request.is_filtered_status() => {
                let filter = StatusFilter::parse(payload).map_err(|_| RefusalReason::Filter)?;
                let command = request.check_filtered(&filter, rules)?;
                // `base:allocation` is the only context here, so a filter can only name that.
                match filter.contexts().collect::<Vec<_>>()[..] {
                    [context] if Some(context) == allocation => Ok(command),
                    _ => Err(RefusalReason::Filter),
                }
            }
            Self::Extended(request) => Ok(request.check(rules)?),
        }
    }
}

/// Why a request is answered with an error and not executed.
#[derive(Clone, Copy, Debug, Error)]
pub(crate) enum RefusalReason {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error("block status with a list of contexts that were not negotiated")]
    Filter,
    #[error("the server is shutting down")]
    Stopping,
}

impl RefusalReason {
    pub(crate) fn error(&self) -> NbdError {
        match self {
            Self::Rejected(rejection) => rejection.error(),
            Self::Filter => NbdError::EINVAL,
            Self::Stopping => NbdError::ESHUTDOWN,
        }
    }
}
