//! Reading and writing devices by dd, which can be left behind if a device does not answer; a
//! test that does it itself cannot.

use std::fs;
use std::path::Path;

use crate::command::{Running, run, start};
use crate::temp::fresh_path;

/// Reads from the device itself, past its cache.
#[track_caller]
#[must_use]
pub fn read(device: &Path, offset: u64, length: u64) -> Vec<u8> {
    let output = fresh_path();
    let numbers = [format!("skip={offset}"), format!("count={length}")];
    let options = ["iflag=direct,skip_bytes,count_bytes", "bs=64k"];
    copy(device, &output, &numbers, &options);
    let bytes = fs::read(&output).expect("what was read");
    fs::remove_file(output).expect("a file to remove");
    bytes
}

/// Writes, waiting until it is durable.
#[track_caller]
pub fn write(device: &Path, offset: u64, bytes: &[u8]) {
    write_with(device, offset, bytes, &["conv=notrunc,fsync"]);
}

/// Writes into the cache and leaves it at that.
#[track_caller]
pub fn write_to_cache(device: &Path, offset: u64, bytes: &[u8]) {
    write_with(device, offset, bytes, &["conv=notrunc"]);
}

#[track_caller]
fn write_with(device: &Path, offset: u64, bytes: &[u8], options: &[&str]) {
    let input = fresh_path();
    fs::write(&input, bytes).expect("a file");
    let always = ["oflag=seek_bytes", "bs=64k"];
    let options = [options, &always].concat();
    copy(&input, device, &[format!("seek={offset}")], &options);
    fs::remove_file(input).expect("a file to remove");
}

#[track_caller]
fn copy(from: &Path, to: &Path, numbers: &[String], options: &[&str]) {
    let files = [format!("if={}", from.display()), format!("of={}", to.display())];
    let words = files.iter().chain(numbers).map(String::as_str);
    run("dd", words.chain(options.iter().copied())).succeeds();
}

/// Starts a direct read of one block.
#[track_caller]
#[must_use]
pub fn start_read(device: &Path, offset: u64) -> Running {
    let words = [format!("if={}", device.display()), format!("skip={offset}")];
    let options = ["of=/dev/null", "iflag=direct,skip_bytes", "bs=4096", "count=1"];
    start("dd", words.iter().map(String::as_str).chain(options))
}

/// Starts a direct write of whole blocks, which it leaves in `input` for that.
#[track_caller]
#[must_use]
pub fn start_write(device: &Path, offset: u64, input: &Path, blocks: &[u8]) -> Running {
    fs::write(input, blocks).expect("a file");
    let words = [
        format!("if={}", input.display()),
        format!("of={}", device.display()),
        format!("seek={offset}"),
    ];
    let options = ["oflag=direct,seek_bytes", "bs=4096", "conv=notrunc"];
    start("dd", words.iter().map(String::as_str).chain(options))
}

/// Reads all of a device, past its cache.
#[track_caller]
pub fn read_all(device: &Path) {
    let input = format!("if={}", device.display());
    run("dd", [&*input, "of=/dev/null", "iflag=direct", "bs=64k"]).succeeds();
}
