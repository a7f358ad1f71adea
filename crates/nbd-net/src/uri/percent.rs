//! Percent-encoding (RFC 3986, section 2).

use std::fmt;

use super::error::UriError;

/// Characters that stand for themselves, or separate, in a URI; and `%`.
pub(super) fn may_stand(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-._~:/?#[]@!$&'()*+,;=%".contains(character)
}

/// The bytes that a part of a URI stands for.
pub(super) fn decode(text: &str) -> Result<Vec<u8>, UriError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = behind;
            continue;
        }
        let digit = |at: usize| char::from(*behind.get(at)?).to_digit(16);
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            let shown = &rest[..rest.len().min(3)];
            return Err(UriError::Escape(String::from_utf8_lossy(shown).into()));
        };
        bytes.push((high * 16 + low) as u8);
        rest = &behind[2..];
    }
    Ok(bytes)
}

/// The text that a part of a URI stands for; `what` it is.
pub(super) fn decode_text(text: &str, what: &'static str) -> Result<String, UriError> {
    let text = String::from_utf8(decode(text)?).map_err(|_| UriError::NotUtf8(what))?;
    if text.contains('\0') {
        return Err(UriError::Nul(what));
    }
    Ok(text)
}

/// Displays bytes so that [`decode`] restores them. Slashes need no escape in paths and queries.
pub(super) struct Encoded<'a>(pub(super) &'a [u8]);

impl fmt::Display for Encoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
                write!(f, "{}", char::from(*byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}
