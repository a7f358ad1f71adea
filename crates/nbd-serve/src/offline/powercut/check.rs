//! Running the checker.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use super::crash_images::CrashImage;
use super::error::PowercutError;

/// Most of a checker's words that are kept: the last ones.
const MAX_OUTPUT_LEN: usize = 4096;

/// A program that tells whether an image is in order.
pub(crate) struct Checker<'a> {
    program: &'a OsStr,
    arguments: &'a [OsString],
}

impl<'a> Checker<'a> {
    /// `command` is not empty.
    pub(crate) fn new(command: &'a [OsString]) -> Self {
        let (program, arguments) = command.split_at(1);
        Self { program: &program[0], arguments }
    }

    /// Runs it, and returns what it said.
    pub(crate) fn run(
        &self,
        image: &Path,
        crash_image: CrashImage,
    ) -> Result<(ExitStatus, String), PowercutError> {
        let mut command = Command::new(self.program);
        let mut is_named = false;
        for argument in self.arguments {
            let (argument, has_it) = fill_in(argument, image);
            is_named |= has_it;
            command.arg(argument);
        }
        if !is_named {
            command.arg(image);
        }
        command.env("POWERCUT_IMAGE", image).env("POWERCUT_SCENE", crash_image.to_string());
        let output = command.stdin(Stdio::null()).output().map_err(|source| {
            let program = self.program.into();
            PowercutError::Run { program, source }
        })?;
        let words = [output.stdout, output.stderr].concat();
        let end = &words[words.len().saturating_sub(MAX_OUTPUT_LEN)..];
        Ok((output.status, String::from_utf8_lossy(end).into_owned()))
    }
}

/// Puts the image's path where `{}` is.
fn fill_in(argument: &OsStr, image: &Path) -> (OsString, bool) {
    let (mut rest, mut filled, mut has_it) = (argument.as_bytes(), Vec::new(), false);
    while let Some(at) = rest.windows(2).position(|two| two == b"{}") {
        filled.extend_from_slice(&rest[..at]);
        filled.extend_from_slice(image.as_os_str().as_bytes());
        rest = &rest[at + 2..];
        has_it = true;
    }
    filled.extend_from_slice(rest);
    (OsString::from_vec(filled), has_it)
}
