//! Recordings: every request that the backends of a device took, with its data, in the order in
//! which they took them; and the same requests again for a program, without a kernel.
//!
//! | module | idea |
//! |---|---|
//! | [`mod@format`] | the bytes of a recording |
//! | [`writer`] | a backend's end of it: what is written is there, whenever the backend dies |
//! | [`recording`] | reading one, whoever wrote it and however it ended |
//! | [`stage`] | a holder for one program and without a device |
//! | [`play`] | the kernel's part: sends what was recorded, and looks at the answers |
//! | [`run`] | a program that is played for in a process of its own |
//! | [`minimise`] | which of the requests are needed for a crash |

pub mod format;
pub mod minimise;
pub mod play;
pub mod recording;
pub mod run;
pub mod stage;
pub mod writer;

pub use format::{Header, State};
pub use play::{Options, Report};
pub use recording::{Recording, RecordingError};
pub use writer::Writer;

/// The name of the keepsake under which a backend is granted the recording to write to.
pub const KEEPSAKE: &str = "recording";

/// The environment variable that names the recording to play for a program, in place of a device.
pub const REPLAY_VARIABLE: &str = "NBD_REPLAY";
