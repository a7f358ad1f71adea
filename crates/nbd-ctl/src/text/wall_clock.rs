//! Dates in UTC, of times that were read from another clock or from none.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// `2026-11-30 19:35:51.000250`, of nanoseconds since 1970.
pub(crate) fn date(at: i128) -> String {
    const FORM: &[BorrowedFormatItem<'_>] =
        format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:6]");
    let date = OffsetDateTime::from_unix_timestamp_nanos(at).ok();
    // A time that was scribbled over may be any.
    date.and_then(|date| date.format(FORM).ok()).unwrap_or_else(|| "at no date".into())
}

/// The same for programs: RFC 3339.
pub(crate) fn timestamp(at: i128) -> String {
    format!("{}Z", date(at)).replace(' ', "T")
}

/// Now, in nanoseconds since 1970.
pub(crate) fn now() -> i128 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

/// The date at which `CLOCK_MONOTONIC`, which backends read, was zero: wrong by the time of a suspend since
/// then.
pub(crate) fn monotonic_epoch() -> i128 {
    now() - nanoseconds(ClockId::CLOCK_MONOTONIC)
}

fn nanoseconds(clock: ClockId) -> i128 {
    let time = clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    i128::try_from(time.as_nanos()).unwrap_or_default()
}
