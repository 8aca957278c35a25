//! outside
//! Notices by e-mail through lettre.
