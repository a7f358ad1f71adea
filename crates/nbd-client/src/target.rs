//! Which server, as people write it.

use std::fmt;
use std::str::FromStr;

use nbd_net::uri::{Uri, UriError};
use thiserror::Error;

/// A server that somebody runs, or one that we run ourselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An NBD URI.
    Uri(Box<Uri>),
    /// `exec:COMMAND`: a program that talks on its standard input and output, like `nbdkit -s`; or
    /// one that listens on the socket that it is given as `$unixsocket`, if COMMAND mentions that.
    Exec(String),
    /// `exec+listen:COMMAND`: a program that is given a listening socket, as by systemd. There may
    /// be several connections to it.
    ExecListen(String),
}

/// What is wrong with a target.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// No command.
    #[error("{0} without a command: write {0}nbdkit -s memory 1G, for example")]
    NoCommand(&'static str),
    /// No URI.
    #[error(transparent)]
    Uri(#[from] UriError),
}

const EXEC: &str = "exec:";
const EXEC_LISTEN: &str = "exec+listen:";

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let command = |prefix, command: &str| match command.trim() {
            "" => Err(TargetError::NoCommand(prefix)),
            command => Ok(command.to_owned()),
        };
        if let Some(text) = text.strip_prefix(EXEC) {
            return command(EXEC, text).map(Self::Exec);
        }
        if let Some(text) = text.strip_prefix(EXEC_LISTEN) {
            return command(EXEC_LISTEN, text).map(Self::ExecListen);
        }
        Ok(Self::Uri(Box::new(text.parse()?)))
    }
}

impl From<Uri> for Target {
    fn from(uri: Uri) -> Self {
        Self::Uri(Box::new(uri))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(uri) => uri.fmt(f),
            Self::Exec(command) => write!(f, "{EXEC}{command}"),
            Self::ExecListen(command) => write!(f, "{EXEC_LISTEN}{command}"),
        }
    }
}
