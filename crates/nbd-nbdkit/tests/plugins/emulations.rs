//! What a plugin cannot do, done as nbdkit does it: seen from the callbacks that are called.

use nbd_backend::{Backend, ZeroOptions};

use crate::Tested;

const FUA: ZeroOptions = ZeroOptions { fua: true, no_hole: false, fast_only: false };

#[test]
fn flags_are_passed_on() {
    let tested = Tested::compile(&[]);
    let backend = tested.open(&[]).unwrap();
    let can = backend.geometry().capabilities;
    assert!(can.flush && can.fua && can.trim && can.write_zeroes && can.fast_zero && can.cache);
    tested.calls();
    backend.write_at(&[1; 512], 1024, true).unwrap();
    backend.trim(0, 512, true).unwrap();
    backend.write_zeroes(0, 512, FUA).unwrap();
    backend.write_zeroes(0, 512, ZeroOptions { no_hole: true, ..FUA }).unwrap();
    backend.write_zeroes(0, 512, ZeroOptions { fast_only: true, ..FUA }).unwrap();
    backend.flush().unwrap();
    backend.cache(0, 512).unwrap();
    assert_eq!(
        tested.calls(),
        [
            "pwrite 512 at 1024 flags 2",
            "trim 512 at 0 flags 2",
            "zero 512 at 0 flags 3",
            "zero 512 at 0 flags 2",
            "zero 512 at 0 flags 11",
            "flush flags 0",
            "cache 512 at 0 flags 0",
        ]
    );
}

#[test]
fn fua_is_a_flush_where_the_plugin_does_not_know_it() {
    for (macros, parameters) in
        [(&["WITHOUT_CAN_FUA"][..], &[][..]), (&[], &["result.can_fua=1"]), (&["API=1"], &[])]
    {
        let tested = Tested::compile(macros);
        let backend = tested.open(parameters).unwrap();
        assert!(backend.geometry().capabilities.fua);
        tested.calls();
        backend.write_at(&[1; 512], 0, true).unwrap();
        backend.trim(0, 512, true).unwrap();
        backend.write_zeroes(0, 512, FUA).unwrap();
        let calls = tested.calls();
        let names: Vec<_> = calls.iter().filter_map(|call| call.split(' ').next()).collect();
        assert_eq!(names, ["pwrite", "flush", "trim", "flush", "zero", "flush"], "{macros:?}");
        assert!(!calls.iter().any(|call| call.ends_with("flags 2")), "{calls:?}");
    }
    let backend = Tested::compile(&["WITHOUT_CAN_FUA", "WITHOUT_FLUSH"]).open(&[]).unwrap();
    let can = backend.geometry().capabilities;
    assert!(!can.fua && !can.flush, "there is nothing to emulate it with");
}

#[test]
fn zeroes_are_written_where_the_plugin_cannot_zero() {
    for (macros, parameters) in [
        (&["WITHOUT_ZERO"][..], &[][..]),
        (&[], &["result.can_zero=0"]),
        (&[], &["result.zero=-1", "set_error.zero=95"]),
        (&["KEEPS_ERRNO"], &["result.zero=-1", "errno.zero=95"]),
    ] {
        let tested = Tested::compile(macros);
        let parameters = [parameters, &["size=8388608", "max=2097152"]].concat();
        let backend = tested.open(&parameters).unwrap();
        assert!(backend.geometry().capabilities.write_zeroes);
        backend.write_at(&vec![9; 3 << 20], 0, false).unwrap();
        tested.calls();
        backend.write_zeroes(512, 2 << 20, FUA).unwrap();
        let calls = tested.calls();
        let writes: Vec<_> = calls.iter().filter(|call| call.starts_with("pwrite")).collect();
        assert_eq!(
            writes,
            ["pwrite 1048576 at 512 flags 2", "pwrite 1048576 at 1049088 flags 2"],
            "{macros:?} {parameters:?}"
        );
        let mut data = vec![1; 3 << 20];
        backend.read_at(&mut data, 0).unwrap();
        let zeroes = 512..512 + (2 << 20);
        assert!(
            data.iter()
                .enumerate()
                .all(|(at, byte)| *byte == if zeroes.contains(&at) { 0 } else { 9 })
        );
        let fast = ZeroOptions { fast_only: true, ..ZeroOptions::default() };
        let error = backend.write_zeroes(0, 512, fast).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::Unsupported, "it would not be fast");
    }
}

