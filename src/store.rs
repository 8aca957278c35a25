//! outside
//! Where state and journal are kept.

pub mod spool;
pub mod sqlite;
