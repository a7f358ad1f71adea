//! The command lines of the programs.
//!
//! Two of the programs are no libraries; the files with their definitions depend on clap alone
//! and are part of this crate as well. Nothing is parsed here.

use clap::{Command, CommandFactory};

#[path = "../../nbd-ctl/src/cli.rs"]
#[allow(dead_code, unused_imports, reason = "nbd-ctl uses what is defined, we only look at it")]
mod ctl;

#[path = "../../nbd-kernel-holder/src/args.rs"]
#[allow(dead_code, unused_imports, reason = "the holder uses what is defined, we only look at it")]
mod holder;

pub(crate) use ctl::groups;

/// The section of the manual for commands of the administrator.
pub(crate) const SECTION: &str = "8";

/// Pages that are not about a command line: file name, title, and Markdown.
pub(crate) const TEXTS: [(&str, &str, &str); 5] = [
    (
        "nbd-ctl-devices.5",
        "the devices of a machine, by name",
        include_str!("../../../docs/reference/config.md"),
    ),
    (
        "nbd-backend-protocol.7",
        "what a backend exchanges with its holder and with the kernel",
        include_str!("../../../docs/reference/backend-protocol.md"),
    ),
    (
        "libnbdbackend.3",
        "the C library for programs that serve devices themselves",
        include_str!("../../../docs/reference/libnbdbackend.md"),
    ),
    (
        "nbd-logs.7",
        "what holders and backends log, and how much of it",
        include_str!("../../../docs/reference/logs.md"),
    ),
    (
        "nbd-security.7",
        "who trusts whom among holder, backend and operator",
        include_str!("../../../SECURITY.md"),
    ),
];

/// A program's definition, and whether it completes its own command line when a shell asks.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) command: Command,
    pub(crate) completes_itself: bool,
}

/// All programs.
pub(crate) fn all() -> Vec<Program> {
    let ctl = Program { command: ctl::Arguments::definition(), completes_itself: true };
    let serve = Program { command: nbd_serve::Cli::command(), completes_itself: true };
    let holder = Program {
        command: holder::Args::command().name("nbd-kernel-holder"),
        completes_itself: false,
    };
    vec![ctl, serve, holder].into_iter().map(named).collect()
}

/// What they are called must not depend on the crate that asks.
fn named(program: Program) -> Program {
    let version = env!("CARGO_PKG_VERSION");
    Program { command: program.command.version(version), ..program }
}
