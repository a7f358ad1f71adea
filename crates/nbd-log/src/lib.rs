//! Where the events of our programs go: lines on stderr that people read and grep, or, under systemd,
//! fields in the journal.
//!
//! Events are made with the macros of `tracing`. A program calls [`init`] once; libraries never do.
//! Nothing is logged for a request that is answered as it should be.
//!
//! | module | idea |
//! |---|---|
//! | [`filter`] | which events: `info`, `warn,nbd_client=debug` |
//! | `repeats`, `summed` | what repeats is counted, and summed up each minute |
//! | `lines`, `stderr` | an event as a line, and that nothing waits until it is read |
//! | [`Allowance`] | so much at once, and so much a second |
//!
//! # Use
//!
//! ```
//! use nbd_log::{Filter, Output};
//!
//! # fn main() -> Result<(), nbd_log::FilterError> {
//! let filter: Filter = "warn,nbd_client=debug".parse()?;
//! nbd_log::init("a-backend", Some(filter), Output::JournalOrStderr);
//! tracing::warn!(device = "nbd0", event = "retrying", "the server does not answer");
//! // What was counted and not yet written.
//! nbd_log::finish();
//! # Ok(())
//! # }
//! ```

mod allowance;
pub mod filter;
mod lines;
mod repeats;
mod stderr;
mod summed;

use std::io;
use std::os::fd::AsFd;

use nix::sys::stat::fstat;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use allowance::Allowance;
pub use filter::{Filter, FilterError};
pub use summed::{finish, next_summary, summarise_by_caller, write_summaries};

use lines::Lines;
use summed::Summed;

/// The environment variable that says which events are wanted.
pub const VARIABLE: &str = "NBD_LOG";

/// In the journal the names of our fields begin so, with an underscore behind it.
const FIELDS: &str = "NBD";

/// Where events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// To the journal, if stderr is connected to it; else to stderr.
    JournalOrStderr,
    /// To stderr, whatever becomes of it.
    Stderr,
    /// To stderr, which the program is going to replace. Nothing stays open of what it is now: the
    /// reader of a pipe would wait for its end as long as the program lives.
    ReplacedStderr,
}

/// From now on events of this process are written. `program` is what lines begin with. A `filter`
/// from the command line goes before that of the environment, which in turn is not worth failing
/// for: a wrong one is told and otherwise ignored.
///
/// Somebody who has done this before, or has a subscriber of his own, is left alone.
pub fn init(program: &str, filter: Option<Filter>, output: Output) {
    let environment = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let told = environment.filter(|_| filter.is_none()).map(|text| text.parse::<Filter>());
    let (filter, wrong) = match (filter, told) {
        (Some(filter), _) | (None, Some(Ok(filter))) => (filter, None),
        (None, Some(Err(error))) => (Filter::default(), Some(error)),
        (None, None) => (Filter::default(), None),
    };
    let journal = match output {
        Output::JournalOrStderr if is_journal() => tracing_journald::layer().ok(),
        _ => None,
    };
    let journal = journal.map(|layer| {
        // As everybody else's information, which is no notice.
        let priorities = PriorityMappings {
            info: Priority::Informational,
            debug: Priority::Debug,
            ..PriorityMappings::new()
        };
        layer
            .with_field_prefix(Some(FIELDS.into()))
            .with_syslog_identifier(program.into())
            .with_priority_mappings(priorities)
    });
    let lines = journal.is_none().then(|| Lines::new(program, output != Output::ReplacedStderr));
    let registry = tracing_subscriber::registry().with(filter.targets()).with(Summed);
    let registry = registry.with(journal).with(lines);
    if registry.try_init().is_ok()
        && let Some(error) = wrong
    {
        tracing::warn!("{VARIABLE}: {error}");
    }
}

/// Whether stderr is the stream to the journal that systemd has told us of.
fn is_journal() -> bool {
    let told = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    let Ok(stat) = fstat(io::stderr().as_fd()) else {
        return false;
    };
    told == format!("{}:{}", stat.st_dev, stat.st_ino)
}
