//! outside
//! Google Cloud KMS through google-cloud-kms-v1: translates calls and answers, decides nothing.
