//! Scripts that complete command lines.
//!
//! Programs that name attached devices are asked by the shell at each press of the key
//! (`COMPLETE=bash nbd-ctl`), so that the names are those of now. Where there is nothing live to
//! know the script knows it all.

use std::io;

use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use clap_complete::{Shell, generate};

use crate::Document;
use crate::programs::Program;

/// The variable by which a shell asks a program for completions.
const VARIABLE: &str = "COMPLETE";

/// The scripts of a program, under the names by which shells find them.
pub(crate) fn scripts(program: &Program, found: &mut Vec<Document>) -> io::Result<()> {
    let name = program.command.get_name().to_owned();
    let shells: [(Shell, &dyn EnvCompleter, String); 3] = [
        (Shell::Bash, &Bash, format!("bash/{name}")),
        (Shell::Zsh, &Zsh, format!("zsh/_{name}")),
        (Shell::Fish, &Fish, format!("fish/{name}.fish")),
    ];
    for (shell, asking, file) in shells {
        let mut script = Vec::new();
        if program.completes_itself {
            asking.write_registration(VARIABLE, &name, &name, &name, &mut script)?;
        } else {
            generate(shell, &mut program.command.clone(), &name, &mut script);
        }
        let script = String::from_utf8(script).map_err(io::Error::other)?;
        found.push((format!("completions/{file}"), script));
    }
    Ok(())
}
