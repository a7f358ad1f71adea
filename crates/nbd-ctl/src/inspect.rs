//! What can be seen of devices without changing them.
//!
//! | module | idea |
//! |---|---|
//! | [`status`] | `status`: what there is of each device |
//! | [`listed`] | a device as all these know it |
//! | [`list`] | `list`: devices in columns |
//! | [`why`] | `why`: who waits for what, and the way out |
//! | [`top`] | `top`: devices as they are at work, on a terminal |
//! | [`trace`] | `trace`: requests that were executed |
//! | [`events`] | `events`: what holders log with an event's name, as it happens |
//! | [`metrics`] | `metrics`: numbers for monitoring |
//! | [`render`] | a status as text |

pub(crate) mod events;
pub(crate) mod list;
pub(crate) mod listed;
pub(crate) mod metrics;
pub(crate) mod render;
pub(crate) mod status;
pub(crate) mod top;
pub(crate) mod trace;
pub(crate) mod why;
