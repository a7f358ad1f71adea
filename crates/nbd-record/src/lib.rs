//! Captures: the requests that a device's backends took, with their data, in the order in which the
//! backends took them; and their replay for a program, without a kernel.
//!
//! `nbd-ctl record` makes a capture (on the command line it is a *recording*), and `nbd-ctl replay`
//! replays it. A capture is not the flight recorder of the ledger, which keeps only the latest
//! requests and no data.
//!
//! # Invariants
//!
//! - A request is in the capture before its backend executes it, so it is there whatever the request
//!   does to the backend ([`writer`]).
//! - A capture may come from any source. Each entry is checked; the first bytes that are no entry of
//!   this capture end it ([`capture`]).
//! - A replay keeps the order of dependence: a request is sent once all requests are answered that
//!   were answered before it was taken ([`replayer`]).
//!
//! # Use
//!
//! ```
//! use nbd_control::backend::ExportInfo;
//! use nbd_proto::{CommandFlags, CommandType, NbdError, Request};
//! use nbd_record::{Capture, CaptureWriter, writer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let memfd = nix::sys::memfd::memfd_create(c"capture", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
//! # let file = std::fs::File::from(memfd);
//! let export = ExportInfo { size: 1 << 20, block_size: 512, flags: 1 };
//! writer::begin(&file, "nbd0", export, 1, u64::MAX)?;
//!
//! // In the backend: before it executes a request, and before it answers it.
//! let mut writer = CaptureWriter::resume(file.try_clone()?)?;
//! let (flags, command) = (CommandFlags::NONE, CommandType::READ);
//! let request = Request { flags, command, cookie: 7, offset: 0, length: 4096 };
//! writer.request(0, &request, &[], false, 0);
//! writer.answer(0, 7, NbdError::SUCCESS, 0);
//! writer.commit();
//!
//! let capture = Capture::read(file)?;
//! assert_eq!(capture.requests[0].error, Some(NbdError::SUCCESS));
//! # Ok(())
//! # }
//! ```
//!
//! # Modules
//!
//! | module | idea |
//! |---|---|
//! | [`mod@format`] | the bytes of a capture |
//! | [`mod@file`] | opening a capture, and its header |
//! | [`writer`] | a backend's end of a capture |
//! | [`capture`] | reading a capture |
//! | [`fake_holder`] | the holder's part for one program, without a device |
//! | [`replayer`] | the kernel's part: sends the captured requests and checks the replies |
//! | [`program`] | replays to a program in a process of its own |
//! | [`minimise`] | finds the fewest requests with which a program crashes |

pub mod capture;
pub mod fake_holder;
pub mod file;
pub mod format;
pub mod minimise;
pub mod program;
pub mod replayer;
pub mod writer;

pub use capture::Capture;
pub use file::CaptureError;
pub use format::{CaptureHeader, CaptureState};
pub use replayer::{ReplayOptions, ReplayReport};
pub use writer::CaptureWriter;

/// Name of the stored descriptor with which the holder grants a backend the capture to write to.
pub const CAPTURE_FD_NAME: &str = "recording";

/// The environment variable that names the capture to replay to a program, in place of a device.
pub const REPLAY_VARIABLE: &str = "NBD_REPLAY";
