//! Where the library's events go: nowhere, to a function of the program, or to stderr.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::abi::{NBDB_LOG_DEBUG, NBDB_LOG_ERROR, NBDB_LOG_INFO, NBDB_LOG_WARNING};
use crate::context::Context;
use crate::error::{Failure, Outcome};

/// A function of the program that gets messages, from any thread.
pub(crate) type LogFunction =
    unsafe extern "C-unwind" fn(context: *mut c_void, level: c_int, message: *const c_char);

struct ProgramLog {
    log: LogFunction,
    context: Context,
}

/// Sends events to the program from now on.
pub(crate) fn to_program(log: LogFunction, context: Context) -> Outcome<()> {
    tracing::subscriber::set_global_default(ProgramLog { log, context })
        .map_err(|_| Failure::new(libc::EALREADY, "it is decided already where the log goes"))
}

fn level(level: Level) -> c_int {
    match level {
        Level::ERROR => NBDB_LOG_ERROR,
        Level::WARN => NBDB_LOG_WARNING,
        Level::INFO => NBDB_LOG_INFO,
        _ => NBDB_LOG_DEBUG,
    }
}

impl Subscriber for ProgramLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    #[allow(unsafe_code)]
    fn event(&self, event: &Event<'_>) {
        let mut words = Words::default();
        event.record(&mut words);
        let Ok(text) = CString::new(words.message + &words.fields) else {
            return;
        };
        // SAFETY: the program declared the function so; the text lives until it returns.
        unsafe { (self.log)(self.context.0, level(*event.metadata().level()), text.as_ptr()) };
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message of an event, and then its fields.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
