//! outside
//! Notices as signed webhooks (Standard Webhooks).
