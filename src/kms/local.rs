//! outside
//! The embedded software KMS: a first run and the tests need no cloud.
