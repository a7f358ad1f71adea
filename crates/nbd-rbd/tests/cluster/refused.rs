//! What is refused, and in which words.

use nbd_rbd::{ImageSpec, look};

use crate::cluster::{FileRecord, cluster};

#[track_caller]
fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "nothing of \"{word}\" in: {text}");
    }
}

fn complaint(spec: &ImageSpec) -> String {
    nbd_backend::chain(&look(spec).unwrap_err())
}

#[test]
fn names_that_do_not_exist_are_refused_with_those_that_are_similar() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image("layering,exclusive-lock");
    let spec = |change: &dyn Fn(&mut ImageSpec)| {
        let mut spec = image.spec("");
        change(&mut spec);
        complaint(&spec)
    };
    has(&spec(&|spec| spec.pool = "rdb".into()), &["no pool `rdb`", "did you mean `rbd`?"]);
    let near = format!("{}x", image.name);
    has(&spec(&|spec| spec.image = near.clone()), &["no image", "did you mean"]);
    has(&spec(&|spec| spec.namespace = "team".into()), &["no namespace `team`"]);
    cluster.rbd(&["snap", "create", "--no-progress", &format!("{}@monday", image.path())]);
    let told = spec(&|spec| spec.snapshot = Some("mondai".into()));
    has(&told, &["no snapshot `mondai`", "did you mean `monday`?"]);
}

#[test]
fn a_wrong_user_key_or_configuration_is_named() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image("layering");
    has(&complaint(&image.spec(",user=nobody")), &["client.nobody"]);
    has(&complaint(&image.spec(",keyring=/nonexistent")), &["client.admin", "/nonexistent"]);
    let mut spec = image.spec("");
    spec.conf = Some("/nonexistent/ceph.conf".into());
    has(&complaint(&spec), &["/nonexistent/ceph.conf", "conf=PATH"]);
}

#[test]
fn an_image_without_the_lock_or_with_a_cache_is_not_written() {
    let Some(cluster) = cluster() else { return };
    let image = cluster.image("layering");
    let refused = image.open("", &FileRecord::fresh()).unwrap_err().to_string();
    has(&refused, &[&format!("rbd feature enable {} exclusive-lock", image.path()), ",unlocked"]);
    image.open(",ro", &FileRecord::fresh()).unwrap();
    let path = image.path();
    cluster.rbd(&["config", "image", "set", &path, "rbd_cache", "true"]);
    let refused = image.open(",unlocked", &FileRecord::fresh()).unwrap_err().to_string();
    has(&refused, &[&format!("rbd config image remove {path} rbd_cache")]);
}
