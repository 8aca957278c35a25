//! inside
//! The file as written: one struct per table, unknown fields refused.
