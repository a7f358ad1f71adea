//! Which values options may have, and their defaults.

/// One crash does not tell which of several requests has caused it.
pub(super) fn check_poison_limit(limit: Option<u32>) -> Result<u32, &'static str> {
    limit.filter(|limit| *limit != 1).ok_or("use 0 for never, or a number from 2 on")
}

/// A lane for each processor.
#[cfg(feature = "clap")]
pub(super) fn default_lanes() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    processors.min(4) as u32
}

#[cfg(feature = "clap")]
pub(super) fn poison_limit(text: &str) -> Result<u32, &'static str> {
    check_poison_limit(text.parse().ok())
}
