//! outside
//! Resolves secret references; the value never reaches a log or an error.
