//! What backends write, and the log of the device.

mod file;
mod pipe;
mod sink;
mod text;

pub(crate) use sink::LogSink;
