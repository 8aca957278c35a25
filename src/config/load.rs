//! outside
//! Reads the configuration file and the files that it names.
