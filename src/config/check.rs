//! inside
//! From the raw file to the validated configuration, every error with line and field.
