//! Errors, and returns that the interface does not have.

use std::io;

use nbd_backend::{Backend, ZeroOptions};

use crate::{Tested, words};

fn errno(result: io::Result<()>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

#[test]
fn errors_are_what_the_plugin_set_and_else_eio() {
    let cases = [
        (&["set_error.pread=28"][..], libc::ENOSPC),
        (&["set_error.pread=108"], libc::ESHUTDOWN),
        (&["set_error.pread=1", "errno.pread=12"], libc::EPERM),
        // Not kept by this plugin, so it says nothing.
        (&["errno.pread=12"], libc::EIO),
        // The protocol has no such error.
        (&["set_error.pread=2"], libc::EINVAL),
    ];
    for (parameters, expected) in cases {
        let backend =
            Tested::compile(&[]).open(&[&["result.pread=-1"], parameters].concat()).unwrap();
        assert_eq!(errno(backend.read_at(&mut [0; 512], 0)), expected, "{parameters:?}");
    }
    let tested = Tested::compile(&["KEEPS_ERRNO"]);
    let backend = tested.open(&["result.pread=-1", "errno.pread=12"]).unwrap();
    assert_eq!(errno(backend.read_at(&mut [0; 512], 0)), libc::ENOMEM, "errno is kept");
    let tested = Tested::compile(&["KEEPS_ERRNO"]);
    let backend =
        tested.open(&["result.pread=-1", "errno.pread=12", "set_error.pread=28"]).unwrap();
    assert_eq!(errno(backend.read_at(&mut [0; 512], 0)), libc::ENOSPC, "what is set comes first");
}

#[test]
fn a_read_or_write_that_is_short_or_odd_fails() {
    for result in [1, 511, 513, -2, i32::MIN] {
        let [read, write] = ["pread", "pwrite"].map(|name| format!("result.{name}={result}"));
        let backend = Tested::compile(&[]).open(&[&read, &write]).unwrap();
        assert_eq!(errno(backend.read_at(&mut [0; 512], 0)), libc::EIO, "{result}");
        assert_eq!(errno(backend.write_at(&[0; 512], 0, false)), libc::EIO, "{result}");
    }
    // As read(2) and write(2) would return, and as nbdkit lets pass.
    let backend = Tested::compile(&[]).open(&["result.pread=512", "result.pwrite=512"]).unwrap();
    backend.read_at(&mut [0; 512], 0).unwrap();
    backend.write_at(&[0; 512], 0, false).unwrap();
}

#[test]
fn other_commands_fail_as_the_plugin_says() {
    let parameters: Vec<_> = ["flush", "trim", "zero", "cache", "extents"]
        .iter()
        .flat_map(|name| [format!("result.{name}=-1"), format!("set_error.{name}=28")])
        .collect();
    let parameters: Vec<_> = parameters.iter().map(String::as_str).collect();
    let backend = Tested::compile(&[]).open(&parameters).unwrap();
    assert_eq!(errno(backend.flush()), libc::ENOSPC);
    assert_eq!(errno(backend.trim(0, 512, false)), libc::ENOSPC);
    assert_eq!(errno(backend.write_zeroes(0, 512, ZeroOptions::default())), libc::ENOSPC);
    assert_eq!(errno(backend.cache(0, 512)), libc::ENOSPC);
    assert_eq!(errno(backend.extents(0, 512, false).map(drop)), libc::ENOSPC);
}

#[test]
fn extents_that_do_not_cover_the_range_fail() {
    let backend = Tested::compile(&[]).open(&["result.extents=0"]).unwrap();
    assert_eq!(errno(backend.extents(0, 512, false).map(drop)), libc::EINVAL, "there are none");
    let backend = Tested::compile(&[]).open(&["gap=512"]).unwrap();
    assert_eq!(errno(backend.extents(0, 4096, false).map(drop)), libc::EIO, "the first is missing");
}

#[test]
fn sizes_that_no_device_can_have_are_refused() {
    for (size, expected) in [
        ("0", "has 0 bytes, and a device needs at least one block of 512"),
        ("511", "has 511 bytes"),
        ("-1", "`get_size` fails: the plugin does not say why"),
        ("-7", "`get_size` returns -7, which is negative"),
    ] {
        let error = words(&Tested::compile(&[]).open(&[&format!("size={size}")]).unwrap_err());
        assert!(error.contains(expected), "{size}: {error}");
    }
    let backend = Tested::compile(&[]).open(&["size=1300"]).unwrap();
    assert_eq!((backend.geometry().size, backend.tail()), (1024, 276));
}

#[test]
fn blocks_that_contradict_the_interface_are_refused() {
    for (sizes, expected) in [
        (["min=3", "preferred=4096", "max=8192"], "the first must be a power of two"),
        (["min=0", "preferred=4096", "max=8192"], "the first must be a power of two"),
        (["min=512", "preferred=5000", "max=8192"], "the second must be a power of two"),
        (["min=512", "preferred=4096", "max=8000"], "the third must be a multiple"),
        (["min=4096", "preferred=512", "max=8192"], "they must not become smaller"),
        (["min=8192", "preferred=8192", "max=8192"], "exec:nbdkit --filter=blocksize"),
    ] {
        let error = words(&Tested::compile(&[]).open(&sizes).unwrap_err());
        assert!(error.contains(expected), "{sizes:?}: {error}");
    }
    let backend = Tested::compile(&[]).open(&["min=0", "preferred=0", "max=0"]).unwrap();
    assert!(backend.geometry().capabilities.unaligned, "it says nothing");
    let backend = Tested::compile(&[]).open(&["min=4096", "max=65536"]).unwrap();
    let geometry = backend.geometry();
    assert_eq!((geometry.block_size, geometry.capabilities.unaligned), (4096, false));
}

#[test]
fn failing_callbacks_are_named() {
    for callback in [
        "config_complete",
        "thread_model",
        "get_ready",
        "after_fork",
        "preconnect",
        "open",
        "can_write",
        "can_flush",
        "is_rotational",
        "can_trim",
        "can_zero",
        "can_fast_zero",
        "can_fua",
        "can_cache",
        "can_extents",
        "block_size",
        "get_size",
    ] {
        let error = Tested::compile(&[]).open(&[&format!("result.{callback}=-1")]).unwrap_err();
        assert_eq!(words(&error), format!("`{callback}` fails: {callback} refuses"));
    }
    for callback in ["can_fua", "can_cache", "thread_model"] {
        let error = Tested::compile(&[]).open(&[&format!("result.{callback}=7")]).unwrap_err();
        assert!(
            words(&error).starts_with(&format!("`{callback}` returns 7, which is no")),
            "{error}"
        );
    }
}
