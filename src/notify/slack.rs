//! outside
//! Notices to a Slack incoming webhook.
