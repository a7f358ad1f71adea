//! The plugin interface as nbdkit-plugin.h declares it: constants and `struct nbdkit_plugin`.
//!
//! A test compiles C against the installed header and compares every offset.

use std::ffi::{c_char, c_int, c_void};

/// The newest version of the interface that is known here.
pub(crate) const MAX_API_VERSION: c_int = 2;

pub(crate) const FLAG_MAY_TRIM: u32 = 1 << 0;
pub(crate) const FLAG_FUA: u32 = 1 << 1;
pub(crate) const FLAG_REQ_ONE: u32 = 1 << 2;
pub(crate) const FLAG_FAST_ZERO: u32 = 1 << 3;

pub(crate) const FUA_NONE: c_int = 0;
pub(crate) const FUA_EMULATE: c_int = 1;
pub(crate) const FUA_NATIVE: c_int = 2;

pub(crate) const CACHE_NONE: c_int = 0;
pub(crate) const CACHE_EMULATE: c_int = 1;
pub(crate) const CACHE_NATIVE: c_int = 2;

pub(crate) const EXTENT_HOLE: u32 = 1 << 0;
pub(crate) const EXTENT_ZERO: u32 = 1 << 1;

/// What a plugin's `open` returned. Only the plugin knows what it points to.
pub(crate) type HandlePointer = *mut c_void;
/// `plugin_init`, which every plugin exports.
pub(crate) type InitFn = unsafe extern "C" fn() -> *const NbdkitPlugin;

pub(crate) type AskFn = unsafe extern "C" fn(HandlePointer) -> c_int;
pub(crate) type ReadV1Fn = unsafe extern "C" fn(HandlePointer, *mut c_void, u32, u64) -> c_int;
pub(crate) type WriteV1Fn = unsafe extern "C" fn(HandlePointer, *const c_void, u32, u64) -> c_int;
pub(crate) type RangeV1Fn = unsafe extern "C" fn(HandlePointer, u32, u64) -> c_int;
pub(crate) type ZeroV1Fn = unsafe extern "C" fn(HandlePointer, u32, u64, c_int) -> c_int;
pub(crate) type ReadFn = unsafe extern "C" fn(HandlePointer, *mut c_void, u32, u64, u32) -> c_int;
pub(crate) type WriteFn =
    unsafe extern "C" fn(HandlePointer, *const c_void, u32, u64, u32) -> c_int;
pub(crate) type RangeFn = unsafe extern "C" fn(HandlePointer, u32, u64, u32) -> c_int;
pub(crate) type ExtentsFn =
    unsafe extern "C" fn(HandlePointer, u32, u64, u32, *mut c_void) -> c_int;
pub(crate) type BlockSizeFn =
    unsafe extern "C" fn(HandlePointer, *mut u32, *mut u32, *mut u32) -> c_int;

