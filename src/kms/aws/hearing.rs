//! outside
//! Listens in on one SDK call: request id, the server's clock, and a bound on the answer's size.
//! It changes nothing else about a call.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_kms::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_smithy_types::body::SdkBody;

use crate::time::Wall;

/// No answer of KMS or STS comes near this size.
const ANSWER_BOUND: usize = 1024 * 1024;

/// What was heard of the last answer.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub request_id: Option<Box<str>>,
    pub provider_time: Option<Wall>,
}

/// The ear for one call; clones hear into the same place.
#[derive(Clone, Debug, Default)]
pub struct Hearing(Arc<Mutex<Heard>>);

impl Hearing {
    pub fn heard(&self) -> Heard {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Intercept for Hearing {
    fn name(&self) -> &'static str {
        "Hearing"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), aws_sdk_kms::error::BoxError> {
        let response = context.response_mut();
        let headers = response.headers();
        let heard = Heard {
            request_id: headers.get("x-amzn-requestid").map(|id| id.chars().take(100).collect::<String>().into()),
            provider_time: headers.get("date").and_then(http_date),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = heard;
        let body = std::mem::replace(response.body_mut(), SdkBody::taken());
        *response.body_mut() = SdkBody::from_body_1_x(http_body_util::Limited::new(body, ANSWER_BOUND));
        Ok(())
    }
}

/// The `Date` header's form, `Wed, 25 Nov 2026 10:00:00 GMT`.
fn http_date(text: &str) -> Option<Wall> {
    let when = aws_smithy_types::DateTime::from_str(text, aws_smithy_types::date_time::Format::HttpDate).ok()?;
    when.to_millis().ok().map(Wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_header_is_read_to_the_second_and_rubbish_is_no_time() {
        assert_eq!(http_date("Thu, 01 Jan 1970 00:01:00 GMT"), Some(Wall(60_000)));
        assert_eq!(http_date("yesterday"), None);
    }
}
