//! What is equal for states that differ only in numbers and in the time.

use std::time::Instant;

/// A text in which numbers of backends, clients, helpers and states, and moments, are told as seen from
/// now.
pub(super) fn canonical(text: &str, now: Instant) -> String {
    let now = moment(&format!("{now:?}"));
    let mut known: Vec<(&str, &str)> = Vec::new();
    let mut latest = None;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, kind)) = first_of(rest) {
        out.push_str(&rest[..at + kind.len()]);
        let inner = &rest[at + kind.len()..];
        let end = inner.find([')', '}']).unwrap_or(inner.len());
        let (number, after) = inner.split_at(end);
        match kind {
            "Instant {" => {
                let offset = moment(number).saturating_sub(now) / 1_000_000;
                out.push_str(&offset.to_string());
            }
            "Revision(" => {
                let revision: u64 = number.parse().unwrap_or(0);
                let latest = *latest.get_or_insert(revision);
                out.push_str(&latest.wrapping_sub(revision).to_string());
            }
            _ => {
                let place = known.iter().position(|it| *it == (kind, number));
                let place = place.unwrap_or_else(|| {
                    known.push((kind, number));
                    known.len() - 1
                });
                out.push_str(&place.to_string());
            }
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn first_of(text: &str) -> Option<(usize, &'static str)> {
    let kinds = ["BackendId(", "ClientId(", "HelperId(", "Revision(", "Instant {"];
    kinds.iter().filter_map(|kind| text.find(kind).map(|at| (at, *kind))).min()
}

/// The nanoseconds of an instant, as its debug form has them.
fn moment(text: &str) -> i128 {
    let numbers: Vec<i128> = text
        .split(|digit: char| !digit.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect();
    match numbers[..] {
        [seconds, nanoseconds] => seconds * 1_000_000_000 + nanoseconds,
        _ => panic!("an instant of another form: {text}"),
    }
}
