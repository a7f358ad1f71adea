use proptest::option;
use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Uri {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn tcp(host: &str, port: u16) -> Address {
    Address::Tcp { host: host.into(), port }
}

#[test]
fn the_standards_examples_mean_what_it_says() {
    let cases = [
        ("nbd://example.com/disk", "disk"),
        ("nbd+unix:///disk?socket=sock", "disk"),
        ("nbd://example.com/", ""),
        ("nbd://example.com", ""),
        ("nbd://example.com//disk", "/disk"),
        ("nbd://example.com/hello%20world", "hello world"),
    ];
    for (text, export) in cases {
        assert_eq!(parse(text).export, export, "{text}");
    }
    let abstract_name = parse("nbd+unix:///?socket=%00/abstract").address;
    assert_eq!(abstract_name, Address::Unix("\0/abstract".into()));
}

#[test]
fn addresses_of_all_kinds_are_found() {
    let cases = [
        ("nbd://example.com", tcp("example.com", 10809)),
        ("NBD://example.com:1", tcp("example.com", 1)),
        ("nbds://example.com:", tcp("example.com", 10809)),
        ("nbd://[::1]:99/x", tcp("::1", 99)),
        ("nbd://[fe80::1%25eth0]", tcp("fe80::1%eth0", 10809)),
        ("nbd:///x", tcp("localhost", 10809)),
        ("nbd://alice@host/x", tcp("host", 10809)),
        ("nbd+unix:///?socket=/run/nbd.sock", Address::Unix("/run/nbd.sock".into())),
        ("nbds+unix://alice@/?socket=a%26b", Address::Unix("a&b".into())),
        ("nbd+unix:/x?socket=s", Address::Unix("s".into())),
        ("nbd+vsock:///", Address::Vsock { cid: 2, port: 10809 }),
        ("nbds+vsock://3:4/x", Address::Vsock { cid: 3, port: 4 }),
        ("nbd+vsock://3", Address::Vsock { cid: 3, port: 10809 }),
    ];
    for (text, address) in cases {
        assert_eq!(parse(text).address, address, "{text}");
    }
}

#[test]
fn parameters_are_understood() {
    let uri = parse(
        "nbds+unix://al%40ice@/d?socket=s&tls-certificates=certs%20dir&tls-hostname=h\
         &tls-verify-peer=0&tls-type=x509&connections=4&retry=30",
    );
    assert!(uri.tls && !uri.tls_verify);
    assert_eq!(uri.user.as_deref(), Some("al@ice"));
    assert_eq!(uri.tls_certificates, Some("certs dir".into()));
    assert_eq!(uri.tls_hostname.as_deref(), Some("h"));
    assert_eq!(uri.connections, Some(4));
    assert_eq!(uri.retry, Some(Retry::For(Duration::from_secs(30))));
    assert_eq!(parse("nbd://h/?retry=forever").retry, Some(Retry::Forever));
    let plain = parse("nbd://h/a+b");
    assert_eq!(plain.export, "a+b");
    assert!(plain.tls_verify && plain.connections.is_none() && plain.retry.is_none());
}

#[test]
fn the_servers_name_is_what_its_certificate_should_say() {
    let cases = [
        ("nbds://example.com", "example.com"),
        ("nbds://example.com?tls-hostname=h", "h"),
        ("nbds://[fe80::1%25eth0]", "fe80::1"),
        ("nbds+unix:///?socket=s", "localhost"),
        ("nbds+vsock:///", "localhost"),
    ];
    for (text, name) in cases {
        assert_eq!(parse(text).server_name(), name, "{text}");
    }
}

#[test]
fn mistakes_are_named() {
    let cases = [
        ("", "no NBD URI"),
        ("http://h/", "no NBD URI"),
        ("nbd+ssh://h/", "no NBD URI"),
        ("nbd:localhost:10809", "lacks //"),
        ("nbd+vsock:2", "lacks //"),
        ("nbd://h/a b", "%20"),
        ("nbd://h/\u{e4}", "%XX"),
        ("nbd://h/%zz", "%25"),
        ("nbd://h/50%", "%25"),
        ("nbd://h/%4", "%25"),
        ("nbd://h/a#b", "%23"),
        ("nbd://h/%ff", "UTF-8"),
        ("nbd://h/%00", "NUL"),
        ("nbd://h:65536/", "no port"),
        ("nbd://h:0/", "no port"),
        ("nbd://h:-1/", "no port"),
        ("nbd://::1/", "brackets"),
        ("nbd://[::1/", "brackets"),
        ("nbd://[h]/", "brackets"),
        ("nbd://[::1%eth0]/", "brackets"),
        ("nbd://a%3Ab/", "brackets"),
        ("nbd+vsock://x/", "no vsock CID"),
        ("nbd+vsock://2:x/", "no port"),
        ("nbd+unix://h/?socket=s", "no host"),
        ("nbd+unix:///x", "?socket=PATH"),
        ("nbd+unix:///?socket=", "path of a socket"),
        ("nbd+unix:///?socket=%00", "path of a socket"),
        ("nbd+unix:///?socket=a%00", "path of a socket"),
        ("nbd://h/?socket=s", "nbd+unix"),
        ("nbd://h/?conections=2", "spelling"),
        ("nbd://h/?x-mine=2", "spelling"),
        ("nbd://h/?retry=1&retry=2", "twice"),
        ("nbd://h/?retry=-1", "seconds"),
        ("nbd://h/?retry", "seconds"),
        ("nbd://h/?connections=0", "from 1 to 16"),
        ("nbd://h/?connections=17", "from 1 to 16"),
        ("nbds://h/?tls-verify-peer=no", "0 or 1"),
        ("nbds://h/?tls-hostname=", "name of a host"),
        ("nbds://h/?tls-psk-file=f", "pre-shared"),
        ("nbds://h/?tls-type=psk", "pre-shared"),
        ("nbds://h/?tls-type=anon", "anonymous"),
        ("nbd://h/?tls-certificates=d", "nbds"),
        ("nbd://h/?tls-verify-peer=1", "nbds"),
    ];
    for (text, hint) in cases {
        let error = text.parse::<Uri>().map(|uri| uri.to_string()).unwrap_err().to_string();
        assert!(error.contains(hint), "{text}: {error}");
    }
    let long = format!("nbd://h/{}", "x".repeat(LONGEST_EXPORT + 1));
    assert_eq!(long.parse::<Uri>(), Err(UriError::LongExport(LONGEST_EXPORT + 1)));
}

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        "\0?[^\0]{1,20}".prop_map(|path| Address::Unix(path.into())),
        ("[^:\0]{1,20}|[0-9a-f]{1,4}::[0-9a-f]{1,4}(%[a-z0-9]{1,5})?", 1u16..)
            .prop_map(|(host, port)| Address::Tcp { host, port }),
        (any::<u32>(), any::<u32>()).prop_map(|(cid, port)| Address::Vsock { cid, port }),
    ]
}

