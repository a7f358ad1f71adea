//! The name that was probably meant.

/// The known name that is most like another one, if one is like it at all.
pub(crate) fn nearest<T: AsRef<str>>(name: &str, known: impl IntoIterator<Item = T>) -> Option<T> {
    let lower = name.to_lowercase();
    let distance = |known: &T| strsim::osa_distance(&lower, &known.as_ref().to_lowercase());
    let nearest = known.into_iter().min_by_key(distance)?;
    let limit = (nearest.as_ref().chars().count() / 3).max(1);
    (distance(&nearest) <= limit).then_some(nearest)
}

/// `; did you mean NAME?`, or what there is if that is not much, or nothing.
pub(crate) fn hint(name: &str, known: &[String]) -> String {
    match (nearest(name, known), known) {
        (Some(nearest), _) => format!("; did you mean `{nearest}`?"),
        (None, []) => "; there are none".into(),
        (None, [..]) if known.len() <= 8 => format!("; there are {}", known.join(", ")),
        (None, _) => format!("; there are {} others", known.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_nearly_right_is_found() {
        let known: Vec<String> = ["disk", "mail", "Archive"].map(Into::into).into();
        assert_eq!(hint("dsik", &known), "; did you mean `disk`?");
        assert_eq!(hint("archive", &known), "; did you mean `Archive`?");
        assert_eq!(hint("other", &known), "; there are disk, mail, Archive");
        assert_eq!(hint("disk", &[]), "; there are none");
        let many: Vec<String> = (0..9).map(|number| format!("volume-{number:04}")).collect();
        assert_eq!(hint("x", &many), "; there are 9 others");
    }
}
