//! outside
//! Notices to Alertmanager's v2 API.
