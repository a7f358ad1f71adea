//! Thread models: how many callbacks run at once.

use std::sync::Arc;

use nbd_backend::{Backend, Command};
use nbd_nbdkit::ThreadModel;

use crate::Tested;

/// Reads in four threads at once; how many of them the plugin has seen at the same time.
fn most_at_once(model: &str, expected: ThreadModel, parameters: &[&str]) -> String {
    let tested = Tested::compile(&[&format!("MODEL=NBDKIT_THREAD_MODEL_{model}")]);
    let backend = Arc::new(tested.open(parameters).unwrap());
    assert_eq!(backend.thread_model(), expected);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let backend = Arc::clone(&backend);
            std::thread::spawn(move || {
                for block in 0..5 {
                    backend.read_at(&mut [0; 512], block * 512).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    backend.close();
    let calls = tested.calls();
    calls.iter().find(|call| call.starts_with("cleanup")).unwrap().clone()
}

#[test]
fn a_parallel_plugin_gets_four_requests_at_once() {
    // Each waits until the others are there.
    let most = most_at_once("PARALLEL", ThreadModel::Parallel, &["meet=4"]);
    assert_eq!(most, "cleanup, at most 4 at once");
}

#[test]
fn other_models_get_one_request_at_a_time() {
    for (model, expected) in [
        ("SERIALIZE_REQUESTS", ThreadModel::SerializeRequests),
        ("SERIALIZE_ALL_REQUESTS", ThreadModel::SerializeAllRequests),
        ("SERIALIZE_CONNECTIONS", ThreadModel::SerializeConnections),
    ] {
        // Long enough for the others to come.
        let most = most_at_once(model, expected, &["pause=5"]);
        assert_eq!(most, "cleanup, at most 1 at once", "{model}");
    }
}

#[test]
fn a_plugin_may_be_stricter_than_it_was_compiled() {
    let tested = Tested::compile(&[]);
    let plugin = tested.load(&["result.thread_model=1"]).unwrap();
    assert_eq!(plugin.thread_model(), ThreadModel::SerializeAllRequests);
    let tested = Tested::compile(&["MODEL=NBDKIT_THREAD_MODEL_SERIALIZE_REQUESTS"]);
    let plugin = tested.load(&["result.thread_model=3"]).unwrap();
    assert_eq!(plugin.thread_model(), ThreadModel::SerializeRequests, "and not laxer");
}

#[test]
fn only_calls_that_are_quick_are_made_by_the_thread_that_receives() {
    let read = Command::Read { offset: 0, length: 512 };
    let long = Command::Read { offset: 0, length: 2 << 20 };
    for model in ["SERIALIZE_REQUESTS", "PARALLEL"] {
        let tested = Tested::compile(&[&format!("MODEL=NBDKIT_THREAD_MODEL_{model}")]);
        let backend = tested.open(&["size=0x400000"]).unwrap();
        assert!(!backend.is_quick(&read), "{model}: nothing is known yet");
        // However busy the machine is, there will be a while in which it is not.
        while !backend.is_quick(&read) {
            backend.read_at(&mut [0; 512], 0).unwrap();
        }
        assert!(!backend.is_quick(&long), "{model}");
        assert!(!backend.is_quick(&Command::Flush), "{model}: it is not known of others");
        assert!(backend.max_threads() == 1 || model == "PARALLEL");
    }
    let tested = Tested::compile(&["MODEL=NBDKIT_THREAD_MODEL_PARALLEL"]);
    let backend = tested.open(&["pause=1"]).unwrap();
    for _ in 0..50 {
        backend.read_at(&mut [0; 512], 0).unwrap();
    }
    assert!(!backend.is_quick(&read), "it sleeps");
}
