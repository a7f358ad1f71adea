//! What executes commands: the thread that receives them, workers, or the backend itself.

mod dispatch;
mod inline_predictor;
mod perform;
pub(crate) mod unoffered;
mod workers;

pub use dispatch::{Dispatcher, ReceivedRequest, ReplySink, Room, execute_inline};
pub use perform::reply_error;
pub use workers::Workers;
