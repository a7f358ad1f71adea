//! What becomes of requests that no backend answers, as operators say it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a lost backend is waited for unless the operator says otherwise.
const DEFAULT_SECONDS: u32 = 30;

/// What becomes of requests while there is no backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum OnBackendLoss {
    /// They wait for one, without a limit.
    #[default]
    Hold,
    /// They are answered with EIO once there has been none for so many seconds.
    Fail(u32),
}

impl OnBackendLoss {
    /// How long requests wait before they fail; nothing if they never do.
    #[must_use]
    pub fn limit(self) -> Option<Duration> {
        match self {
            Self::Hold => None,
            Self::Fail(seconds) => Some(Duration::from_secs(seconds.into())),
        }
    }
}

impl fmt::Display for OnBackendLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hold => f.write_str("hold"),
            Self::Fail(seconds) => write!(f, "fail:{seconds}"),
        }
    }
}

impl FromStr for OnBackendLoss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "hold" => Ok(Self::Hold),
            None if text == "fail" => Ok(Self::Fail(DEFAULT_SECONDS)),
            Some(("fail", seconds)) => seconds
                .parse()
                .map(Self::Fail)
                .map_err(|_| format!("{seconds} is not a whole number of seconds")),
            _ => Err("use hold, fail or fail:SECONDS".into()),
        }
    }
}

impl TryFrom<String> for OnBackendLoss {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<OnBackendLoss> for String {
    fn from(policy: OnBackendLoss) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_survives_being_written_down_and_garbage_is_refused() {
        for policy in [OnBackendLoss::Hold, OnBackendLoss::Fail(0), OnBackendLoss::Fail(7)] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert_eq!("fail".parse(), Ok(OnBackendLoss::Fail(DEFAULT_SECONDS)));
        for bad in ["", "Hold", "fail:", "fail:-1", "fail:1.5", "hold:3", "fail:3:4"] {
            assert!(bad.parse::<OnBackendLoss>().is_err(), "{bad}");
        }
    }
}
