//! outside
//! AWS KMS through aws-sdk-kms: translates calls and answers, decides nothing.
