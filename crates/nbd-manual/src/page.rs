//! A command line to man pages: one for the program, and one for each subcommand.

use std::io;

use clap::Command;
use clap_mangen::Man;
use roff::{Roff, bold, roman};

use crate::document::Document;
use crate::programs::{Program, SECTION, TEXTS, all, groups};
use crate::surroundings::{environment, files};

const MANUAL: &str = "NBD devices";

/// The pages of a program.
pub(crate) fn pages(program: &Program, found: &mut Vec<Document>) -> io::Result<()> {
    let mut command = program.command.clone().disable_help_subcommand(true);
    command.build();
    add(&command, found)
}

fn add(command: &Command, found: &mut Vec<Document>) -> io::Result<()> {
    let name = name_of(command);
    found.push((format!("man/{name}.{SECTION}"), page(command, &name)?));
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        add(inner, found)?;
    }
    Ok(())
}

/// `nbd-ctl-attach`.
fn name_of(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

fn page(command: &Command, name: &str) -> io::Result<String> {
    let man = Man::new(command.clone());
    // Without a date, so that a version's pages are the same on every day.
    let title = name.to_uppercase().replace('-', "\\-");
    let source = format!("nbd-ctl {}", env!("CARGO_PKG_VERSION"));
    let title = format!(".TH \"{title}\" {SECTION} \"\" \"{source}\" \"{MANUAL}\"\n");
    let mut bytes = title.into_bytes();
    man.render_name_section(&mut bytes)?;
    man.render_synopsis_section(&mut bytes)?;
    man.render_description_section(&mut bytes)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut bytes)?;
    }
    let mut rest = Roff::new();
    commands(command, &mut rest);
    after_help(command, &mut rest);
    listed("ENVIRONMENT", environment(name), &mut rest);
    listed("FILES", files(name), &mut rest);
    see_also(name, &mut rest);
    bytes.extend_from_slice(rest.to_roff().as_bytes());
    let text = String::from_utf8(bytes).map_err(io::Error::other)?;
    Ok(tidy(&text))
}

fn commands(command: &Command, rest: &mut Roff) {
    let mut inner = command.get_subcommands().filter(|inner| !inner.is_hide_set()).peekable();
    if inner.peek().is_none() {
        return;
    }
    rest.control("SH", ["COMMANDS"]);
    for inner in inner {
        if let Some(heading) = heading_of_group(command, inner) {
            rest.control("SS", [heading]);
        }
        let about = inner.get_about().map(ToString::to_string).unwrap_or_default();
        rest.control("TP", []);
        rest.text([bold(name_of(inner)), roman(format!("({SECTION})"))]);
        rest.text([roman(about)]);
    }
}

/// The heading above the first command of a group; only nbd-ctl has groups.
fn heading_of_group(command: &Command, inner: &Command) -> Option<&'static str> {
    let is_ctl = command.get_name() == "nbd-ctl";
    is_ctl.then(|| groups::heading(inner.get_name())).flatten()
}

/// What `--help` shows last is laid out by hand, and has headings of its own.
fn after_help(command: &Command, rest: &mut Roff) {
    let Some(help) = command.get_after_help() else {
        return;
    };
    for (number, paragraph) in help.to_string().split("\n\n").enumerate() {
        let body = match heading(paragraph) {
            Some((heading, body)) => {
                rest.control("SH", [heading]);
                body
            }
            None if number == 0 => {
                rest.control("SH", ["NOTES"]);
                paragraph
            }
            None => {
                rest.control("PP", []);
                paragraph
            }
        };
        rest.control("nf", []);
        for line in body.lines() {
            rest.text([roman(line)]);
        }
        rest.control("fi", []);
    }
}

fn heading(paragraph: &str) -> Option<(&'static str, &str)> {
    let (first, body) = paragraph.split_once('\n')?;
    match first {
        "Example:" => Some(("EXAMPLES", body)),
        "Exit status:" => Some(("EXIT STATUS", body)),
        _ => None,
    }
}

fn listed(heading: &str, entries: &[(&str, &str)], rest: &mut Roff) {
    if entries.is_empty() {
        return;
    }
    rest.control("SH", [heading]);
    for (name, about) in entries {
        rest.control("TP", []);
        rest.text([bold(*name)]);
        rest.text([roman(*about)]);
    }
}

fn see_also(name: &str, rest: &mut Roff) {
    let programs = all().into_iter().map(|program| {
        let name = program.command.get_name().to_owned();
        (name, SECTION.to_owned())
    });
    let texts = TEXTS.iter().filter_map(|(file, ..)| {
        let (name, section) = file.rsplit_once('.')?;
        Some((name.to_owned(), section.to_owned()))
    });
    let others: Vec<_> = programs.chain(texts).filter(|(other, _)| other != name).collect();
    rest.control("SH", ["SEE ALSO"]);
    let last = others.len().saturating_sub(1);
    for (number, (other, section)) in others.into_iter().enumerate() {
        let comma = if number == last { "" } else { "," };
        rest.text([bold(other), roman(format!("({section}){comma}"))]);
    }
}

/// Without the empty lines and doubled breaks of the library, which linters complain of.
fn tidy(text: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        let doubled = line == ".br" && lines.last() == Some(&".br");
        if !line.is_empty() && !doubled {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}
