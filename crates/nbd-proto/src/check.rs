//! From a request to a command: every rule about requests, once.

use crate::payload::StatusFilter;
use crate::{
    Command, CommandFlags, CommandType, ExtendedRequest, Rejection, Request, RequestRules,
    TransmissionFlags,
};

impl Request {
    /// Turns the request into a command that satisfies the export's `rules`.
    ///
    /// Either way, [`payload_len`](Self::payload_len) bytes of data follow on the wire.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] to answer with: the first rule that the request breaks.
    pub fn check(&self, rules: &RequestRules) -> Result<Command, Rejection> {
        let Self { flags, command, cookie: _, offset, length } = *self;
        Unchecked { flags, command, offset, length: u64::from(length) }.check(rules)
    }
}

impl ExtendedRequest {
    /// Turns the request into a command that satisfies the export's `rules`.
    ///
    /// Either way, [`payload_len`](Self::payload_len) bytes of data follow on the wire.
    ///
    /// # Errors
    ///
    /// The [`Rejection`] to answer with: the first rule that the request breaks.
    pub fn check(&self, rules: &RequestRules) -> Result<Command, Rejection> {
        let Self { mut flags, command, cookie: _, offset, length } = *self;
        // To any command but a write the flag means data that it has no use for, so there it stays
        // and is rejected with the odd ones.
        if command == CommandType::WRITE {
            flags = flags.without(CommandFlags::PAYLOAD_LEN);
        }
        Unchecked { flags, command, offset, length }.check(rules)
    }

    /// Whether the payload says which metadata contexts the request is about: then
    /// [`check_filtered`](Self::check_filtered) takes the place of [`check`](Self::check).
    pub const fn is_filtered_status(&self) -> bool {
        matches!(self.command, CommandType::BLOCK_STATUS)
            && self.flags.contains(CommandFlags::PAYLOAD_LEN)
    }

    /// Turns a block status request with a payload into a command. The caller looks up the contexts
    /// of the payload.
    ///
    /// # Errors
    ///
    /// As for [`check`](Self::check); also if `rules` do not offer block status with a payload.
    pub fn check_filtered(
        &self,
        filter: &StatusFilter<'_>,
        rules: &RequestRules,
    ) -> Result<Command, Rejection> {
        let Self { flags, command, offset, .. } = *self;
        if !rules.flags.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD) {
            let flags = CommandFlags::PAYLOAD_LEN;
            return Err(Rejection::InvalidFlags { command, flags });
        }
        let flags = flags.without(CommandFlags::PAYLOAD_LEN);
        Unchecked { flags, command, offset, length: filter.effect_length() }.check(rules)
    }
}

/// What both kinds of request have in common.
#[derive(Clone, Copy)]
struct Unchecked {
    flags: CommandFlags,
    command: CommandType,
    offset: u64,
    length: u64,
}

impl Unchecked {
    fn check(self, rules: &RequestRules) -> Result<Command, Rejection> {
        let Self { flags, command, offset, length } = self;
        // A disconnect cannot be rejected, as it has no reply: the client goes whatever the
        // rest of its request says.
        if command == CommandType::DISC {
            return Ok(Command::Disconnect);
        }
        self.check_offered(rules)?;
        self.check_flags(rules)?;
        self.check_range(rules)?;

        let fua = flags.contains(CommandFlags::FUA);
        let no_hole = flags.contains(CommandFlags::NO_HOLE);
        let fast_only = flags.contains(CommandFlags::FAST_ZERO);
        Ok(match command {
            CommandType::READ => Command::Read { offset, length: self.data_len(rules)? },
            CommandType::WRITE => Command::Write { offset, length: self.data_len(rules)?, fua },
            CommandType::FLUSH => Command::Flush,
            CommandType::TRIM => Command::Trim { offset, length, fua },
            CommandType::CACHE => Command::Cache { offset, length },
            CommandType::WRITE_ZEROES => {
                Command::WriteZeroes { offset, length, fua, no_hole, fast_only }
            }
            CommandType::BLOCK_STATUS => {
                Command::BlockStatus { offset, length, one: flags.contains(CommandFlags::REQ_ONE) }
            }
            _ => return Err(Rejection::Unsupported(command)),
        })
    }

    /// A write to a read-only export is refused as such even if the export does not offer the
    /// command at all: EPERM tells a client more than EINVAL.
    fn check_offered(self, rules: &RequestRules) -> Result<(), Rejection> {
        if self.command.is_write() && rules.flags.contains(TransmissionFlags::READ_ONLY) {
            return Err(Rejection::ReadOnly(self.command));
        }
        let needs = match self.command {
            CommandType::READ | CommandType::WRITE => TransmissionFlags::NONE,
            CommandType::FLUSH => TransmissionFlags::SEND_FLUSH,
            CommandType::TRIM => TransmissionFlags::SEND_TRIM,
            CommandType::CACHE => TransmissionFlags::SEND_CACHE,
            CommandType::WRITE_ZEROES => TransmissionFlags::SEND_WRITE_ZEROES,
            CommandType::BLOCK_STATUS if rules.block_status => TransmissionFlags::NONE,
            _ => return Err(Rejection::Unsupported(self.command)),
        };
        if !rules.flags.contains(needs) {
            return Err(Rejection::Unsupported(self.command));
        }
        Ok(())
    }

    /// FUA, where offered, is in order with every command: clients are known to set it on reads.
    fn check_flags(self, rules: &RequestRules) -> Result<(), Rejection> {
        let offered = |by, flag| {
            if rules.flags.contains(by) { flag } else { CommandFlags::NONE }
        };
        let fua = offered(TransmissionFlags::SEND_FUA, CommandFlags::FUA);
        let own = match self.command {
            CommandType::READ => offered(TransmissionFlags::SEND_DF, CommandFlags::DF),
            CommandType::WRITE_ZEROES => {
                CommandFlags::NO_HOLE
                    | offered(TransmissionFlags::SEND_FAST_ZERO, CommandFlags::FAST_ZERO)
            }
            CommandType::BLOCK_STATUS => CommandFlags::REQ_ONE,
            _ => CommandFlags::NONE,
        };
        let flags = self.flags.without(fua | own);
        if !flags.is_empty() {
            return Err(Rejection::InvalidFlags { command: self.command, flags });
        }
        Ok(())
    }

    fn check_range(self, rules: &RequestRules) -> Result<(), Rejection> {
        let Self { command, offset, length, .. } = self;
        if command == CommandType::FLUSH {
            if offset != 0 || length != 0 {
                return Err(Rejection::FlushRange { offset, length });
            }
            return Ok(());
        }
        if command == CommandType::BLOCK_STATUS && length == 0 {
            return Err(Rejection::EmptyRange(command));
        }
        if !rules.holds(offset, length) {
            return Err(Rejection::BeyondEnd { command, offset, length, size: rules.size });
        }
        if !rules.aligns(offset, length) {
            let block_size = rules.min_block_size;
            return Err(Rejection::Misaligned { command, offset, length, block_size });
        }
        Ok(())
    }

    /// The length of a command that moves data, which has to fit into the maximum payload.
    fn data_len(self, rules: &RequestRules) -> Result<u32, Rejection> {
        let Self { command, length, .. } = self;
        match u32::try_from(length) {
            Ok(data) if data <= rules.max_payload => Ok(data),
            _ => Err(Rejection::TooLong { command, length, max: rules.max_payload }),
        }
    }
}
