//! outside
//! Notices to PagerDuty Events v2.
