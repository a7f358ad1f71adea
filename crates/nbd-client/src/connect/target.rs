//! Which server: the text form of a target.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use nbd_net::uri::{Retry, Uri, UriError};
use thiserror::Error;

use crate::connect::child::SpawnMode;
use crate::options::MAX_CONNECTIONS;

/// A server that is reached by URI, or a program that the client starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An NBD URI.
    Uri(Box<Uri>),
    /// A program.
    Program(Program),
}

/// `exec:COMMAND`: a program that talks on its standard input and output, like `nbdkit -s`; or one
/// that listens on the socket that it is given as `$unixsocket`, if COMMAND mentions that.
///
/// `exec+listen:COMMAND`: a program that is given a listening socket, as by systemd.
///
/// Options are in front of the colon, each behind a comma, as whatever comes behind it is the
/// shell's: `exec,retry=60:nbdkit -s memory 1G`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// For the shell.
    pub command: String,
    /// It is given a listening socket.
    pub is_passed_a_socket: bool,
    /// `connections=N`, 1 to 16; one that talks on its standard input and output has only one.
    pub connections: Option<u32>,
    /// `retry=SECONDS|forever`.
    pub retry: Option<Retry>,
}

/// What is wrong with a target.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// No command.
    #[error("{0}: without a command: write {0}:nbdkit -s memory 1G, for example")]
    NoCommand(&'static str),
    /// No such option.
    #[error("there is no option {0:?} for {1}: use retry=SECONDS and connections=N")]
    Unknown(String, &'static str),
    /// An option that was there before.
    #[error("the option {0:?} is given twice: leave one of them out")]
    Twice(&'static str),
    /// An option's value does not fit.
    #[error("{0} is not understood: write {1}")]
    Value(String, &'static str),
    /// There is nothing to connect to.
    #[error(
        "exec with {0} connections: a program that talks on its standard input and output has one only; have it listen on $unixsocket, or use exec+listen"
    )]
    Single(u32),
    /// No URI.
    #[error(transparent)]
    Uri(#[from] UriError),
}

const EXEC: &str = "exec";
const EXEC_LISTEN: &str = "exec+listen";

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        if let Some((head, command)) = text.split_once(':') {
            let (scheme, options) = head.split_once(',').unwrap_or((head, ""));
            for known in [EXEC, EXEC_LISTEN] {
                if scheme == known {
                    return Program::parse(known, options, command).map(Self::Program);
                }
            }
        }
        Ok(Self::Uri(Box::new(text.parse()?)))
    }
}

impl Program {
    fn parse(scheme: &'static str, options: &str, command: &str) -> Result<Self, TargetError> {
        let command = command.trim().to_owned();
        if command.is_empty() {
            return Err(TargetError::NoCommand(scheme));
        }
        let is_passed_a_socket = scheme == EXEC_LISTEN;
        let mut program = Self { command, is_passed_a_socket, connections: None, retry: None };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            program.set(scheme, option)?;
        }
        match program.connections {
            Some(count @ 2..) if program.spawn_mode() == SpawnMode::Stdio => {
                Err(TargetError::Single(count))
            }
            _ => Ok(program),
        }
    }

    fn set(&mut self, scheme: &'static str, option: &str) -> Result<(), TargetError> {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
        let number = is_number.then(|| value.parse::<u32>().ok()).flatten();
        let wrong = |expected| TargetError::Value(option.to_owned(), expected);
        match name {
            "retry" => match number {
                _ if value == "forever" => once(&mut self.retry, "retry", Retry::Forever),
                Some(seconds) => {
                    once(&mut self.retry, "retry", Retry::For(Duration::from_secs(seconds.into())))
                }
                None => Err(wrong("retry=SECONDS or retry=forever")),
            },
            "connections" => match number.filter(|count| (1..=MAX_CONNECTIONS).contains(count)) {
                Some(count) => once(&mut self.connections, "connections", count),
                None => Err(wrong("connections=N, 1 to 16")),
            },
            _ => Err(TargetError::Unknown(name.to_owned(), scheme)),
        }
    }

    pub(crate) fn spawn_mode(&self) -> SpawnMode {
        let is_told_a_path = ["$unixsocket", "${unixsocket}"];
        match self.is_passed_a_socket {
            true => SpawnMode::InheritsSocket,
            false if is_told_a_path.iter().any(|name| self.command.contains(name)) => {
                SpawnMode::ListensOnPath
            }
            false => SpawnMode::Stdio,
        }
    }
}

fn once<T>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), TargetError> {
    slot.replace(value).map_or(Ok(()), |_| Err(TargetError::Twice(name)))
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
            Self::Program(program) => program.fmt(f),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_passed_a_socket { EXEC_LISTEN } else { EXEC })?;
        if let Some(count) = self.connections {
            write!(f, ",connections={count}")?;
        }
        match self.retry {
            Some(Retry::Forever) => f.write_str(",retry=forever")?,
            Some(Retry::For(time)) => write!(f, ",retry={}", time.as_secs())?,
            None => {}
        }
        write!(f, ":{}", self.command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_their_options_survive_a_round_trip() {
        for text in [
            "exec:nbdkit -s memory 1G",
            "exec,retry=60:nbdkit -s memory 1G",
            "exec,retry=forever:a,b=c:d",
            "exec,connections=1:nbdkit -s memory 1G",
            "exec,connections=4,retry=0:nbdkit -f -U $unixsocket memory 1G",
            "exec+listen,connections=16:qemu-nbd -t disk.img",
            "nbd+unix:///?socket=/run/a%2Cb",
        ] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("exec:", "write exec:nbdkit"),
            ("exec+listen: ", "write exec+listen:nbdkit"),
            ("exec,retries=4:a", "no option \"retries\" for exec"),
            ("exec,retry:a", "write retry=SECONDS"),
            ("exec,retry=+1:a", "write retry=SECONDS"),
            ("exec,retry=1,retry=2:a", "\"retry\" is given twice"),
            ("exec+listen,connections=17:a", "1 to 16"),
            ("exec,connections=2:nbdkit -s", "has one only; have it listen on $unixsocket"),
            ("exec", "is no NBD URI"),
        ] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
