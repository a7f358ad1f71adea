//! Words between commas, as in SPECs: a comma in a word is written twice.

/// The words of a list. There is always one, which may be empty.
#[must_use]
pub fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts
}

/// A word as it is written in a list.
#[must_use]
pub fn escape(word: &str) -> String {
    word.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_being_written() {
        assert_eq!(split(""), [""]);
        assert_eq!(split("a,b,,c,"), ["a", "b,c", ""]);
        let words = ["a,b", "plain", "ends with,"];
        assert_eq!(split(&words.map(escape).join(",")), words);
    }
}
