use clap::{Args, Command, FromArgMatches};
use serde_json::json;

use super::*;

fn parse<T: AsRef<str>>(words: &[T]) -> Result<AttachOptions, clap::Error> {
    let command = AttachOptions::augment_args(Command::new("attach")).no_binary_name(true);
    let matches = command.try_get_matches_from(words.iter().map(AsRef::as_ref))?;
    AttachOptions::from_arg_matches(&matches)
}

/// None of them as it is by default, but `warm_spare`, which command lines name differently.
fn unusual() -> AttachOptions {
    let default = AttachOptions::default();
    AttachOptions {
        kernel_api: KernelApi::Netlink,
        lanes: default.lanes % 4 + 1,
        restart: RestartWhen::Never,
        restart_limit: Some(4),
        poison_limit: 0,
        on_backend_loss: OnBackendLoss::Fail(7),
        warm_spare: default.warm_spare,
        survive_shutdown: true,
        user: Some("nobody".into()),
        sandbox: Some(Sandbox::Network),
        group: Some("disk".into()),
        ready_timeout: Some(9),
    }
}

#[test]
fn what_a_holder_is_told_is_what_was_meant() {
    assert!(AttachOptions::default().arguments().is_empty());
    let arguments = unusual().arguments();
    assert_eq!(arguments.len(), AttachOptions::names().len(), "each option is handed on");
    assert_eq!(parse(&arguments).unwrap(), unusual());
    let spare = AttachOptions { warm_spare: true, ..AttachOptions::default() };
    assert_eq!(spare.arguments(), ["--warm-spare"]);
}

#[test]
fn every_option_has_the_same_name_everywhere() {
    let (default, unusual) = (AttachOptions::default(), unusual().fields());
    for name in AttachOptions::names() {
        let field = name.replace('-', "_");
        let mut options = default.clone();
        options.set(&field, unusual[&field].clone()).unwrap();
        assert_ne!(options, default, "{name}");
    }
}

#[test]
fn an_option_that_cannot_be_set_stays() {
    let mut options = AttachOptions::default();
    for (field, value, says) in [
        ("lanes", json!(0), "1 to 4 lanes are possible"),
        ("lanes", json!("2"), "invalid type: string"),
        ("poison_limit", json!(1), "use 0 for never, or a number from 2 on"),
        ("ready_timeout", json!(0), "must be at least 1 second"),
        ("kernel_api", json!("x"), "`x` is none of ioctl, netlink"),
    ] {
        let error = options.set(field, value).unwrap_err().to_string();
        assert!(error.starts_with(says), "{error}");
    }
    assert_eq!(options, AttachOptions::default());
}

#[test]
fn a_sandbox_without_a_kind_is_local_and_needs_a_user() {
    let options = parse(&["--sandbox"]).unwrap();
    assert_eq!(options.sandbox, Some(Sandbox::Local));
    assert!(options.check().is_err());
    assert!(parse(&["--sandbox", "--user=nobody"]).unwrap().check().is_ok());
    assert!(parse(&["--sandbox=beach"]).is_err());
    assert!(parse(&["--poison-limit=1"]).is_err());
    assert!(parse(&["--lanes=5"]).is_err());
}
