//! An event as a line: `nbd-kernel-holder: nbd0: served by process 7 again pid=7 replayed=3`.

use std::fmt::{self, Write};

use nbd_control::text::printable;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::stderr::Stderr;

/// The field that stands before the message and not behind it.
const DEVICE: &str = "device";
const MESSAGE: &str = "message";

/// Writes each event to stderr, whatever that is at the moment.
pub(crate) struct Lines {
    program: String,
    stderr: Stderr,
}

impl Lines {
    /// With `stays` a pipe that stderr is now is kept open.
    pub(crate) fn new(program: &str, stays: bool) -> Self {
        Self { program: program.into(), stderr: Stderr::new(stays) }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        self.stderr.write_line(&self.program, &line.finish(&self.program));
    }
}

#[derive(Default)]
struct Line {
    device: String,
    message: String,
    fields: String,
}

impl Line {
    fn add(&mut self, field: &Field, value: &str) {
        match field.name() {
            DEVICE => self.device = printable(value, &['\n']),
            MESSAGE => self.message = printable(value, &['\n']),
            name => {
                let is_word = |c: char| !c.is_whitespace() && !c.is_control() && !"\"=".contains(c);
                let _ = match !value.is_empty() && value.chars().all(is_word) {
                    true => write!(self.fields, " {name}={value}"),
                    false => write!(self.fields, " {name}={value:?}"),
                };
            }
        }
    }

    fn finish(self, program: &str) -> String {
        let Self { device, message, fields } = self;
        // A line in a message of several must not look like one of ours.
        let message = message.replace(&format!("\n{program}"), &format!("\n  {program}"));
        match device.is_empty() {
            true => format!("{program}: {message}{fields}\n"),
            false => format!("{program}: {device}: {message}{fields}\n"),
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    struct Kept(Arc<Mutex<String>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
            let mut line = Line::default();
            event.record(&mut line);
            self.0.lock().unwrap().push_str(&line.finish("prog"));
        }
    }

    #[test]
    fn a_device_stands_in_front_and_fields_behind() {
        let lines = Arc::default();
        let subscriber = tracing_subscriber::registry().with(Kept(Arc::clone(&lines)));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("plain");
            let (pid, none) = (7, None::<u32>);
            tracing::warn!(device = %"nbd0", event = "lost", pid, none, ms = 1.5, "backend {pid} died");
            tracing::error!(cause = "a \"b\" c", empty = "", "bell \x07 and\nline\nprog: x");
        });
        assert_eq!(
            *lines.lock().unwrap(),
            "prog: plain\n\
             prog: nbd0: backend 7 died event=lost pid=7 ms=1.5\n\
             prog: bell \\u{7} and\nline\n  prog: x cause=\"a \\\"b\\\" c\" empty=\"\"\n"
        );
    }
}
