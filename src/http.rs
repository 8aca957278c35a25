//! outside
//! The doors: axum router, listeners, roles.
