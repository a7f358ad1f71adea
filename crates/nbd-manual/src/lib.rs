//! The man pages and completions of the programs, made of what the programs themselves parse
//! their command lines with, and of the pages in `docs/`.
//!
//! Not installed: packaging runs `nbd-manual DIR` and installs what it writes.
//!
//! | module | idea |
//! |---|---|
//! | `programs` | the command lines of the programs |
//! | `page` | a command line to a man page |
//! | `surroundings` | environment variables and files of the programs |
//! | `markdown` | a page of `docs/` to a man page |
//! | `completions` | scripts for bash, zsh and fish |

mod completions;
mod document;
mod markdown;
mod page;
mod programs;
mod surroundings;

use std::fs;
use std::io;
use std::path::Path;

pub use document::Document;

/// All of the manual.
///
/// # Errors
/// If an argument is not as clap wants it, which a test would have found.
pub fn documents() -> io::Result<Vec<Document>> {
    let mut found = Vec::new();
    for program in programs::all() {
        page::pages(&program, &mut found)?;
    }
    for (name, title, text) in programs::TEXTS {
        found.push((format!("man/{name}"), markdown::page(name, title, text)));
    }
    for program in programs::all() {
        completions::scripts(&program, &mut found)?;
    }
    Ok(found)
}

/// What `--help` of a program or one of its commands shows, to compare the pages with.
#[must_use]
pub fn help(words: &[String]) -> Option<String> {
    let (program, commands) = words.split_first()?;
    let mut all = programs::all().into_iter();
    let mut command = all.find(|it| it.command.get_name() == program)?.command;
    command.build();
    for name in commands {
        command = command.find_subcommand(name)?.clone();
    }
    Some(command.render_long_help().to_string())
}

/// Writes it below a directory.
///
/// # Errors
/// If a file cannot be written.
pub fn write(directory: &Path) -> io::Result<()> {
    for (name, text) in documents()? {
        let path = directory.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, text)?;
    }
    Ok(())
}
