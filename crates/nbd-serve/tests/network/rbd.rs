//! Images of a Ceph cluster, whose configuration `NBD_TEST_CEPH_CONF` names, beside rbd(8).

use std::fs;
use std::io::Write;

use nbd_net::testing::Scratch;

use crate::content::sparse;
use crate::programs::{output, run};
use crate::server::{PROGRAM, Server};

/// The configuration of the cluster, unless there is none, which is told.
fn conf() -> Option<String> {
    let conf = std::env::var("NBD_TEST_CEPH_CONF").ok();
    if conf.is_none() {
        // As nbd_tests::not_run does, so that it is counted.
        let _ = writeln!(std::io::stderr(), "\n    not run: no Ceph cluster (NBD_TEST_CEPH_CONF)");
    }
    conf
}

/// An image of 16 MiB, which is removed again.
struct Image {
    conf: String,
    name: String,
}

impl Image {
    fn new(conf: String, name: &str) -> Self {
        let name = format!("rbd/serve-{}-{name}", std::process::id());
        output("rbd", &["-c", &conf, "create", "--size", "16M", &name]);
        Self { conf, name }
    }

    fn spec(&self) -> String {
        format!("rbd:{},conf={}", self.name, self.conf.replace(',', ",,"))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        run("rbd", &["-c", &self.conf, "rm", "--no-progress", &self.name]);
    }
}

#[test]
fn what_clients_write_is_what_rbd_exports() {
    let Some(conf) = conf() else { return };
    let scratch = Scratch::new();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let content = sparse(scratch.path().join("source").as_path());
    let image = Image::new(conf, "content");
    let server = Server::new(&[&image.spec()]);
    let uri = server.uri("");
    output("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &path("source"), &uri]);
    output("qemu-img", &["compare", "-f", "raw", "-F", "raw", &path("source"), &uri]);
    output("nbdcopy", &[&uri, &path("copy")]);
    assert!(fs::read(path("copy")).unwrap() == content);
    let exported = path("exported");
    output("rbd", &["-c", &image.conf, "export", "--no-progress", &image.name, &exported]);
    assert!(fs::read(exported).unwrap() == content);
    // What was not written is a hole.
    let map = output("nbdinfo", &["--map", "--totals", &uri]);
    assert!(map.contains("hole,zero"), "{map}");
    server.stop();
    // Nothing is left locked.
    let locks = output("rbd", &["-c", &image.conf, "lock", "ls", &image.name]);
    assert!(!locks.contains("client."), "{locks}");
}

#[test]
fn a_mistake_in_a_name_and_an_image_in_use_are_told() {
    let Some(conf) = conf() else { return };
    let image = Image::new(conf, "used");
    let print = |spec: &str| run(PROGRAM, &["--print-geometry", spec]);
    let (code, shape, _) = print(&image.spec());
    assert_eq!(code, 0);
    assert!(shape.contains("\"size\":16777216"), "{shape}");
    let (code, _, told) = print(&image.spec().replace("rbd:rbd/", "rbd:rdb/"));
    assert_eq!(code, 1);
    assert!(told.contains("did you mean `rbd`?"), "{told}");

    let server = Server::new(&[&image.spec()]);
    let again =
        run(PROGRAM, &[&format!("--listen=unix:{}", server.path("2").display()), &image.spec()]);
    assert_eq!(again.0, 1);
    assert!(again.2.contains("in use by client."), "{}", again.2);
    server.stop();
}
