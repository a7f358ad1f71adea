//! `cow:BASE+DIFF`: the base is a path, or any other SPEC.
//!
//! The last `+` separates them; so a diff whose name contains one needs another name.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{FileSpec, Spec, SpecError, is_spec};

/// A read-only base, and a file for what differs from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CowSpec {
    pub(crate) base: Spec,
    pub(crate) diff: PathBuf,
    /// It is the base of another one.
    pub(crate) read_only: bool,
}

pub(super) fn parse(rest: &[u8]) -> Result<CowSpec, SpecError> {
    let plus = rest.iter().rposition(|byte| *byte == b'+').ok_or(SpecError::NoDiff)?;
    let (base, diff) = (&rest[..plus], &rest[plus + 1..]);
    if base.is_empty() || diff.is_empty() {
        return Err(SpecError::NoDiff);
    }
    let base = if is_spec(base) {
        Spec::parse(OsStr::from_bytes(base))?
    } else {
        let path = OsStr::from_bytes(base).into();
        Spec::File(FileSpec { path, ..FileSpec::default() })
    };
    Ok(CowSpec { base: read_only(base)?, diff: OsStr::from_bytes(diff).into(), read_only: false })
}

/// Nothing below a base is opened for writing.
fn read_only(spec: Spec) -> Result<Spec, SpecError> {
    Ok(match spec {
        Spec::File(file) if file.create.is_some() => return Err(SpecError::CreateBase),
        Spec::File(file) => Spec::File(FileSpec { read_only: true, ..file }),
        Spec::Cow(cow) => Spec::Cow(Box::new(CowSpec { read_only: true, ..*cow })),
        Spec::Layer(mut layer) => {
            layer.inner = read_only(layer.inner)?;
            Spec::Layer(layer)
        }
        other => other,
    })
}

impl fmt::Display for CowSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cow:{}+{}", self.base, self.diff.display())
    }
}
