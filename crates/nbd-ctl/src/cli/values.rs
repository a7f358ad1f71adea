//! What arguments may be, and how they are read.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

/// A command, by the name that traces and statuses give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
}

/// A column of `nbd-ctl list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListColumn {
    /// Its device, like nbd0.
    Device,
    /// Its name, given at attach.
    Name,
    /// Its size.
    Size,
    /// What is served.
    Backend,
    /// Process id of the backend.
    Pid,
    /// What the backend does.
    State,
    /// How often a backend was started again.
    Restarts,
    /// Number of lanes (socket pairs to the driver).
    Lanes,
    /// Number of unanswered requests.
    InFlight,
    /// Age of the oldest unanswered request.
    Oldest,
    /// Where it is mounted, and what else uses it.
    UsedBy,
    /// Its path, like /dev/nbd0.
    Path,
    /// ro (read-only) or rw.
    Access,
    /// The interface to the driver: ioctl or netlink.
    KernelApi,
    /// Process id of the holder.
    Holder,
}

/// Bytes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('+').and_then(|(offset, length)| {
            Some(Self { offset: offset.parse().ok()?, length: length.parse().ok()? })
        });
        numbers
            .filter(|range| range.length > 0)
            .ok_or_else(|| "use OFFSET+LENGTH in bytes, like 1048576+4096".into())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Until {
    /// The device, attached already, has a backend that serves it.
    Ready,
    /// A device of this name is attached, now or later, and served.
    Attached,
    /// The device is detached.
    Gone,
}

pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds")?;
    if !(number > 0.0 && number <= 1e8) {
        return Err("must be more than 0 and at most 100000000 seconds".into());
    }
    Ok(Duration::from_secs_f64(number))
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    nbd_control::size::parse(text).map_err(|error| error.to_string())
}

pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let number: Option<f64> = text.parse().ok();
    let seconds = number.filter(|number| (0.1..=3600.0).contains(number));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "must be 0.1 to 3600 seconds".into())
}

pub(super) fn milliseconds(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|number| *number >= 0.0).ok_or_else(|| "must be a number from 0 on".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_two_numbers() {
        assert_eq!("7+512".parse(), Ok(Range { offset: 7, length: 512 }));
        for wrong in ["", "7", "7+", "+7", "7+0", "-1+1", "1-2", "1+2+3"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!((size("1"), size("10k"), size("2T")), (Ok(1), Ok(10 << 10), Ok(2 << 40)));
        for wrong in ["", "0", "G", "-1", "1.5G", "18446744073709551615K", "1GB", "1\u{b5}"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn timeouts_are_positive_numbers() {
        assert_eq!(seconds("2.5"), Ok(Duration::from_millis(2500)));
        for wrong in ["0", "-1", "nan", "inf", "1e300", "soon", ""] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
