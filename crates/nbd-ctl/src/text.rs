//! Values as text for people.

pub(crate) mod style;
pub(crate) mod table;
pub(crate) mod wall_clock;
