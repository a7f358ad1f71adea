//! The name under which programs look for the shared library, and the version of its symbols.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Programs that were linked with one release run with each of the same number.
    let soname = "libnbdbackend.so.0";
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{soname}");
    let target = std::env::var("CARGO_CFG_TARGET_ENV");
    if target.as_deref() == Ok("gnu") {
        // rustc has a version script of its own, beside which no other is possible. GNU's linker can
        // give symbols without a version that of the soname; rust-lld, the default, cannot.
        println!("cargo::rustc-cdylib-link-arg=-fuse-ld=bfd");
        println!("cargo::rustc-cdylib-link-arg=-Wl,--default-symver");
    }
}
