use std::path::Path;

use super::*;

fn parse(text: &str) -> Result<Spec, SpecError> {
    Spec::parse(OsStr::new(text))
}

fn file(text: &str) -> FileSpec {
    match parse(text) {
        Ok(Spec::File(spec)) => spec,
        other => panic!("{text}: {other:?}"),
    }
}

/// What is printed: the error and its cause.
fn complaint(text: &str) -> String {
    nbd_backend::chain(&parse(text).expect_err(text))
}

#[test]
fn files_and_their_options() {
    let plain = |path: &str| FileSpec { path: path.into(), ..FileSpec::default() };
    for (text, expected) in [
        ("file:disk.img", plain("disk.img")),
        ("file:/dev/sdb", plain("/dev/sdb")),
        ("file:a,ro", FileSpec { read_only: true, ..plain("a") }),
        ("file:a,direct,block=4096", FileSpec { direct: true, block: Some(4096), ..plain("a") }),
        (
            "file:a,block=1K,create=10M",
            FileSpec { create: Some(10 << 20), block: Some(1024), ..plain("a") },
        ),
    ] {
        assert_eq!(file(text), expected, "{text}");
    }
}

#[test]
fn memory() {
    let block = 4096;
    let size = 1 << 30;
    assert_eq!(parse("mem:1G,block=4096"), Ok(Spec::Memory(MemorySpec { size, block })));
    assert_eq!(parse("mem:1G"), Ok(Spec::Memory(MemorySpec { size, block: 512 })));
}

#[test]
fn commas_that_begin_no_option_belong_to_the_path() {
    for (text, path, end) in [
        ("file:a,b.img", "a,b.img", Some("b.img")),
        ("file:a,ro,b.img", "a,ro,b.img", Some("b.img")),
        ("file:/x,ro/b", "/x,ro/b", None),
        ("file:a,", "a,", Some("")),
        ("file:a,size=1G", "a,size=1G", Some("size=1G")),
        ("file:a,b=c,ro", "a,b=c", Some("b=c")),
        ("file:mem:1G", "mem:1G", None),
    ] {
        let spec = file(text);
        assert_eq!(spec.path, Path::new(path), "{text}");
        assert_eq!(spec.doubtful_end(), end, "{text}");
    }
    assert!(file("file:a,b=c,ro").read_only);
}

#[test]
fn a_path_need_not_be_text() {
    let spec = Spec::parse(OsStr::from_bytes(b"file:\xff,\xfe,ro")).unwrap();
    let path = OsStr::from_bytes(b"\xff,\xfe");
    assert!(matches!(spec, Spec::File(spec) if spec.path == path && spec.read_only));
}

#[test]
fn a_bare_path_is_told_how_to_be_written() {
    for (text, way_out) in [
        ("disk.img", "write file:disk.img to"),
        ("/dev/sdb", "write file:/dev/sdb to"),
        ("/dev/disk/by-path/pci-0000:00", "write file:/dev/disk/by-path/pci-0000:00 to"),
        ("./a:b", "write file:./a:b to"),
        ("64M", "write mem:64M to"),
        ("", "write file: to"),
        (":x", "write file::x to"),
        ("nbdkit -s memory", "write exec:nbdkit -s memory to start an NBD server, or file:"),
    ] {
        assert!(complaint(text).contains(way_out), "{}", complaint(text));
    }
}

