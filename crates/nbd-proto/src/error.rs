//! The error numbers of the protocol, and the one map between them and errno.

use core::fmt;

/// The error field of a reply (specification: "Error values").
///
/// The numbers look like Linux's errno, but only the ones named here may be sent. A number that
/// a peer sends all the same is kept as it came.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NbdError(
    /// The number on the wire.
    pub u32,
);

impl NbdError {
    /// No error: the request was carried out.
    pub const SUCCESS: Self = Self(0);
    /// `NBD_EPERM`: the export does not allow it.
    pub const EPERM: Self = Self(1);
    /// `NBD_EIO`: the storage failed.
    pub const EIO: Self = Self(5);
    /// `NBD_ENOMEM`: the server is out of memory; to be avoided where possible.
    pub const ENOMEM: Self = Self(12);
    /// `NBD_EINVAL`: the request makes no sense here.
    pub const EINVAL: Self = Self(22);
    /// `NBD_ENOSPC`: there is no room for the data.
    pub const ENOSPC: Self = Self(28);
    /// `NBD_EOVERFLOW`: too long to be answered in one piece; a shorter request may succeed.
    pub const EOVERFLOW: Self = Self(75);
    /// `NBD_ENOTSUP`: zeroing would not have been fast. Meant for FAST_ZERO requests only.
    pub const ENOTSUP: Self = Self(95);
    /// `NBD_ESHUTDOWN`: the server is about to go; the client ought to disconnect.
    pub const ESHUTDOWN: Self = Self(108);

    /// The error that tells a client of a failed system call.
    ///
    /// `errno` is a Linux error number. Whatever the protocol has no word for is
    /// [`EIO`](Self::EIO), and so is 0: a failure that lost its number is still a failure.
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            linux::EPERM | linux::EACCES | linux::EROFS => Self::EPERM,
            linux::ENOMEM => Self::ENOMEM,
            linux::EINVAL => Self::EINVAL,
            linux::ENOSPC | linux::EDQUOT | linux::EFBIG => Self::ENOSPC,
            linux::EOVERFLOW => Self::EOVERFLOW,
            linux::EOPNOTSUPP => Self::ENOTSUP,
            linux::ESHUTDOWN => Self::ESHUTDOWN,
            _ => Self::EIO,
        }
    }

    /// The Linux error number for an error that a server sent; 0 for success.
    ///
    /// Numbers that a server may not send count as `EINVAL`, as the specification asks of clients.
    pub const fn to_errno(self) -> i32 {
        match self {
            Self::SUCCESS => 0,
            Self::EPERM => linux::EPERM,
            Self::EIO => linux::EIO,
            Self::ENOMEM => linux::ENOMEM,
            Self::ENOSPC => linux::ENOSPC,
            Self::EOVERFLOW => linux::EOVERFLOW,
            Self::ENOTSUP => linux::EOPNOTSUPP,
            Self::ESHUTDOWN => linux::ESHUTDOWN,
            _ => linux::EINVAL,
        }
    }

    /// Whether this is [`SUCCESS`](Self::SUCCESS).
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// Success as `Ok`, anything else as `Err`, for use with `?`.
    ///
    /// # Errors
    ///
    /// The error itself, unless it is [`SUCCESS`](Self::SUCCESS).
    pub const fn into_result(self) -> Result<(), Self> {
        if self.is_success() { Ok(()) } else { Err(self) }
    }

    const fn name_and_meaning(self) -> Option<&'static str> {
        Some(match self {
            Self::SUCCESS => "success",
            Self::EPERM => "EPERM (operation not permitted)",
            Self::EIO => "EIO (input/output error)",
            Self::ENOMEM => "ENOMEM (out of memory)",
            Self::EINVAL => "EINVAL (invalid request)",
            Self::ENOSPC => "ENOSPC (no space left on device)",
            Self::EOVERFLOW => "EOVERFLOW (request too long)",
            Self::ENOTSUP => "ENOTSUP (operation not supported)",
            Self::ESHUTDOWN => "ESHUTDOWN (server is shutting down)",
            _ => return None,
        })
    }
}

impl fmt::Display for NbdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name_and_meaning() {
            Some(text) => f.pad(text),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for NbdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NbdError({self})")
    }
}

impl core::error::Error for NbdError {}

/// The error numbers of Linux on every architecture that numbers them the generic way. Written
/// out because this crate has no libc underneath; MIPS, SPARC and PA-RISC differ above 34.
mod linux {
    pub(super) const EPERM: i32 = 1;
    pub(super) const EIO: i32 = 5;
    pub(super) const ENOMEM: i32 = 12;
    pub(super) const EACCES: i32 = 13;
    pub(super) const EINVAL: i32 = 22;
    pub(super) const EFBIG: i32 = 27;
    pub(super) const ENOSPC: i32 = 28;
    pub(super) const EROFS: i32 = 30;
    pub(super) const EOVERFLOW: i32 = 75;
    pub(super) const EOPNOTSUPP: i32 = 95;
    pub(super) const ESHUTDOWN: i32 = 108;
    pub(super) const EDQUOT: i32 = 122;
}
