//! Serves a file, a block device or memory to the kernel's NBD driver.

use std::process::ExitCode;

fn main() -> ExitCode {
    nbd_serve::main(std::env::args_os())
}
