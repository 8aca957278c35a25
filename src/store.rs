//! outside
//! Where state and journal are kept.

pub mod lease_keys;
pub mod spool;
pub mod sqlite;