/// `struct nbdkit_plugin`. A plugin that was compiled against an older header has a shorter one.
///
/// All zeroes is a valid value: every pointer is null and every callback is missing.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct NbdkitPlugin {
    pub(crate) struct_size: u64,
    pub(crate) api_version: c_int,
    pub(crate) thread_model_constant: c_int,

    pub(crate) name: *const c_char,
    pub(crate) longname: *const c_char,
    pub(crate) version: *const c_char,
    pub(crate) description: *const c_char,

    pub(crate) load: Option<unsafe extern "C" fn()>,
    pub(crate) unload: Option<unsafe extern "C" fn()>,

    pub(crate) config: Option<unsafe extern "C" fn(*const c_char, *const c_char) -> c_int>,
    pub(crate) config_complete: Option<unsafe extern "C" fn() -> c_int>,
    pub(crate) config_help: *const c_char,

    pub(crate) open: Option<unsafe extern "C" fn(c_int) -> HandlePointer>,
    pub(crate) close: Option<unsafe extern "C" fn(HandlePointer)>,

    pub(crate) get_size: Option<unsafe extern "C" fn(HandlePointer) -> i64>,

    pub(crate) can_write: Option<AskFn>,
    pub(crate) can_flush: Option<AskFn>,
    pub(crate) is_rotational: Option<AskFn>,
    pub(crate) can_trim: Option<AskFn>,

    pub(crate) pread_v1: Option<ReadV1Fn>,
    pub(crate) pwrite_v1: Option<WriteV1Fn>,
    pub(crate) flush_v1: Option<AskFn>,
    pub(crate) trim_v1: Option<RangeV1Fn>,
    pub(crate) zero_v1: Option<ZeroV1Fn>,

    pub(crate) errno_is_preserved: c_int,

    pub(crate) dump_plugin: Option<unsafe extern "C" fn()>,

    pub(crate) can_zero: Option<AskFn>,
    pub(crate) can_fua: Option<AskFn>,

    pub(crate) pread: Option<ReadFn>,
    pub(crate) pwrite: Option<WriteFn>,
    pub(crate) flush: Option<unsafe extern "C" fn(HandlePointer, u32) -> c_int>,
    pub(crate) trim: Option<RangeFn>,
    pub(crate) zero: Option<RangeFn>,

    pub(crate) magic_config_key: *const c_char,

    pub(crate) can_multi_conn: Option<AskFn>,

    pub(crate) can_extents: Option<AskFn>,
    pub(crate) extents: Option<ExtentsFn>,
    pub(crate) can_cache: Option<AskFn>,
    pub(crate) cache: Option<RangeFn>,

    pub(crate) thread_model: Option<unsafe extern "C" fn() -> c_int>,

    pub(crate) can_fast_zero: Option<AskFn>,

    pub(crate) preconnect: Option<unsafe extern "C" fn(c_int) -> c_int>,

    pub(crate) get_ready: Option<unsafe extern "C" fn() -> c_int>,
    pub(crate) after_fork: Option<unsafe extern "C" fn() -> c_int>,

    pub(crate) list_exports: Option<unsafe extern "C" fn(c_int, c_int, *mut c_void) -> c_int>,
    pub(crate) default_export: Option<unsafe extern "C" fn(c_int, c_int) -> *const c_char>,
    pub(crate) export_description: Option<unsafe extern "C" fn(HandlePointer) -> *const c_char>,

    pub(crate) cleanup: Option<unsafe extern "C" fn()>,

    pub(crate) block_size: Option<BlockSizeFn>,
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::mem::offset_of;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    macro_rules! offsets {
        ($($field:ident $name:literal)*) => { [$(($name, offset_of!(NbdkitPlugin, $field))),*] };
    }

    /// What a program prints that is compiled with the header.
    fn print_of_c(statements: &str) -> String {
        let name = format!("nbd-nbdkit-abi-{}-{}", std::process::id(), statements.len());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let [source, program] = ["offsets.c", "offsets"].map(|name| directory.join(name));
        let text = format!(
            "#include <stddef.h>\n#include <stdio.h>\n#define NBDKIT_API_VERSION 2\n\
             #include <nbdkit-plugin.h>\nint main(void) {{ {statements} return 0; }}\n"
        );
        std::fs::write(&source, text).unwrap();
        let compiled = Command::new("cc").arg("-o").args([&program, &source]).status().unwrap();
        assert!(compiled.success(), "nbdkit-plugin-dev is needed");
        let output = Command::new(Path::new(&program)).output().unwrap();
        std::fs::remove_dir_all(&directory).unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn every_offset_is_that_of_the_header() {
        let fields = offsets!(
            struct_size "_struct_size" api_version "_api_version"
            thread_model_constant "_thread_model" name "name" longname "longname" version "version"
            description "description" load "load" unload "unload" config "config"
            config_complete "config_complete" config_help "config_help" open "open" close "close"
            get_size "get_size" can_write "can_write" can_flush "can_flush"
            is_rotational "is_rotational" can_trim "can_trim" pread_v1 "_pread_v1"
            pwrite_v1 "_pwrite_v1" flush_v1 "_flush_v1" trim_v1 "_trim_v1" zero_v1 "_zero_v1"
            errno_is_preserved "errno_is_preserved" dump_plugin "dump_plugin" can_zero "can_zero"
            can_fua "can_fua" pread "pread" pwrite "pwrite" flush "flush" trim "trim" zero "zero"
            magic_config_key "magic_config_key" can_multi_conn "can_multi_conn"
            can_extents "can_extents" extents "extents" can_cache "can_cache" cache "cache"
            thread_model "thread_model" can_fast_zero "can_fast_zero" preconnect "preconnect"
            get_ready "get_ready" after_fork "after_fork" list_exports "list_exports"
            default_export "default_export" export_description "export_description"
            cleanup "cleanup" block_size "block_size"
        );
        let (mut statements, mut expected) = (String::new(), String::new());
        for (name, offset) in fields {
            writeln!(
                statements,
                "printf(\"{name} %zu\\n\", offsetof(struct nbdkit_plugin, {name}));"
            )
            .unwrap();
            writeln!(expected, "{name} {offset}").unwrap();
        }
        statements.push_str("printf(\"size %zu\\n\", sizeof(struct nbdkit_plugin));");
        writeln!(expected, "size {}", size_of::<NbdkitPlugin>()).unwrap();
        assert_eq!(print_of_c(&statements), expected);
    }

    #[test]
    fn every_constant_is_that_of_the_header() {
        let constants = [
            ("NBDKIT_FLAG_MAY_TRIM", FLAG_MAY_TRIM),
            ("NBDKIT_FLAG_FUA", FLAG_FUA),
            ("NBDKIT_FLAG_REQ_ONE", FLAG_REQ_ONE),
            ("NBDKIT_FLAG_FAST_ZERO", FLAG_FAST_ZERO),
            ("NBDKIT_FUA_NONE", FUA_NONE.cast_unsigned()),
            ("NBDKIT_FUA_EMULATE", FUA_EMULATE.cast_unsigned()),
            ("NBDKIT_FUA_NATIVE", FUA_NATIVE.cast_unsigned()),
            ("NBDKIT_CACHE_NONE", CACHE_NONE.cast_unsigned()),
            ("NBDKIT_CACHE_EMULATE", CACHE_EMULATE.cast_unsigned()),
            ("NBDKIT_CACHE_NATIVE", CACHE_NATIVE.cast_unsigned()),
            ("NBDKIT_EXTENT_HOLE", EXTENT_HOLE),
            ("NBDKIT_EXTENT_ZERO", EXTENT_ZERO),
        ];
        let printed = constants.map(|(name, _)| format!("printf(\"%d \", {name});")).concat();
        let expected = constants.map(|(_, value)| format!("{value} ")).concat();
        assert_eq!(print_of_c(&printed), expected);
    }
}