#[test]
fn what_is_read_only_is_not_asked_about_writing() {
    for (macros, parameters) in [(&["WITHOUT_PWRITE"][..], &[][..]), (&[], &["result.can_write=0"])]
    {
        let tested = Tested::compile(macros);
        let backend = tested.open(parameters).unwrap();
        let can = backend.geometry().capabilities;
        assert!(can.read_only && !can.trim && !can.write_zeroes && !can.fua);
        let calls = tested.calls();
        assert!(!calls.iter().any(|call| call == "can_trim" || call == "can_zero"), "{calls:?}");
    }
}

#[test]
fn caching_is_reading_or_nothing_or_not_offered() {
    let tested = Tested::compile(&["WITHOUT_CACHE"]);
    let backend = tested.open(&["result.can_cache=1"]).unwrap();
    tested.calls();
    backend.cache(512, 1024).unwrap();
    assert_eq!(tested.calls(), ["pread 1024 at 512 flags 0"]);
    let tested = Tested::compile(&["WITHOUT_CACHE"]);
    let backend = tested.open(&["result.can_cache=2"]).unwrap();
    tested.calls();
    backend.cache(512, 1024).unwrap();
    assert!(tested.calls().is_empty());
    let backend = Tested::compile(&["WITHOUT_CACHE", "WITHOUT_CAN_CACHE"]).open(&[]).unwrap();
    assert!(!backend.geometry().capabilities.cache);
}

#[test]
fn extents_are_cut_or_made_up() {
    let tested = Tested::compile(&[]);
    let backend = tested.open(&["size=8192"]).unwrap();
    tested.calls();
    let extents = backend.extents(1024, 4096, false).unwrap();
    let shown: Vec<_> = extents.iter().map(|e| (e.length, e.hole, e.zero)).collect();
    assert_eq!(shown, [(3072, false, false), (1024, true, true)]);
    assert_eq!(backend.extents(1024, 4096, true).unwrap().len(), 1);
    assert!(
        tested.calls().iter().any(|call| call == "extents 4096 at 1024 flags 4"),
        "one is asked for"
    );
    for (macros, parameters) in
        [(&["WITHOUT_EXTENTS"][..], &[][..]), (&[], &["result.can_extents=0"])]
    {
        let backend = Tested::compile(macros).open(parameters).unwrap();
        let extents = backend.extents(0, 1 << 20, false).unwrap();
        assert!(matches!(extents[..], [e] if e.length == 1 << 20 && !e.hole && !e.zero));
    }
}

#[test]
fn requests_are_split_at_the_largest_one() {
    let tested = Tested::compile(&[]);
    let backend = tested.open(&["min=512", "max=65536"]).unwrap();
    tested.calls();
    let data: Vec<u8> = (0..150_000 / 512 * 512).map(|at| (at / 512) as u8).collect();
    backend.write_at(&data, 512, true).unwrap();
    let mut read = vec![0; data.len()];
    backend.read_at(&mut read, 512).unwrap();
    assert!(read == data);
    let calls = tested.calls();
    assert_eq!(calls[..2], ["pwrite 65536 at 512 flags 2", "pwrite 65536 at 66048 flags 2"]);
    assert_eq!(calls.len(), 6, "{calls:?}");
}

#[test]
fn version_1_works_without_flags() {
    let tested = Tested::compile(&["API=1"]);
    let backend = tested.open(&[]).unwrap();
    backend.write_at(&[5; 512], 0, false).unwrap();
    let mut data = [0; 512];
    backend.read_at(&mut data, 0).unwrap();
    assert_eq!(data, [5; 512]);
    backend.flush().unwrap();
    tested.calls();
    backend.write_zeroes(0, 512, ZeroOptions::default()).unwrap();
    backend.write_zeroes(0, 512, ZeroOptions { no_hole: true, ..ZeroOptions::default() }).unwrap();
    assert_eq!(tested.calls(), ["zero 512 at 0 flags 1", "zero 512 at 0 flags 0"], "may_trim");
    let fast = ZeroOptions { fast_only: true, ..ZeroOptions::default() };
    assert!(backend.write_zeroes(0, 512, fast).is_err(), "it cannot know");
}
