//! outside
//! The embedded store: SQLite, one writer, one transaction a turn.