fn any_uri() -> impl Strategy<Value = Uri> {
    let names = ("[^\0]{0,30}", option::of("[^\0]{0,10}"));
    let tls = option::of((option::of("[^\0]{1,9}"), option::of("[^\0]{1,9}"), any::<bool>()));
    let retry = option::of(prop_oneof![
        Just(Retry::Forever),
        any::<u64>().prop_map(|seconds| Retry::For(Duration::from_secs(seconds))),
    ]);
    (address(), names, tls, option::of(1..=MOST_CONNECTIONS), retry).prop_map(
        |(address, (export, user), tls, connections, retry)| {
            let is_tls = tls.is_some();
            let (certificates, tls_hostname, tls_verify) = tls.unwrap_or((None, None, true));
            let tls_certificates = certificates.map(PathBuf::from);
            Uri {
                tls: is_tls,
                address,
                export,
                user,
                tls_certificates,
                tls_hostname,
                tls_verify,
                connections,
                retry,
            }
        },
    )
}

proptest! {
    #[test]
    fn uris_survive_a_round_trip(uri in any_uri()) {
        prop_assert_eq!(uri.to_string().parse(), Ok(uri));
    }

    #[test]
    fn no_text_is_too_strange(text in "\\PC*|nbds?(\\+unix|\\+vsock)?:(//)?[a-z0-9%@:?/&=.\\[\\]-]*") {
        if let Ok(uri) = text.parse::<Uri>() {
            prop_assert_eq!(uri.to_string().parse(), Ok(uri));
        }
    }
}
