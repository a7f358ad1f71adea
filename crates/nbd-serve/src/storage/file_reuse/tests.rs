use super::*;
use crate::storage::probe::ProbeError;
use crate::testing::{Directory, probe, serve};

fn complaint(text: &str) -> String {
    let mut probe = probe(text).unwrap();
    nbd_backend::chain(&first(&mut probe).expect_err(text))
}

fn spec(path: &Path, options: &str) -> String {
    format!("file:{}{options}", path.display())
}

#[test]
fn a_second_writer_is_told_who_the_first_one_is() {
    let directory = Directory::new();
    let path = directory.file("disk", 4096);
    let export = serve(&spec(&path, ""));
    let expected = format!("(process {})", std::process::id());
    for options in ["", ",ro"] {
        let complaint = complaint(&spec(&path, options));
        assert!(complaint.contains("is in use by "), "{complaint}");
        assert!(complaint.contains(&expected), "{complaint}");
    }
    drop(export);
    serve(&spec(&path, ""));
}

#[test]
fn readers_share_but_keep_writers_out() {
    let directory = Directory::new();
    let path = directory.file("disk", 4096);
    let _one = serve(&spec(&path, ",ro"));
    let _two = serve(&spec(&path, ",ro"));
    assert!(complaint(&spec(&path, "")).contains("is in use by "));
}

/// The lock belongs to the description: it must not go with the process that took it.
#[test]
fn a_lock_lives_as_long_as_any_copy_of_the_descriptor() {
    let directory = Directory::new();
    let path = directory.file("disk", 4096);
    let mut probe = probe(&spec(&path, "")).unwrap();
    let file = first(&mut probe).unwrap();
    let keepsake = file.try_clone().unwrap();
    drop(file);
    assert!(complaint(&spec(&path, "")).contains("is in use by "));
    drop(keepsake);
    serve(&spec(&path, ""));
}

#[test]
fn a_new_file_is_made_sparse_and_private() {
    let directory = Directory::new();
    let path = directory.path("disk");
    serve(&spec(&path, ",create=1G"));
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (1 << 30, 0o600));
    assert!(metadata.blocks() < 16);
    serve(&spec(&path, ",create=1G"));
}

/// As it is left by a process that died at the wrong moment.
#[test]
fn a_new_file_without_its_size_is_given_it() {
    let directory = Directory::new();
    let path = directory.file("disk", 0);
    let mut probe = probe(&spec(&path, ",create=1M")).unwrap();
    assert_eq!(probe.geometry.size, 1 << 20);
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    let file = first(&mut probe).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    assert!(probe.notes[0].contains("is created, with 1M"), "{:?}", probe.notes);
}

#[test]
fn a_file_that_cannot_be_made_leaves_nothing_behind() {
    let directory = Directory::new();
    let path = directory.path("no/disk");
    let complaint = complaint(&spec(&path, ",create=1M"));
    assert!(complaint.contains("cannot be created: No such file"), "{complaint}");
    let path = directory.path("disk");
    let mut huge = probe(&spec(&path, ",create=7E")).unwrap();
    match first(&mut huge) {
        Err(error) => assert!(error.to_string().contains("no room for a file of 7E"), "{error}"),
        Ok(_) => return println!("skipped: this file system has room for 7E"),
    }
    assert!(!path.exists());
}

fn kept(text: &str) -> File {
    first(&mut probe(text).unwrap()).unwrap()
}

#[test]
fn a_successor_serves_what_was_attached() {
    let directory = Directory::new();
    let path = directory.file("disk", 4096);
    let keepsake = kept(&spec(&path, ""));
    let mut again = probe(&spec(&path, "")).unwrap();
    check(&mut again, &keepsake).unwrap();
    assert!(again.notes.is_empty());
}

#[test]
fn a_file_that_took_the_place_of_the_attached_one_is_refused() {
    let directory = Directory::new();
    let path = directory.file("disk", 4096);
    let keepsake = kept(&spec(&path, ""));
    fs::rename(directory.file("other", 4096), &path).unwrap();
    let mut other = probe(&spec(&path, "")).unwrap();
    let error = check(&mut other, &keepsake).unwrap_err().to_string();
    assert!(error.contains("is another file than the attached one"), "{error}");
    assert!(error.contains("detach"), "{error}");
}

#[test]
fn a_deleted_file_is_served_on_if_its_size_is_known() {
    let directory = Directory::new();
    let path = directory.path("disk");
    let text = spec(&path, ",create=1M");
    let keepsake = kept(&text);
    fs::remove_file(&path).unwrap();
    let mut gone = probe(&text).unwrap();
    check(&mut gone, &keepsake).unwrap();
    assert!(gone.notes[0].contains("no longer exists"), "{:?}", gone.notes);
    assert!(!path.exists());
    let mut larger = probe(&spec(&path, ",create=2M")).unwrap();
    assert!(matches!(check(&mut larger, &keepsake), Err(FileReuseError::OtherFile)));
}

#[test]
fn a_successor_opens_in_the_same_mode() {
    let directory = Directory::new();
    let path = directory.file("disk", 4096);
    let writable = kept(&spec(&path, ""));
    let complain = |options: &str, keepsake: &File| {
        check(&mut probe(&spec(&path, options)).unwrap(), keepsake).unwrap_err().to_string()
    };
    let error = complain(",ro", &writable);
    assert!(error.contains("was attached writable and cannot be served read-only"), "{error}");
    drop(writable);
    let read_only = kept(&spec(&path, ",ro"));
    let error = complain("", &read_only);
    assert!(error.contains("was attached read-only and cannot be served writable"), "{error}");
    if let Err(error @ ProbeError::NoDirect) = probe(&spec(&path, ",ro,direct")) {
        return println!("skipped: {}: {error}", path.display());
    }
    let error = complain(",ro,direct", &read_only);
    assert!(error.contains("was attached without the option `direct`"), "{error}");
}
