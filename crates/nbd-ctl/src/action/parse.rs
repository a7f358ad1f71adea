//! Parsing the command line.

use std::ffi::OsString;

use clap::FromArgMatches;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap_complete::env::CompleteEnv;
use nbd_control::attach_options::AttachOptions;

use crate::action::complete;
use crate::cli::{self, Arguments};
use crate::context::print;
use crate::error::Error;

/// Parses the command line. `None` means that it asked for help or the version, and has it.
pub(crate) fn parse() -> Result<Option<Arguments>, Error> {
    // Does nothing unless a shell asks, and then ends the program.
    CompleteEnv::with_factory(complete::definition).complete();
    match arguments(std::env::args_os()) {
        Ok(arguments) => Ok(Some(arguments)),
        Err(error) if error.kind() == ErrorKind::InvalidUtf8 => Err(Error::Usage(not_utf8())),
        Err(error) if error.use_stderr() => {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            Err(Error::Usage(text.trim_end().to_string()))
        }
        Err(error) => print(&error.render().to_string()).map(|()| None),
    }
}

/// Command lines of backends travel as text, and so do the paths in them.
fn not_utf8() -> String {
    let words = std::env::args_os().skip(1);
    let word = words.into_iter().find(|word| word.to_str().is_none()).unwrap_or_default();
    format!(
        "{word:?} is not UTF-8, which nbd-ctl needs: give the file a second name, like ln -s FILE disk.img"
    )
}

/// What was typed. Only clap knows which attach options were, as the others have their defaults.
fn arguments<T: Into<OsString> + Clone>(
    words: impl IntoIterator<Item = T>,
) -> Result<Arguments, clap::Error> {
    let matches = Arguments::definition().try_get_matches_from(words)?;
    let mut arguments = Arguments::from_arg_matches(&matches)?;
    if let (cli::Command::Attach(attach), Some((_, matches))) =
        (&mut arguments.command, matches.subcommand())
    {
        let typed = Some(ValueSource::CommandLine);
        attach.typed_options = AttachOptions::names()
            .iter()
            .any(|name| matches.value_source(&name.replace('-', "_")) == typed);
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_beside_a_name_are_noticed_also_where_they_are_the_default() {
        let attach = |words: &str| match arguments(words.split(' ')).unwrap().command {
            cli::Command::Attach(attach) => attach,
            other => unreachable!("{other:?}"),
        };
        for option in AttachOptions::names() {
            let value = match option.as_str() {
                "kernel-api" => "=ioctl",
                "restart" => "=on-failure",
                "on-backend-loss" => "=hold",
                "user" | "group" => "=root",
                "sandbox" | "survive-shutdown" => "",
                _ => "=3",
            };
            assert!(attach(&format!("nbd-ctl attach backup --{option}{value}")).has_options());
        }
        assert!(attach("nbd-ctl attach backup --no-spare").has_options());
        assert!(!attach("nbd-ctl attach backup --foreground --config x").has_options());
    }
}
