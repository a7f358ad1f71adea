use std::io::Write;

use super::*;

fn setting(name: &str, kind: Kind, value: u64) -> Setting {
    Setting { name: name.into(), kind, initial: value, value }
}

fn some() -> Vec<Setting> {
    vec![setting("error.rate", Kind::Share, 10_000_000), setting("delay.read", Kind::Time, 1000)]
}

fn file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create(c"settings", MFdFlags::MFD_CLOEXEC).unwrap());
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn a_table_survives_the_way_through_memory() {
    let table = file(&[0; LENGTH]);
    store(&table, &some()).unwrap();
    assert_eq!(load(&table).unwrap(), some());
    let table = make(&some()).unwrap();
    assert!(is_memory(&table) && table.set_len(0).is_err());
    assert_eq!(load(&table).unwrap(), some());
    change(&table, &[(1, 7)]).unwrap();
    assert_eq!(value(&table, 1), Some(7));
    let now = load(&table).unwrap();
    assert_eq!((now[1].value, now[1].initial, now[0].value), (7, 1000, 10_000_000));
}

#[test]
fn garbage_is_no_table() {
    let whole = encode(&some());
    for at in [0, 7, 8, 15, 64, 64 + 24, 64 + 40, 64 + 48] {
        let mut bytes = whole;
        bytes[at] ^= 0xff;
        assert_eq!(decode(&bytes), None, "{at}");
    }
    assert!(load(&file(&[0; LENGTH])).is_err());
    assert!(load(&file(&[])).is_err());
    assert_eq!(value(&file(&[1; LENGTH]), 0), None);
    assert!(!is_memory(&file(&[])));
}

#[test]
fn values_are_read_and_written_as_people_do() {
    for (kind, text, value, canonical) in [
        (Kind::Share, "0.01", 10_000_000, "0.01"),
        (Kind::Share, "1%", 10_000_000, "0.01"),
        (Kind::Share, "1", 1_000_000_000, "1"),
        (Kind::Share, "0", 0, "0"),
        (Kind::Time, "10ms", 10_000_000, "10ms"),
        (Kind::Time, "1.5s", 1_500_000_000, "1500ms"),
        (Kind::Time, "0", 0, "0"),
        (Kind::Bytes, "10M", 10 << 20, "10M"),
        (Kind::Bytes, "4097", 4097, "4097"),
        (Kind::Number, "42", 42, "42"),
        (Kind::Switch, "on", 1, "on"),
        (Kind::Error, "ENOSPC", 28, "ENOSPC"),
    ] {
        assert_eq!(kind.parse(text), Some(value), "{text}");
        assert_eq!(kind.format(value), canonical);
        assert_eq!(kind.parse(canonical), Some(value));
    }
    for (kind, text) in [
        (Kind::Share, "1.1"),
        (Kind::Share, "-0.1"),
        (Kind::Share, "nan"),
        (Kind::Share, ""),
        (Kind::Time, "10"),
        (Kind::Time, "10 ms"),
        (Kind::Time, "2d"),
        (Kind::Time, "100000s"),
        (Kind::Bytes, "10X"),
        (Kind::Bytes, "99999999999T"),
        (Kind::Number, "1.5"),
        (Kind::Switch, "yes"),
        (Kind::Error, "EWHAT"),
    ] {
        assert_eq!(kind.parse(text), None, "{kind:?} {text}");
    }
}

#[test]
fn either_all_assignments_are_in_order_or_none_is_planned() {
    assert_eq!(
        plan(&some(), &["delay.read=2ms", "error.rate=1"]),
        Ok(vec![(1, 2_000_000), (0, 1_000_000_000)])
    );
    for (text, words) in [
        ("error.rate", "`error.rate` sets nothing: write NAME=VALUE"),
        ("error.rat=1", "no setting `error.rat`; there are error.rate and delay.read"),
        ("error.rate=2", "error.rate: `2` is not a share from 0 to 1"),
    ] {
        let error = plan(&some(), &["delay.read=2ms", text]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(plan(&[], &["a=1"]).unwrap_err().to_string().ends_with("there are none"));
}
