//! gdb as a person uses it: commands are typed one by one, and a prompt that does not come back
//! fails the test.

use std::fmt::Display;
use std::io::Write;
use std::process::{ChildStdin, Command};
use std::thread::panicking;

use nix::sys::signal::Signal;

use crate::command::{PROGRAM_TIMEOUT, Running, converse};
use crate::ctl::require_machine;
use crate::process;
use crate::wait::wait_until;

/// A debugger at its prompt, or waiting for the program that it has let go on.
#[derive(Debug)]
pub struct Gdb {
    running: Running,
    keyboard: ChildStdin,
    /// What was printed before the latest command.
    read: usize,
    prompts: u32,
}

impl Gdb {
    /// `gdb -p`, once it has its prompt: the process is stopped.
    #[track_caller]
    #[must_use]
    pub fn attach(pid: i32) -> Self {
        let mut gdb = Self::launch(Command::new("gdb"), &["-p", &pid.to_string()]);
        gdb.answer();
        gdb
    }

    /// `gdb --args`, once it has its prompt. The program is not started yet.
    #[track_caller]
    #[must_use]
    pub fn with_program(environment: &[(&str, &str)], words: &[&str]) -> Self {
        let mut command = Command::new("gdb");
        command.envs(environment.iter().copied());
        let mut gdb = Self::launch(command, &[&["--args"], words].concat());
        gdb.answer();
        gdb
    }

    #[track_caller]
    fn launch(mut command: Command, arguments: &[&str]) -> Self {
        require_machine();
        command.args(["-nx", "-q"]);
        // What it would ask a person: breakpoints in libraries that are not loaded yet are wanted.
        for setting in ["pagination off", "confirm off", "breakpoint pending on"] {
            command.args(["-iex", &format!("set {setting}")]);
        }
        command.args(arguments);
        let (running, keyboard) = converse(command);
        let mut gdb = Self { running, keyboard, read: 0, prompts: 0 };
        gdb.mark();
        gdb
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// Types a command, and waits for the prompt after it: the answer.
    #[track_caller]
    pub fn ask(&mut self, command: impl Display) -> String {
        self.begin(command);
        self.answer()
    }

    /// Types a command whose prompt may be long in coming, like `continue`.
    #[track_caller]
    pub fn begin(&mut self, command: impl Display) {
        self.read = self.running.output().len();
        writeln!(self.keyboard, "{command}").expect("a gdb that reads");
        self.mark();
    }

    /// gdb reads the next line when the command before it is done: this one prints a mark then.
    #[track_caller]
    fn mark(&mut self) {
        self.prompts += 1;
        writeln!(self.keyboard, "echo {}\\n", mark(self.prompts)).expect("a gdb that reads");
    }

    /// Waits for the prompt: what was printed since the command.
    #[track_caller]
    pub fn answer(&mut self) -> String {
        wait_until("gdb is back at its prompt", PROGRAM_TIMEOUT, || {
            assert!(self.running.is_running(), "gdb has ended");
            !self.is_busy()
        });
        self.running.output()[self.read..].to_string()
    }

    /// Whether the prompt after the latest command has not come.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.running.output().contains(&mark(self.prompts))
    }

    /// Presses Ctrl-C, and waits for the prompt. A terminal sends that to the debugged program, if
    /// that is in the foreground.
    ///
    /// Only before anything was stepped, as `continue` from a breakpoint does, too. In user-mode Linux
    /// gdb takes the signal for a watchpoint else and goes on: where it looks for the processor's
    /// debug registers, `peek_user` shows the last trap's number.
    #[track_caller]
    pub fn interrupt(&mut self, program: i32) -> String {
        assert!(self.is_busy(), "the program is stopped already");
        assert!(process::signal(program, Signal::SIGINT), "the program is gone");
        self.answer()
    }

    /// Kills the debugger itself, with no chance to tidy up.
    #[track_caller]
    pub fn kill(mut self) {
        assert!(process::signal(self.pid(), Signal::SIGKILL), "gdb is gone");
        wait_until("gdb is dead", PROGRAM_TIMEOUT, || !self.running.is_running());
    }

    /// `quit`. That kills a program which gdb has started, and lets go one that it was attached to.
    #[track_caller]
    pub fn quit(mut self) {
        self.begin("quit");
        wait_until("gdb has quit", PROGRAM_TIMEOUT, || !self.running.is_running());
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        if panicking() {
            eprintln!("gdb:\n{}{}", self.running.output(), self.running.words());
            eprintln!("gdb and what it debugs:\n{}", process::describe(self.pid()));
        }
    }
}

fn mark(number: u32) -> String {
    format!("-- prompt {number} --")
}
