//! The functions of librbd and librados that are called, as their headers declare them.
//!
//! A test compiles C against the installed headers and compares every type.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

use super::library::Library;
pub use super::library::LibraryError;

pub(crate) type Cluster = *mut c_void;
pub(crate) type IoContext = *mut c_void;
pub(crate) type RawImage = *mut c_void;
pub(crate) type RawCompletion = *mut c_void;
pub(crate) type CompletionFn = unsafe extern "C" fn(RawCompletion, *mut c_void);
pub(crate) type DiffFn = unsafe extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;
pub(crate) type LockMode = c_int;
pub(crate) type UpdateFn = unsafe extern "C" fn(*mut c_void);

pub(crate) const LOCK_MODE_EXCLUSIVE: LockMode = 0;
pub(crate) const FEATURE_EXCLUSIVE_LOCK: u64 = 1 << 2;
pub(crate) const FEATURE_FAST_DIFF: u64 = 1 << 4;
pub(crate) const FLAG_OBJECT_MAP_INVALID: u64 = 1 << 0;
pub(crate) const FLAG_FAST_DIFF_INVALID: u64 = 1 << 1;
pub(crate) const ZEROES_THICK_PROVISION: c_int = 1 << 0;
pub(crate) const OP_FADVISE_FUA: c_int = 0x80;

/// `rbd_image_watcher_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawWatcher {
    pub(crate) addr: *mut c_char,
    pub(crate) id: i64,
    pub(crate) cookie: u64,
}

/// `rbd_config_option_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawConfigOption {
    pub(crate) name: *mut c_char,
    pub(crate) value: *mut c_char,
    pub(crate) source: c_int,
}

/// `rbd_snap_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawSnapshot {
    pub(crate) id: u64,
    pub(crate) size: u64,
    pub(crate) name: *const c_char,
}

