use serde_json::{Value, json};

use super::*;
use crate::attach_options::{KernelApi, RestartWhen, Sandbox};
use crate::policy::OnBackendLoss;

/// As holders wrote it when each option was a field of the state.
const FORMER_STATE: &str = include_str!("state.json");

/// That state with another value in it, or without the field.
fn former(field: &str, value: Option<Value>) -> Vec<u8> {
    let mut state: Value = serde_json::from_str(FORMER_STATE).unwrap();
    let fields = state.as_object_mut().unwrap();
    match value {
        Some(value) => fields.insert(field.into(), value),
        None => fields.remove(field),
    };
    serde_json::to_vec_pretty(&state).unwrap()
}

fn expected() -> AttachOptions {
    AttachOptions {
        kernel_api: KernelApi::Netlink,
        lanes: 3,
        restart: RestartWhen::OnFailure,
        restart_limit: None,
        poison_limit: 5,
        on_backend_loss: OnBackendLoss::Fail(12),
        warm_spare: true,
        survive_shutdown: true,
        user: Some("nobody".into()),
        sandbox: Some(Sandbox::Network),
        group: None,
        ready_timeout: None,
    }
}

#[test]
fn a_state_of_the_build_before_is_read_and_written_with_the_same_fields() {
    let state = State::parse(FORMER_STATE.as_bytes()).unwrap();
    assert_eq!(state.options, expected());
    assert_eq!((state.sitter.pid, state.restarts, state.paused), (42, 7, true));
    let former: Value = serde_json::from_str(FORMER_STATE).unwrap();
    let written = serde_json::to_value(&state).unwrap();
    for (field, value) in former.as_object().unwrap() {
        assert_eq!(written.get(field), Some(value), "{field}");
    }
    assert_eq!(State::parse(&serde_json::to_vec(&state).unwrap()).unwrap(), state);
}

#[test]
fn fields_that_older_holders_do_not_write_have_defaults_and_no_others() {
    let later = ["sandbox", "group", "survive_shutdown", "restart_limit_given", "log_level"];
    for field in later {
        State::parse(&former(field, None)).unwrap();
    }
    for field in ["kernel_api", "lanes", "restart", "poison_limit", "warm_spare", "on_backend_loss"]
    {
        let error = State::parse(&former(field, None)).unwrap_err().to_string();
        assert!(error.contains(&format!("missing field `{field}`")), "{error}");
    }
}

#[test]
fn a_value_that_is_unknown_is_an_error_with_field_and_value() {
    for (field, value, says) in [
        ("kernel_api", json!("telepathy"), "`telepathy` is none of ioctl, netlink"),
        ("restart", json!("often"), "`often` is none of on-failure, always, never"),
        ("sandbox", json!("beach"), "`beach` is none of local, network"),
        ("on_backend_loss", json!("panic"), "use hold, fail or fail:SECONDS"),
        ("lanes", json!(9), "1 to 4 lanes are possible"),
        ("poison_limit", json!(1), "use 0 for never"),
        ("restart_limit", json!(-1), "invalid value: integer `-1`"),
        ("warm_spare", json!("maybe"), "invalid type: string \"maybe\""),
        ("user", json!(17), "invalid type: integer `17`"),
        ("restarts", json!("many"), "invalid type: string \"many\""),
        ("paused", json!(0), "invalid type: integer `0`"),
    ] {
        let error = State::parse(&former(field, Some(value.clone()))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let text = error.to_string();
        assert!(text.starts_with(&format!("\"{field}\": {value}: ")), "{text}");
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn a_restart_limit_is_one_that_was_asked_for() {
    for (limit, given, found) in [
        (json!(10), json!(true), Some(10)),
        (json!(0), json!(true), Some(0)),
        // Holders had this default, and wrote it down.
        (json!(10), json!(false), None),
        (json!(7), json!(false), Some(7)),
        (json!(u32::MAX), json!(false), None),
    ] {
        let text = former("restart_limit", Some(limit));
        let mut state: Value = serde_json::from_slice(&text).unwrap();
        state["restart_limit_given"] = given;
        let state = State::parse(&serde_json::to_vec(&state).unwrap()).unwrap();
        assert_eq!(state.options.restart_limit, found);
    }
}

#[test]
fn the_last_log_of_a_device_is_found_by_the_name_that_it_had() {
    let directory = std::env::temp_dir().join(format!("nbd-last-named-{}", std::process::id()));
    let registry = Registry::new(Some(directory.clone()));
    registry.prepare().unwrap();
    let attached = |index: u32, name: Option<&str>| {
        registry.create_folder(index).unwrap();
        fs::write(registry.log(index), "words\n").unwrap();
        registry.write_properties(index, name, false).unwrap();
        assert_eq!(name.and_then(|name| registry.last_named(name)), None);
        registry.remove(index).unwrap();
    };
    attached(0, Some("backup"));
    assert_eq!(registry.last_named("backup"), Some(0));
    // Its log is that of another device now.
    attached(0, None);
    assert_eq!(registry.last_named("backup"), None);
    attached(0, Some("a"));
    attached(1, Some("b"));
    assert_eq!([registry.last_named("a"), registry.last_named("b")], [Some(0), Some(1)]);
    attached(0, Some("c"));
    assert_eq!([registry.last_named("a"), registry.last_named("c")], [None, Some(0)]);
    fs::remove_dir_all(directory).unwrap();
}
