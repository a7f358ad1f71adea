//! The three sets of flags of the transmission phase.
//!
//! Each is sixteen bits wide on the wire. Bits without a name are kept as they came, so that a
//! peer from the future is passed on, or refused, but never misread.

use core::fmt;
use core::ops::{BitOr, BitOrAssign};

/// Declares a set of flags, with its constants, its operators and its printed form.
macro_rules! flags {
    (
        $(#[$about:meta])*
        $Set:ident { $( $(#[$doc:meta])* $FLAG:ident = $bit:literal; )* }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $Set(u16);

        impl $Set {
            /// No flag at all.
            pub const NONE: Self = Self(0);
            $( $(#[$doc])* pub const $FLAG: Self = Self(1 << $bit); )*

            /// The flags as they are on the wire, unknown ones included.
            pub const fn from_bits(bits: u16) -> Self {
                Self(bits)
            }

            /// The number on the wire.
            pub const fn bits(self) -> u16 {
                self.0
            }

            /// Whether no flag is set.
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// Whether every flag of `other` is set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// The flags set in either; `|` in constants.
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The flags that are not in `other`.
            pub const fn without(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            const NAMES: &'static [(&'static str, u16)] = &[$((stringify!($FLAG), 1 << $bit)),*];
        }

        impl BitOr for $Set {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                self.union(other)
            }
        }

        impl BitOrAssign for $Set {
            fn bitor_assign(&mut self, other: Self) {
                *self = self.union(other);
            }
        }

        impl fmt::Display for $Set {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_flags(f, self.0, Self::NAMES)
            }
        }

        impl fmt::Debug for $Set {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($Set), "({})"), self)
            }
        }
    };
}

flags! {
    /// The flags field of a request (specification: "Command flags").
    CommandFlags {
        /// `NBD_CMD_FLAG_FUA`: answer only when the data written is permanent.
        FUA = 0;
        /// `NBD_CMD_FLAG_NO_HOLE`: allocate what a write zeroes covers.
        NO_HOLE = 1;
        /// `NBD_CMD_FLAG_DF`: answer a read with one content chunk at most.
        DF = 2;
        /// `NBD_CMD_FLAG_REQ_ONE`: block status for one extent only.
        REQ_ONE = 3;
        /// `NBD_CMD_FLAG_FAST_ZERO`: fail a write zeroes unless it beats a plain write.
        FAST_ZERO = 4;
        /// `NBD_CMD_FLAG_PAYLOAD_LEN`: the length of an extended request counts payload.
        PAYLOAD_LEN = 5;
    }
}

flags! {
    /// What an export offers (specification: "Transmission flags"); the kernel driver is given
    /// the same numbers when a device is attached.
    TransmissionFlags {
        /// `NBD_FLAG_HAS_FLAGS`: always set.
        HAS_FLAGS = 0;
        /// `NBD_FLAG_READ_ONLY`: writes will be refused.
        READ_ONLY = 1;
        /// `NBD_FLAG_SEND_FLUSH`: flush is understood.
        SEND_FLUSH = 2;
        /// `NBD_FLAG_SEND_FUA`: the FUA command flag is understood.
        SEND_FUA = 3;
        /// `NBD_FLAG_ROTATIONAL`: seeks are expensive.
        ROTATIONAL = 4;
        /// `NBD_FLAG_SEND_TRIM`: trim is understood.
        SEND_TRIM = 5;
        /// `NBD_FLAG_SEND_WRITE_ZEROES`: write zeroes and its NO_HOLE flag are understood.
        SEND_WRITE_ZEROES = 6;
        /// `NBD_FLAG_SEND_DF`: the DF command flag is understood; needs structured replies.
        SEND_DF = 7;
        /// `NBD_FLAG_CAN_MULTI_CONN`: a flush on one connection covers writes on all of them.
        CAN_MULTI_CONN = 8;
        /// `NBD_FLAG_SEND_RESIZE`: reserved for the experimental resize extension.
        SEND_RESIZE = 9;
        /// `NBD_FLAG_SEND_CACHE`: cache is understood.
        SEND_CACHE = 10;
        /// `NBD_FLAG_SEND_FAST_ZERO`: the FAST_ZERO command flag is understood.
        SEND_FAST_ZERO = 11;
        /// `NBD_FLAG_BLOCK_STATUS_PAYLOAD`: block status may name the contexts it wants.
        BLOCK_STATUS_PAYLOAD = 12;
    }
}

flags! {
    /// The flags field of a reply chunk (specification: "Structured reply flags").
    ReplyFlags {
        /// `NBD_REPLY_FLAG_DONE`: the last chunk of its reply.
        DONE = 0;
    }
}

/// Writes the names joined by `|`, and what has no name as one hexadecimal number.
fn write_flags(f: &mut fmt::Formatter<'_>, bits: u16, names: &[(&str, u16)]) -> fmt::Result {
    if bits == 0 {
        return f.write_str("none");
    }
    let mut rest = bits;
    let mut separator = "";
    for &(name, bit) in names.iter().filter(|(_, bit)| bits & bit != 0) {
        write!(f, "{separator}{name}")?;
        separator = "|";
        rest &= !bit;
    }
    if rest != 0 {
        write!(f, "{separator}{rest:#x}")?;
    }
    Ok(())
}
