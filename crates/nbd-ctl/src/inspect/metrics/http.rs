//! What a client asks by HTTP, and whether it asks us.
//!
//! A page of a browser on this machine can read what listens on a loopback address, if its own name is
//! made to lead there (DNS rebinding). The browser sends that name, so a name that is not ours is
//! refused.

use std::net::IpAddr;

use super::text::MEDIA_TYPE;

/// The names by which clients may ask, beside those of this machine's loopback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HostNames(Vec<String>);

impl HostNames {
    /// Checks names that the operator has given.
    pub(crate) fn check(names: Vec<String>) -> Result<Self, String> {
        let is_name = |name: &String| {
            let is_part = |char: char| char.is_ascii_alphanumeric() || "-._".contains(char);
            !name.is_empty() && (name.chars().all(is_part) || address_of(name).is_some())
        };
        match names.iter().find(|name| !is_name(name)) {
            Some(wrong) => {
                Err(format!("{wrong:?}: give a host name or an address, without a port"))
            }
            None => Ok(Self(names)),
        }
    }

    /// Whether no name was given.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a client that sends this in the field Host means us.
    fn has(&self, host: &str) -> bool {
        let name = without_port(host);
        let name = name.strip_suffix('.').unwrap_or(name);
        let is_loopback = address_of(name).is_some_and(|ip| ip.to_canonical().is_loopback());
        is_loopback
            || name.eq_ignore_ascii_case("localhost")
            || self.0.iter().any(|ours| is_same_host(ours, name))
    }
}

fn is_same_host(ours: &str, theirs: &str) -> bool {
    match (address_of(ours), address_of(theirs)) {
        (Some(ours), Some(theirs)) => ours == theirs,
        _ => ours.trim_end_matches('.').eq_ignore_ascii_case(theirs),
    }
}

/// `[::1]:9103`, `127.0.0.1:9103` and `localhost` without their ports.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => match name {
            // The colon was one of an address without brackets.
            name if name.contains(':') && !name.ends_with(']') => host,
            name => name,
        },
        _ => host,
    }
}

fn address_of(name: &str) -> Option<IpAddr> {
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    bare.unwrap_or(name).parse().ok()
}

/// What a client is told.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    status: &'static str,
    media_type: &'static str,
    body: String,
}

impl Answer {
    pub(super) fn metrics(body: String) -> Self {
        Self { status: "200 OK", media_type: MEDIA_TYPE, body }
    }

    pub(super) fn failure(text: &str) -> Self {
        Self::refusal("500 Internal Server Error", text)
    }

    fn refusal(status: &'static str, text: &str) -> Self {
        Self { status, media_type: "text/plain; charset=utf-8", body: format!("{text}\n") }
    }

    /// As it goes over the wire.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let Self { status, media_type, body } = self;
        let length = body.len();
        // A page of another origin must not take it for a script or a picture.
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {length}\r\n\
             X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// Checks a request's head: what it is answered if it does not ask for the metrics, or not us. Without
/// `names` every host is right.
pub(super) fn check(head: &str, names: Option<&HostNames>) -> Result<(), Answer> {
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let words: Vec<_> = first.split_ascii_whitespace().collect();
    if let Some(names) = names {
        check_host(lines, words.get(2).copied().unwrap_or_default(), names)?;
    }
    match words[..] {
        ["GET", "/metrics" | "/", ..] => Ok(()),
        ["GET", ..] => Err(Answer::refusal("404 Not Found", "try /metrics")),
        _ => Err(Answer::refusal("405 Method Not Allowed", "only GET is understood")),
    }
}

fn check_host<'a>(
    lines: impl Iterator<Item = &'a str>,
    version: &str,
    names: &HostNames,
) -> Result<(), Answer> {
    let fields = lines.filter_map(|line| line.split_once(':'));
    let hosts = fields.filter(|(name, _)| name.trim().eq_ignore_ascii_case("host"));
    let hosts: Vec<_> = hosts.map(|(_, value)| value.trim()).collect();
    match hosts[..] {
        [host] if names.has(host) => Ok(()),
        [_] => Err(Answer::refusal(
            "421 Misdirected Request",
            "this server is asked by another name: ask localhost, or start nbd-ctl metrics with --host NAME",
        )),
        // No browser speaks HTTP/1.0, and simple scripts do.
        [] if version == "HTTP/1.0" => Ok(()),
        _ => Err(Answer::refusal("400 Bad Request", "one field Host is needed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(head: &str, names: &[&str]) -> String {
        let names = HostNames::check(names.iter().map(ToString::to_string).collect()).unwrap();
        let code = |answer: Answer| answer.status.split(' ').next().unwrap().to_owned();
        check(head, Some(&names)).map_or_else(code, |()| "200".into())
    }

    fn status_of_host(host: &str, names: &[&str]) -> String {
        status(&format!("GET /metrics HTTP/1.1\r\nAccept: */*\r\nhOsT: {host}\r\n\r\n"), names)
    }

    #[test]
    fn only_names_of_this_machine_and_of_the_operator_are_answered() {
        let ours = [
            "localhost",
            "localhost:9103",
            "LocalHost.:9103",
            "127.0.0.1",
            "127.8.9.1:80",
            "[::1]",
            "[::1]:9103",
            "::1",
            "[::ffff:127.0.0.1]:80",
        ];
        for host in ours {
            assert_eq!(status_of_host(host, &[]), "200", "{host}");
        }
        let others = [
            "rebound.example",
            "localhost.rebound.example",
            "192.0.2.1:9103",
            "[2001:db8::1]",
            "",
            "notlocalhost",
            "localhost:port",
            "127.0.0.1.rebound.example:80",
            "0.0.0.0",
            "[::]",
        ];
        for host in others {
            assert_eq!(status_of_host(host, &[]), "421", "{host}");
        }
        let names = ["disks.example", "192.0.2.1", "2001:db8::1"];
        for host in ["Disks.Example:443", "disks.example.", "192.0.2.1:1", "[2001:db8::1]:1"] {
            assert_eq!(status_of_host(host, &names), "200", "{host}");
        }
        assert_eq!(status_of_host("disks.example.org", &names), "421");
    }

    #[test]
    fn requests_without_one_host_are_refused() {
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n", &[]), "400");
        assert_eq!(
            status("GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", &[]),
            "400"
        );
        assert_eq!(status("GET / HTTP/1.0\r\n\r\n", &[]), "200");
        assert_eq!(status("GET / HTTP/1.0\r\nHost: rebound.example\r\n\r\n", &[]), "421");
    }

    #[test]
    fn only_metrics_are_to_be_had() {
        let status = |request: &str| status(&format!("{request}\r\nHost: localhost\r\n\r\n"), &[]);
        assert_eq!(status("GET /metrics HTTP/1.1"), "200");
        assert_eq!(status("GET /etc/passwd HTTP/1.1"), "404");
        assert_eq!(status("GET http://localhost/metrics HTTP/1.1"), "404");
        assert_eq!(status("POST /metrics HTTP/1.1"), "405");
        assert_eq!(status(""), "405");
        assert_eq!(check("GET /metrics HTTP/1.1\r\n\r\n", None), Ok(()));
    }

    #[test]
    fn names_that_no_client_sends_are_refused() {
        for wrong in ["", "a b", "disks.example:9103", "http://disks.example", "*"] {
            assert!(HostNames::check(vec![wrong.into()]).is_err(), "{wrong}");
        }
    }
}
