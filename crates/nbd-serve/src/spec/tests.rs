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
fn images() {
    assert!(matches!(parse("rbd:rbd/disk,user=me"), Ok(Spec::Rbd(image)) if image.pool == "rbd"));
    // Its @ does not make a layer of it, and a layer can stand in front.
    assert!(matches!(parse("rbd:rbd/disk@monday"), Ok(Spec::Rbd(image)) if image.is_read_only()));
    assert!(matches!(parse("log@rbd:rbd/disk@monday"), Ok(Spec::Layer(_))));
    let relative = parse("rbd:rbd/disk,conf=a.conf,keyring=/k").unwrap().relative_paths();
    assert_eq!(relative, [Path::new("a.conf")]);
    assert!(complaint("rbd:disk").contains("rbd:rbd/disk"));
    assert!(complaint("rdb:rbd/disk").contains("did you mean `rbd:`?"));
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
        ("dely:1ms@file:a", "`dely:`", "did you mean `delay:`?"),
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
        ("delay:1ms", "`delay` is a layer and needs something below it: write delay@SPEC"),
        ("readonly@", "`readonly` is a layer and needs something below it"),
        ("log:1@mem:1M", "log: unknown option `1`; there are on"),
        ("delay:raed=1ms@mem:1M", "delay: unknown option `raed`; did you mean `read`?"),
        ("delay:10@mem:1M", "delay: read: `10` is not a time, like 10ms"),
        ("delay:1ms,read=2ms@mem:1M", "the option `read` is given twice"),
        ("error:2@mem:1M", "error: rate: `2` is not a share from 0 to 1"),
        ("error:errno=ENOENT@mem:1M", "`ENOENT` is not an error: EIO, ENOSPC"),
        ("readonly:x@mem:1M", "`readonly` has no options: leave `x` out"),
        ("partition:0@mem:1M", "`0` is not the number of a partition"),
        ("partition@mem:1M", "`` is not the number of a partition"),
        ("offset:@mem:1M", "offset:START[+LENGTH]: the size is missing"),
        ("offset:1K+0@mem:1M", "offset:START+LENGTH: a size of 0"),
        ("record@mem:1M", "the log is missing: write record:FILE@SPEC"),
        ("record:a@disk.img", "write file:disk.img"),
        ("cow:a", "write cow:BASE+DIFF"),
        ("cow:+b", "write cow:BASE+DIFF"),
        ("cow:a+", "write cow:BASE+DIFF"),
        ("cow:file:a,create=1M+b", "a base is only read, so leave `create` out"),
        ("null:1M,ro", "null: has only block=BYTES"),
        ("null:", "null:SIZE: the size is missing"),
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
        ("null:1M", "null:1M"),
        ("pattern:1M,block=4096", "pattern:1M,block=4096"),
        ("readonly:@file:a", "readonly@file:a"),
        ("partition:2@file:a,ro", "partition:2@file:a,ro"),
        ("offset:0+1048576@file:a", "offset:0+1M@file:a"),
        ("offset:1K@file:a", "offset:1K@file:a"),
        ("delay:1ms@file:a", "delay:read=1ms,write=1ms,flush=1ms@file:a"),
        ("delay:flush=0,read=1500us@file:a", "delay:read=1500us@file:a"),
        ("delay@file:a", "delay@file:a"),
        ("error:1%@rate:1M@mem:1M", "error:rate=0.01@rate:bytes=1M@mem:1M"),
        (
            "error:write=1,errno=ENOSPC,from=1M,to=2M@mem:1M",
            "error:write=1,errno=ENOSPC,from=1M,to=2M@mem:1M",
        ),
        ("log:on=off@mem:1M", "log:on=off@mem:1M"),
        ("record:a/b@mem:1M", "record:a/b@mem:1M"),
        ("cow:a+b", "cow:file:a,ro+b"),
        ("cow:a+b.img+c", "cow:file:a+b.img,ro+c"),
        ("cow:cow:a+b+c", "cow:cow:file:a,ro+b+c"),
        ("log@cow:partition:1@file:a+b", "log@cow:partition:1@file:a,ro+b"),
        ("nbd://host:10809", "nbd://host/"),
        ("nbd+unix:///a%20b?socket=/s&retry=5", "nbd+unix:///a%20b?socket=/s&retry=5"),
        ("exec:nbdkit -s memory 1G,ro", "exec:nbdkit -s memory 1G,ro"),
    ] {
        let spec = parse(text).unwrap();
        assert_eq!(spec.to_string(), canonical);
        assert_eq!(parse(canonical), Ok(spec));
    }
}

#[test]
fn nothing_below_a_base_is_opened_for_writing() {
    let Ok(Spec::Cow(cow)) = parse("cow:cow:partition:1@file:a+b+c") else {
        panic!("no cow");
    };
    let Spec::Cow(base) = &cow.base else {
        panic!("{:?}", cow.base);
    };
    assert!(base.read_only && !cow.read_only);
    assert_eq!(base.base.to_string(), "partition:1@file:a,ro");
}

#[test]
fn every_path_becomes_absolute() {
    let here = std::env::current_dir().unwrap();
    let spec = parse("record:log@cow:base+diff").unwrap().absolute().to_string();
    let here = here.display();
    assert_eq!(spec, format!("record:{here}/log@cow:file:{here}/base,ro+{here}/diff"));
}

#[test]
fn plugins_have_parameters_of_their_own() {
    let spec = |plugin: &str, parameters: &[&str]| {
        let parameters = parameters.iter().map(ToString::to_string).collect();
        Ok(Spec::Nbdkit(NbdkitSpec {
            plugin: plugin.into(),
            parameters,
            export_name: String::new(),
        }))
    };
    for (text, plugin, parameters) in [
        ("nbdkit:null", "null", &[] as &[&str]),
        ("nbdkit:file,a.img", "file", &["a.img"]),
        ("nbdkit:./a b.so,file=x,y=1=2", "./a b.so", &["file=x", "y=1=2"]),
        ("nbdkit:eval,pread=dd a,,b,x", "eval", &["pread=dd a,b", "x"]),
        ("nbdkit:data,data=1,,,size=2", "data", &["data=1,", "size=2"]),
    ] {
        assert_eq!(parse(text), spec(plugin, parameters), "{text}");
        assert_eq!(parse(text).unwrap().to_string(), text);
    }
    assert_eq!(parse("nbdkit:null,1M,"), spec("null", &["1M"]));
    assert!(parse("nbdkit:./a.so").unwrap().absolute().to_string().starts_with("nbdkit:/"));
    assert!(parse("nbdkit:null").unwrap().absolute().to_string() == "nbdkit:null");
    assert!(complaint("nbdkit:").contains("nbdkit:PLUGIN"));
    for text in ["nbdkit:-s null", "nbdkit:null 1M"] {
        assert!(complaint(text).contains("write its parameters after commas"), "{text}");
    }
}
