//! Builds the shared object with the functions that plugins call back.
//!
//! It is embedded in the library and loaded with the first plugin, so that there is no other file to
//! install or to find.

use std::env;
use std::path::PathBuf;

fn main() {
    let source = "src/callbacks/callbacks.c";
    println!("cargo::rerun-if-changed={source}");
    let directory = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = directory.join("callbacks.so");
    let mut build = cc::Build::new();
    // Optimised in every profile: it is a list of forwarding calls.
    build.pic(true).debug(false).opt_level(2).warnings(true).extra_warnings(true);
    let mut command = build.get_compiler().to_command();
    command.args(["-shared", "-s", "-fvisibility=hidden", "-Wl,-z,defs", "-Wl,-z,now"]);
    command.args(["-Wl,-soname,nbd-nbdkit-callbacks.so", "-o"]).arg(&object).arg(source);
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}
