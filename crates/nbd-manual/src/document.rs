//! A file of the manual.

/// What a file of the manual is called, like `man/nbd-ctl.8`, and what is in it.
pub type Document = (String, String);