#[test]
fn the_guilty_word_is_named_and_the_right_one_guessed() {
    for (text, guilty, way_out) in [
        ("fil:a", "`fil:`", "did you mean `file:`?"),
        ("File:a", "`File:`", "did you mean `file:`?"),
        ("memory:1G", "`memory:`", "did you mean `mem:`?"),
        ("http://x", "`http:`", "there are file:PATH, mem:SIZE, nbd://HOST"),
        ("NBD://x", "`NBD:`", "did you mean `nbd:`?"),
        ("nbdunix:///?socket=/s", "`nbdunix:`", "did you mean `nbd+unix:`?"),
        ("unix:/s", "`unix:`", "did you mean `nbd+unix:`?"),
        ("exce:nbdkit", "`exce:`", "did you mean `exec:`?"),
        ("file:a,dirct", "`dirct`", "did you mean `direct`?"),
        ("file:a,RO", "`RO`", "did you mean `ro`?"),
        ("file:a,readonly", "`readonly`", "did you mean `ro`?"),
        ("file:a,craete=1G", "`craete`", "did you mean `create`?"),
        ("file:a,blcok=512,ro", "`blcok`", "did you mean `block`?"),
        ("mem:1G,ro", "`ro`", "mem: has only block=BYTES"),
        ("mem:1G,fast", "`fast`", "mem: has only block=BYTES"),
    ] {
        let complaint = complaint(text);
        assert!(complaint.contains(guilty), "{text}: {complaint}");
        assert!(complaint.contains(way_out), "{text}: {complaint}");
    }
}

#[test]
fn wrong_values_are_named() {
    for (text, cause) in [
        ("file:", "the path is missing"),
        ("file:,ro", "the path is missing"),
        ("file:a,rw", "no option `rw`: leave it out"),
        ("file:a,ro,ro", "`ro` is given twice"),
        ("file:a,block=512,block=512", "`block` is given twice"),
        ("file:a,ro=yes", "`ro` takes no value"),
        ("file:a,direct=", "`direct` takes no value"),
        ("file:a,create", "create=SIZE: the size is missing"),
        ("file:a,create=", "create=SIZE: the size is missing"),
        ("file:a,create=1.5G", "create=SIZE: `1.5G` is not a size"),
        ("file:a,create=9E", "create=SIZE: `9E` is more than"),
        ("file:a,create=0", "create=SIZE: a size of 0"),
        ("file:a,create=1000", "1000 is not a multiple of the block size 512"),
        ("file:a,direct,create=512", "512 is not a multiple of the block size 4096"),
        ("file:a,create=1M,ro", "`create` and `ro`"),
        ("file:a,block=513", "`block=513` is not a block size"),
        ("file:a,block", "`block=` is not a block size"),
        ("file:a,block=8192", "`block=8192` is not a block size"),
        ("nbd:host", "lacks // before the host"),
        ("nbd+unix:///", "add ?socket=PATH"),
        ("nbd://host/?conections=2", "unknown parameter \"conections\""),
        ("nbd://host/?connections=99", "connections=99 in the URI is not understood"),
        ("exec:", "exec: without a command"),
        ("exec+listen: ", "exec+listen: without a command"),
        ("mem:", "mem:SIZE: the size is missing"),
        ("mem:ten", "mem:SIZE: `ten` is not a size"),
        ("mem:513", "513 is not a multiple of the block size 512"),
        ("mem:512,block=4096", "512 is not a multiple of the block size 4096"),
    ] {
        assert!(complaint(text).contains(cause), "{text}: {}", complaint(text));
    }
}

#[test]
fn the_canonical_form_means_the_same() {
    for (text, canonical) in [
        ("file:a,block=4K,direct", "file:a,direct,block=4096"),
        ("file:a,create=1048576", "file:a,create=1M"),
        ("file:a,ro", "file:a,ro"),
        ("mem:1024M", "mem:1G"),
        ("mem:1M,block=1K", "mem:1M,block=1024"),
        ("nbd://host:10809", "nbd://host/"),
        ("nbd+unix:///a%20b?socket=/s&retry=5", "nbd+unix:///a%20b?socket=/s&retry=5"),
        ("exec:nbdkit -s memory 1G,ro", "exec:nbdkit -s memory 1G,ro"),
    ] {
        let spec = parse(text).unwrap();
        assert_eq!(spec.to_string(), canonical);
        assert_eq!(parse(canonical), Ok(spec));
    }
}
