//! What a test has put on a device, and what takes it down again, also if the test fails.

use crate::command::{run, start};
use crate::wait::EVENT_TIMEOUT;

/// Lines for a shell that take down what others have set up, the last one first.
#[derive(Debug, Default)]
pub struct TakenDown(Vec<String>);

impl TakenDown {
    /// Runs a line that sets something up, and notes the one that takes it down.
    #[track_caller]
    pub fn set_up(&mut self, line: &str, undone_by: &str) {
        run("sh", ["-c", line]).succeeds();
        self.0.push(undone_by.into());
    }

    /// Takes all of it down.
    #[track_caller]
    pub fn now(mut self) {
        while let Some(line) = self.0.pop() {
            run("sh", ["-c", &line]).succeeds();
        }
    }
}

impl Drop for TakenDown {
    fn drop(&mut self) {
        while let Some(line) = self.0.pop() {
            drop(start("sh", ["-c", &line]).finish(EVENT_TIMEOUT));
        }
    }
}
