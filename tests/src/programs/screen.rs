//! A terminal as a person sees it: a shell in tmux, keys that are typed, and the screen read back.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::panicking;

use crate::command::{PROGRAM_TIMEOUT, launch};
use crate::wait::{EVENT_TIMEOUT, wait_until};

/// What the shell says when it waits for a command.
const PROMPT: &str = "ready>";

/// A terminal, gone with the test.
#[derive(Debug)]
pub struct Screen {
    server: String,
}

impl Screen {
    /// A shell at its prompt on a terminal of this size.
    #[track_caller]
    #[must_use]
    pub fn new(width: u16, height: u16) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let screen = Self { server: format!("test-{}-{number}", std::process::id()) };
        let (width, height) = (width.to_string(), height.to_string());
        let shell = format!("env PS1='{PROMPT} ' sh");
        let size = ["-f", "/dev/null", "new-session", "-d", "-x", &width, "-y", &height];
        screen.tmux(&[&size[..], &[&shell]].concat());
        screen.shows(&[PROMPT]);
        screen
    }

    #[track_caller]
    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.args(["-u", "-L", &self.server]).args(arguments).env("LC_ALL", "C.UTF-8");
        launch(command).finish(PROGRAM_TIMEOUT).succeeds().stdout
    }

    /// Types a command, and does not wait for its end.
    #[track_caller]
    pub fn command(&self, line: &str) {
        self.tmux(&["send-keys", "-l", line]);
        self.press("Enter");
    }

    /// Presses a key, by tmux's name for it.
    #[track_caller]
    pub fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Gives the terminal another size.
    #[track_caller]
    pub fn resize(&self, width: u16, height: u16) {
        let (width, height) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-x", &width, "-y", &height]);
    }

    /// What is on the screen.
    #[track_caller]
    #[must_use]
    pub fn text(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until all these words are on the screen, and hands it out.
    #[track_caller]
    pub fn shows(&self, words: &[&str]) -> String {
        self.becomes(&words.join(", "), |text| words.iter().all(|word| text.contains(word)))
    }

    /// Waits until the screen is as it should be, and hands it out.
    #[track_caller]
    pub fn becomes(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        wait_until(&format!("{what} on the screen"), EVENT_TIMEOUT, || {
            text = self.text();
            holds(&text)
        });
        text
    }

    /// Waits until the shell has its terminal back, and panics unless that is in order: the normal
    /// screen, a cursor, and lines that are echoed and edited.
    #[track_caller]
    pub fn is_restored(&self) {
        let modes = || self.tmux(&["display", "-p", "#{alternate_on} #{cursor_flag}"]);
        wait_until("the normal screen", EVENT_TIMEOUT, || modes().trim() == "0 1");
        self.command(
            "clear; stty -a | tr -d ';' | tr ' ' '\\n' | grep -xc -e icanon -e echo -e isig",
        );
        self.shows(&[&format!("3\n{PROMPT}")]);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if panicking() {
            let mut command = Command::new("tmux");
            command.args(["-u", "-L", &self.server, "capture-pane", "-p"]);
            let shown = command.output().map(|output| output.stdout).unwrap_or_default();
            eprintln!("the screen:\n{}", String::from_utf8_lossy(&shown));
        }
        let _ = Command::new("tmux").args(["-L", &self.server, "kill-server"]).output();
    }
}
