//! `nbd-ctl check-config`: what a file with devices says that cannot be meant.

use std::path::Path;

use nix::unistd::{Group, User};

use crate::cli::AttachArguments;
use crate::config::Config;
use crate::context::{eprint, print};
use crate::error::Error;
use crate::program;
use crate::spec;

/// What is wrong with the value of a key.
type Mistake = (&'static str, String);

/// Checks a file with devices: each value, the SPECs, and whether the programs and users that it names
/// are there. Prints the devices without a mistake.
pub(crate) fn check_config(file: &Path) -> Result<(), Error> {
    let config = Config::read(file)?;
    let mut text = String::new();
    let mut is_fine = true;
    for name in config.names() {
        let arguments = config.device(name)?;
        let (what, mut mistakes) = backend(&config, name, &arguments)?;
        mistakes.extend(options(&arguments));
        for (key, cause) in &mistakes {
            eprint(&config.mistake(name, key, cause).to_string());
        }
        match mistakes.is_empty() {
            true => text.push_str(&format!("{name}  {what}\n")),
            false => is_fine = false,
        }
    }
    print(&text)?;
    if is_fine { Ok(()) } else { Err(Error::Several(Error::Usage(String::new()).exit_code())) }
}

/// What would serve the device.
fn backend(
    config: &Config,
    name: &str,
    arguments: &AttachArguments,
) -> Result<(String, Vec<Mistake>), Error> {
    let mut mistakes = Vec::new();
    let what = match (&arguments.spec, arguments.program.first()) {
        (Some(spec), _) => {
            let report = spec::report(spec)?;
            let paths = report.relative_paths.into_iter();
            mistakes.extend(report.mistake.map(|cause| ("export", cause)));
            mistakes.extend(paths.map(|path| ("export", relative(&path))));
            for warning in report.warnings {
                eprint(&format!("warning: {}", config.mistake(name, "export", &warning)));
            }
            spec.clone()
        }
        (None, Some(program)) => {
            let is_relative = program.contains('/') && !program.starts_with('/');
            mistakes.extend(is_relative.then(|| ("program", relative(program))));
            match program::find(program) {
                Ok(path) => path,
                Err(error) => {
                    mistakes.push(("program", error.to_string()));
                    String::new()
                }
            }
        }
        (None, None) => "external".into(),
    };
    Ok((what, mistakes))
}

/// A service manager starts in another directory than an operator.
fn relative(path: &str) -> String {
    format!(
        "{path}: is a relative path, and systemd has another working directory; write the absolute path"
    )
}

fn options(arguments: &AttachArguments) -> Vec<Mistake> {
    let options = &arguments.options;
    let mut mistakes = Vec::new();
    if let Err(cause) = options.check() {
        mistakes.push(("sandbox", cause.into()));
    }
    if let Some(user) = &options.user {
        match User::from_name(user) {
            Ok(Some(user)) if options.sandbox.is_some() && user.uid.is_root() => {
                mistakes.push(("user", "a sandbox cannot confine root: name another user".into()));
            }
            Ok(Some(_)) => {}
            Ok(None) => mistakes.push(("user", unknown("user", user, "passwd"))),
            Err(errno) => mistakes.push(("user", format!("cannot look up {user}: {errno}"))),
        }
    }
    if let Some(group) = &options.group {
        match Group::from_name(group) {
            Ok(Some(_)) => {}
            Ok(None) => mistakes.push(("group", unknown("group", group, "group"))),
            Err(errno) => mistakes.push(("group", format!("cannot look up {group}: {errno}"))),
        }
    }
    mistakes
}

fn unknown(what: &str, name: &str, database: &str) -> String {
    format!("no {what} {name} on this machine: `getent {database}` lists all")
}