macro_rules! functions {
    ($(fn $name:ident($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// Their addresses.
        #[derive(Debug)]
        pub(crate) struct Api {
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        /// Name, arguments and result of each, as they are written here.
        #[cfg(test)]
        const PROTOTYPES: &[(&str, &[&str], &str)] = &[
            $((stringify!($name), &[$(stringify!($argument)),*], stringify!($($result)?)),)*
        ];

        impl Api {
            fn load(library: Library) -> Result<Self, LibraryError> {
                Ok(Self {
                    $($name: {
                        let address = library.symbol(concat!(stringify!($name), "\0"))?;
                        // SAFETY: the address is not null, and is that of the function with this name,
                        // whose type is the one of the headers.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) $(-> $result)?,
                            >(address)
                        }
                    },)*
                })
            }
        }
    };
}

functions! {
    fn rados_create2(*mut Cluster, *const c_char, *const c_char, u64) -> c_int;
    fn rados_conf_read_file(Cluster, *const c_char) -> c_int;
    fn rados_conf_parse_env(Cluster, *const c_char) -> c_int;
    fn rados_conf_set(Cluster, *const c_char, *const c_char) -> c_int;
    fn rados_conf_get(Cluster, *const c_char, *mut c_char, usize) -> c_int;
    fn rados_connect(Cluster) -> c_int;
    fn rados_shutdown(Cluster);
    fn rados_getaddrs(Cluster, *mut *mut c_char) -> c_int;
    fn rados_buffer_free(*mut c_char);
    fn rados_pool_list(Cluster, *mut c_char, usize) -> c_int;
    fn rados_blocklist_add(Cluster, *mut c_char, u32) -> c_int;
    fn rados_wait_for_latest_osdmap(Cluster) -> c_int;
    fn rados_ioctx_create(Cluster, *const c_char, *mut IoContext) -> c_int;
    fn rados_ioctx_destroy(IoContext);
    fn rados_ioctx_set_namespace(IoContext, *const c_char);
    fn rbd_version(*mut c_int, *mut c_int, *mut c_int);
    fn rbd_list(IoContext, *mut c_char, *mut usize) -> c_int;
    fn rbd_namespace_exists(IoContext, *const c_char, *mut bool) -> c_int;
    fn rbd_namespace_list(IoContext, *mut c_char, *mut usize) -> c_int;
    fn rbd_open(IoContext, *const c_char, *mut RawImage, *const c_char) -> c_int;
    fn rbd_open_read_only(IoContext, *const c_char, *mut RawImage, *const c_char) -> c_int;
    fn rbd_close(RawImage) -> c_int;
    fn rbd_aio_close(RawImage, RawCompletion) -> c_int;
    fn rbd_get_size(RawImage, *mut u64) -> c_int;
    fn rbd_get_features(RawImage, *mut u64) -> c_int;
    fn rbd_get_flags(RawImage, *mut u64) -> c_int;
    fn rbd_get_overlap(RawImage, *mut u64) -> c_int;
    fn rbd_get_stripe_unit(RawImage, *mut u64) -> c_int;
    fn rbd_get_stripe_count(RawImage, *mut u64) -> c_int;
    fn rbd_snap_list(RawImage, *mut RawSnapshot, *mut c_int) -> c_int;
    fn rbd_snap_list_end(*mut RawSnapshot);
    fn rbd_lock_acquire(RawImage, LockMode) -> c_int;
    fn rbd_lock_get_owners(RawImage, *mut LockMode, *mut *mut c_char, *mut usize) -> c_int;
    fn rbd_lock_get_owners_cleanup(*mut *mut c_char, usize);
    fn rbd_lock_break(RawImage, LockMode, *const c_char) -> c_int;
    fn rbd_watchers_list(RawImage, *mut RawWatcher, *mut usize) -> c_int;
    fn rbd_watchers_list_cleanup(*mut RawWatcher, usize);
    fn rbd_config_image_list(RawImage, *mut RawConfigOption, *mut c_int) -> c_int;
    fn rbd_config_image_list_cleanup(*mut RawConfigOption, c_int);
    fn rbd_update_watch(RawImage, *mut u64, UpdateFn, *mut c_void) -> c_int;
    fn rbd_diff_iterate2(
        RawImage, *const c_char, u64, u64, u8, u8, DiffFn, *mut c_void
    ) -> c_int;
    fn rbd_aio_create_completion(*mut c_void, CompletionFn, *mut RawCompletion) -> c_int;
    fn rbd_aio_get_return_value(RawCompletion) -> isize;
    fn rbd_aio_release(RawCompletion);
    fn rbd_aio_read(RawImage, u64, usize, *mut c_char, RawCompletion) -> c_int;
    fn rbd_aio_write2(RawImage, u64, usize, *const c_char, RawCompletion, c_int) -> c_int;
    fn rbd_aio_discard(RawImage, u64, u64, RawCompletion) -> c_int;
    fn rbd_aio_write_zeroes(RawImage, u64, usize, RawCompletion, c_int, c_int) -> c_int;
    fn rbd_aio_flush(RawImage, RawCompletion) -> c_int;
}

impl Api {
    /// Loads the library, once for the process.
    pub(crate) fn get() -> Result<&'static Self, LibraryError> {
        static API: OnceLock<Result<Api, LibraryError>> = OnceLock::new();
        let api = API.get_or_init(|| Library::open().and_then(Self::load));
        api.as_ref().map_err(Clone::clone)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::mem::offset_of;
    use std::process::Command;

    use super::*;

    const HEADER: &str = "/usr/include/rbd/librbd.h";

    /// The name in C of a type that has one of its own here.
    fn c_name(rust: &str) -> &str {
        match rust {
            "Cluster" => "rados_t",
            "IoContext" => "rados_ioctx_t",
            "RawImage" => "rbd_image_t",
            "RawCompletion" => "rbd_completion_t",
            "RawWatcher" => "rbd_image_watcher_t",
            "RawConfigOption" => "rbd_config_option_t",
            "RawSnapshot" => "rbd_snap_info_t",
            "LockMode" => "rbd_lock_mode_t",
            "CompletionFn" => "rbd_callback_t",
            "UpdateFn" => "rbd_update_callback_t",
            "DiffFn" => "diff_fn",
            "c_char" => "char",
            "c_void" | "" => "void",
            "c_int" => "int",
            "u64" => "uint64_t",
            "u32" => "uint32_t",
            "u8" => "uint8_t",
            "usize" => "size_t",
            "isize" => "ssize_t",
            "bool" => "bool",
            other => panic!("{other} has no name in C"),
        }
    }

    fn c_type(rust: &str) -> String {
        match (rust.strip_prefix("*mut "), rust.strip_prefix("*const ")) {
            (Some(inner), _) => format!("{} *", c_type(inner)),
            (None, Some(inner)) => format!("const {} *", c_type(inner)),
            (None, None) => c_name(rust).into(),
        }
    }

    fn offsets(text: &mut String, structure: &str, size: usize, fields: &[(&str, usize)]) {
        writeln!(text, "_Static_assert(sizeof({structure}) == {size}, \"\");").unwrap();
        for (field, offset) in fields {
            writeln!(text, "_Static_assert(offsetof({structure}, {field}) == {offset}, \"\");")
                .unwrap();
        }
    }

    /// Declares a variable of the type that is written here for each function, and gives it the function.
    #[test]
    fn every_type_and_constant_is_that_of_the_headers() {
        if !std::path::Path::new(HEADER).exists() {
            eprintln!("\n    not run: no {HEADER} (librbd-dev)");
            return;
        }
        let mut text = String::from(
            "#include <stdbool.h>\n#include <stddef.h>\n#include <rados/librados.h>\n\
             #include <rbd/librbd.h>\ntypedef int (*diff_fn)(uint64_t, size_t, int, void *);\n",
        );
        for (name, arguments, result) in PROTOTYPES {
            let arguments: Vec<_> = arguments.iter().map(|rust| c_type(rust)).collect();
            let arguments = arguments.join(", ");
            writeln!(text, "{} (*check_{name})({arguments}) = {name};", c_type(result)).unwrap();
        }
        let watcher = [
            ("addr", offset_of!(RawWatcher, addr)),
            ("id", offset_of!(RawWatcher, id)),
            ("cookie", offset_of!(RawWatcher, cookie)),
        ];
        offsets(&mut text, "rbd_image_watcher_t", size_of::<RawWatcher>(), &watcher);
        let option = [
            ("name", offset_of!(RawConfigOption, name)),
            ("value", offset_of!(RawConfigOption, value)),
            ("source", offset_of!(RawConfigOption, source)),
        ];
        offsets(&mut text, "rbd_config_option_t", size_of::<RawConfigOption>(), &option);
        let snapshot = [
            ("id", offset_of!(RawSnapshot, id)),
            ("size", offset_of!(RawSnapshot, size)),
            ("name", offset_of!(RawSnapshot, name)),
        ];
        offsets(&mut text, "rbd_snap_info_t", size_of::<RawSnapshot>(), &snapshot);
        for (name, value) in [
            ("RBD_LOCK_MODE_EXCLUSIVE", LOCK_MODE_EXCLUSIVE as u64),
            ("RBD_FEATURE_EXCLUSIVE_LOCK", FEATURE_EXCLUSIVE_LOCK),
            ("RBD_FEATURE_FAST_DIFF", FEATURE_FAST_DIFF),
            ("RBD_FLAG_OBJECT_MAP_INVALID", FLAG_OBJECT_MAP_INVALID),
            ("RBD_FLAG_FAST_DIFF_INVALID", FLAG_FAST_DIFF_INVALID),
            ("RBD_WRITE_ZEROES_FLAG_THICK_PROVISION", ZEROES_THICK_PROVISION as u64),
            ("LIBRADOS_OP_FLAG_FADVISE_FUA", OP_FADVISE_FUA as u64),
        ] {
            writeln!(text, "_Static_assert({name} == {value}, \"\");").unwrap();
        }
        let path = std::env::temp_dir().join(format!("nbd-rbd-api-{}.c", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let options = ["-fsyntax-only", "-Werror", "-Wno-deprecated-declarations", "-Wno-cpp"];
        let compiled = Command::new("cc").args(options).arg(&path).status().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(compiled.success());
    }
}
