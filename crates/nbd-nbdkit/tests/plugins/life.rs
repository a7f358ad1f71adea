//! From load to unload, and what is refused on the way.

use nbd_backend::Backend;
use nbd_nbdkit::{Plugin, PluginBackend, PluginError};

use crate::{Place, Tested, words};

#[test]
fn callbacks_come_in_the_order_of_the_interface() {
    let tested = Tested::compile(&[]);
    let plugin = tested.load(&["size=4096"]).unwrap();
    let life = ["config log=", "config size=4096", "config_complete", "thread_model"];
    let calls = tested.calls();
    assert_eq!(calls.len(), life.len(), "{calls:?}");
    assert!(calls.iter().zip(life).all(|(call, begin)| call.starts_with(begin)), "{calls:?}");
    let backend = PluginBackend::open(&plugin, "").unwrap();
    let calls = tested.calls();
    assert_eq!(calls[..4], ["get_ready", "after_fork", "preconnect 0", "open"], "{calls:?}");
    drop(backend);
    assert_eq!(tested.calls(), ["close"]);
    let backend = PluginBackend::open(&plugin, "").unwrap();
    assert_eq!(tested.calls()[..2], ["preconnect 0", "open"], "it is ready once");
    backend.close();
    assert_eq!(tested.calls(), ["close", "cleanup, at most 0 at once", "unload"]);
    drop((backend, plugin));
    assert!(tested.calls().is_empty(), "it ends once");
}

#[test]
fn words_of_the_plugin_are_part_of_the_error() {
    let tested = Tested::compile(&[]);
    let error = words(&tested.load(&["unknown=1"]).unwrap_err());
    assert_eq!(error, "`config` fails: no key 'unknown' here, and % is a percent sign");
    let tested = Tested::compile(&[]);
    let parameters = ["/bare", "disk=x", "more"].map(String::from);
    let error = words(&Plugin::load(tested.object.to_str().unwrap(), &parameters).unwrap_err());
    assert!(error.starts_with("`more` is no parameter: write KEY=VALUE"), "{error}");
}

#[test]
fn a_file_that_is_no_plugin_says_what_is_wrong() {
    for (macros, expected) in [
        (&["NO_PLUGIN"][..], "exports no function plugin_init"),
        (&["NOTHING"], "its function plugin_init fails"),
        (&["UNDEFINED"], "undefined symbol: nbdkit_from_the_future"),
        (&["VERSION=3"], "needs version 3 of the plugin interface, and 2 is the newest"),
        (&["VERSION=-1"], "needs version -1"),
        (&["SIZE=offsetof(struct nbdkit_plugin, load)"], "has no callback `open`"),
        (&["MODEL=9"], "`plugin_init` returns 9, which is no thread model"),
    ] {
        let error = words(&Tested::compile(macros).load(&[]).unwrap_err());
        assert!(error.contains(expected), "{macros:?}: {error}");
    }
}

#[test]
fn a_shorter_structure_lacks_the_callbacks_beyond_its_end() {
    // All that version 2 began with.
    let tested = Tested::compile(&["SIZE=offsetof(struct nbdkit_plugin, magic_config_key)"]);
    let backend = tested.open(&[]).unwrap();
    let calls = tested.calls();
    for absent in ["thread_model", "get_ready", "block_size", "can_extents"] {
        assert!(!calls.iter().any(|call| call == absent), "{absent}: {calls:?}");
    }
    backend.write_at(&[7; 512], 0, false).unwrap();
    let mut data = [0; 512];
    backend.read_at(&mut data, 0).unwrap();
    assert_eq!(data, [7; 512]);
    assert_eq!(backend.extents(0, 4096, false).unwrap().len(), 1);
}

#[test]
fn a_plugin_is_loaded_once_in_a_process() {
    let tested = Tested::compile(&[]);
    let _plugin = tested.load(&[]).unwrap();
    assert!(matches!(tested.load(&[]), Err(PluginError::LoadedTwice(_))));
}

#[test]
fn a_plugin_without_parameters_refuses_them() {
    let place = Place::new();
    let source = place.join("plain.c");
    let text = "#include <nbdkit-plugin.h>
        #define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
        static void *o(int r) { return NBDKIT_HANDLE_NOT_NEEDED; }
        static int64_t s(void *h) { return 512; }
        static int p(void *h, void *b, uint32_t c, uint64_t o) { return 0; }
        static struct nbdkit_plugin plugin = { .name = \"p\", .open = o, .get_size = s, .pread = p };
        NBDKIT_REGISTER_PLUGIN(plugin)";
    std::fs::write(&source, text).unwrap();
    let object = place.compile(&source, &[]);
    let error = nbd_nbdkit::Plugin::load(object.to_str().unwrap(), &["a=b".into()]).unwrap_err();
    assert_eq!(words(&error), "takes no parameters, so `a=b` has to go");
}

#[test]
fn each_export_is_told_its_own_name_in_whatever_thread() {
    let exports = ["one", "two", ""].map(|name| {
        let tested = Tested::compile(&[]);
        (PluginBackend::open(&tested.load(&["named=1"]).unwrap(), name).unwrap(), name, tested)
    });
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for (export, name, _) in exports.iter().cycle().take(60) {
                    let mut data = [1; 512];
                    export.read_at(&mut data, 0).unwrap();
                    assert_eq!(&data[..=name.len()], format!("{name}\0").as_bytes());
                }
            });
        }
    });
}
