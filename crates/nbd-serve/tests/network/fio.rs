//! fio's nbd engine, which verifies what it reads.

use crate::programs::output;
use crate::server::Server;

/// Writes all of a range at random, in blocks of odd numbers of sectors, and reads it back.
fn verify(server: &Server, export: &str, options: &[&str]) {
    let uri = format!("--uri={}", server.uri(export));
    let mut arguments = vec![
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--size=24m",
        "--verify=crc32c",
        "--verify_fatal=1",
        // No files in the working directory.
        "--verify_state_save=0",
    ];
    arguments.extend(options);
    let words = output("fio", &arguments);
    assert!(words.contains("err= 0"), "{words}");
}

#[test]
fn fio_verifies_a_file_and_memory() {
    let server = Server::new(&["file:{dir}/disk,create=32M", "m=mem:32M"]);
    for export in ["", "m"] {
        verify(&server, export, &["--bs=4k", "--iodepth=16"]);
        verify(&server, export, &["--bsrange=512-256k", "--bs_unaligned=0", "--iodepth=32"]);
    }
    assert_eq!(server.stop(), [""; 0]);
}

#[test]
fn fio_verifies_over_several_connections() {
    let server = Server::new(&["mem:128M"]);
    let options = ["--bs=16k", "--iodepth=8", "--numjobs=4", "--offset_increment=32m", "--thread"];
    verify(&server, "", &options);
}
