//! nbd-ctl as a process, against holders that follow a script.
//!
//! | module | what belongs there |
//! |---|---|
//! | `runtime_dir` | a runtime directory, the program, holders that follow a script |
//! | `sample` | peers, processes and values to test with |
//! | `arguments` | what is refused before anything is done |
//! | `attach` | starting a holder, Ctrl-C |
//! | `adoption` | devices whose holder is gone, stale entries |
//! | `control` | requests and answers, and peers that misbehave |
//! | `output` | list, status, JSON, broken pipes |
//! | `top` | one interval; what `top` needs |
//! | `metrics` | metrics by HTTP: whom they are told to, slow clients |

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod adoption;
mod arguments;
mod attach;
mod control;
mod metrics;
mod output;
mod runtime_dir;
mod sample;
mod top;
