//! What a plugin can do with a handle: asked once, as nbdkit does, and emulated where it cannot.

use std::ffi::c_int;

use nbd_backend::{Capabilities, Geometry};

use crate::abi::{
    CACHE_EMULATE, CACHE_NATIVE, CACHE_NONE, FUA_EMULATE, FUA_NATIVE, FUA_NONE, NbdkitPlugin,
};
use crate::error::PluginError;
use crate::handle::Handle;

/// The smallest block that the kernel knows.
const MIN_BLOCK_BYTES: u32 = 512;
/// The largest block that the kernel's NBD driver knows.
const MAX_BLOCK_BYTES: u32 = 4096;
/// Largest read or write that plugins get, in bytes: nbdkit's own limit.
const MAX_REQUEST_BYTES: u32 = 64 << 20;
/// Largest minimum block of the interface, in bytes.
const MAX_MINIMUM_BYTES: u32 = 64 << 10;
/// Limits of the preferred block, in bytes.
const PREFERRED_BYTES: std::ops::RangeInclusive<u32> = 512..=32 << 20;

/// What was asked for, and what follows from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    /// Of the plugin, in bytes. The device may be shorter.
    pub(crate) size: u64,
    pub(crate) geometry: Geometry,
    /// Largest read or write, in bytes: a multiple of the plugin's smallest block.
    pub(crate) max_request: u32,
    /// FUA is passed on; otherwise a flush follows.
    pub(crate) fua_is_native: bool,
    /// `zero` is called; otherwise zeroes are written.
    pub(crate) zero_is_native: bool,
    /// `cache` is called; otherwise what is to be cached is read.
    pub(crate) cache_is_native: bool,
    /// `extents` is called; otherwise everything is allocated.
    pub(crate) has_extents: bool,
}

impl Offer {
    pub(crate) fn ask(handle: &Handle) -> Result<Self, PluginError> {
        let size = size(handle)?;
        let (minimum, max_request) = block_size(handle)?;
        let block_size = minimum.max(MIN_BLOCK_BYTES);
        let usable = size - size % u64::from(block_size);
        if usable == 0 {
            return Err(PluginError::Small { size, block: block_size });
        }
        let is =
            |callback, function: fn(&NbdkitPlugin) -> _, otherwise: fn(&NbdkitPlugin) -> bool| {
                handle
                    .ask(callback, function, c_int::from(handle.has(otherwise)))
                    .map(|answer| answer != 0)
            };
        let has_pwrite: fn(&NbdkitPlugin) -> bool = |t| t.pwrite.is_some() || t.pwrite_v1.is_some();
        let has_flush: fn(&NbdkitPlugin) -> bool = |t| t.flush.is_some() || t.flush_v1.is_some();
        let has_trim: fn(&NbdkitPlugin) -> bool = |t| t.trim.is_some() || t.trim_v1.is_some();
        let has_zero: fn(&NbdkitPlugin) -> bool = |t| t.zero.is_some() || t.zero_v1.is_some();
        let can_write = is("can_write", |t| t.can_write, has_pwrite)?;
        let flush = is("can_flush", |t| t.can_flush, has_flush)?;
        let rotational = is("is_rotational", |t| t.is_rotational, |_| false)?;
        let extents = is("can_extents", |t| t.can_extents, |t| t.extents.is_some())?;
        let cache = if handle.has(|t| t.cache.is_some()) { CACHE_NATIVE } else { CACHE_NONE };
        let cache = handle.ask("can_cache", |t| t.can_cache, cache)?;
        check("can_cache", cache, CACHE_NONE..=CACHE_NATIVE)?;
        let (mut trim, mut zero, mut fast_zero, mut fua) = (false, false, false, FUA_NONE);
        // As there: a handle that cannot write is not asked about writing.
        if can_write {
            trim = is("can_trim", |t| t.can_trim, has_trim)?;
            zero = is("can_zero", |t| t.can_zero, has_zero)?;
            // Without its own zero the plugin fails at once, which is what fast zeroing asks for.
            let is_quick_to_fail = !zero || !handle.has(|t| t.zero.is_some());
            fast_zero =
                handle.ask("can_fast_zero", |t| t.can_fast_zero, c_int::from(is_quick_to_fail))?
                    != 0;
            fua = ask_fua(handle, has_flush)?;
        }
        let capabilities = Capabilities {
            read_only: !can_write,
            flush,
            fua: fua != FUA_NONE,
            volatile: false,
            trim,
            write_zeroes: can_write,
            fast_zero,
            cache: cache != CACHE_NONE,
            // As there: a plugin that cannot tell says that all is allocated.
            extents: true,
            unaligned: minimum == 1,
            rotational,
        };
        Ok(Self {
            size,
            geometry: Geometry { size: usable, block_size, capabilities },
            max_request,
            fua_is_native: fua == FUA_NATIVE,
            zero_is_native: zero,
            cache_is_native: cache != CACHE_EMULATE,
            has_extents: extents,
        })
    }
}

/// Version 1 of the interface has no flags, so FUA cannot be passed on.
fn ask_fua(handle: &Handle, has_flush: fn(&NbdkitPlugin) -> bool) -> Result<c_int, PluginError> {
    let otherwise = if handle.has(has_flush) { FUA_EMULATE } else { FUA_NONE };
    let fua = handle.ask("can_fua", |t| t.can_fua, otherwise)?;
    check("can_fua", fua, FUA_NONE..=FUA_NATIVE)?;
    let is_first = handle.has(|t| t.api_version < 2);
    Ok(if is_first { fua.min(FUA_EMULATE) } else { fua })
}

fn check(
    callback: &'static str,
    value: c_int,
    range: std::ops::RangeInclusive<c_int>,
) -> Result<(), PluginError> {
    if range.contains(&value) {
        return Ok(());
    }
    let value = value.into();
    Err(PluginError::Odd { callback, value, why: "is none of the constants of the interface" })
}

fn size(handle: &Handle) -> Result<u64, PluginError> {
    let size = handle.size()?;
    u64::try_from(size).map_err(|_| PluginError::Odd {
        callback: "get_size",
        value: size,
        why: "is negative",
    })
}

/// The smallest block, and the largest request that is a multiple of it.
fn block_size(handle: &Handle) -> Result<(u32, u32), PluginError> {
    let sizes @ [minimum, preferred, maximum] = handle.block_size()?;
    if sizes == [0; 3] {
        return Ok((1, MAX_REQUEST_BYTES));
    }
    let why = if !(1..=MAX_MINIMUM_BYTES).contains(&minimum) || !minimum.is_power_of_two() {
        "the first must be a power of two from 1 to 64K"
    } else if !PREFERRED_BYTES.contains(&preferred) || !preferred.is_power_of_two() {
        "the second must be a power of two from 512 to 32M"
    } else if maximum != u32::MAX && !maximum.is_multiple_of(minimum) {
        "the third must be a multiple of the first, or -1"
    } else if minimum > preferred || preferred > maximum {
        "they must not become smaller"
    } else if minimum > MAX_BLOCK_BYTES {
        "the kernel's NBD driver knows blocks up to 4096 bytes only: put nbdkit's filter in front of it \
         with exec:nbdkit --filter=blocksize"
    } else {
        return Ok((minimum, maximum.min(MAX_REQUEST_BYTES)));
    };
    Err(PluginError::BlockSize { minimum, preferred, maximum, why })
}
