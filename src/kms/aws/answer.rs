//! outside
//! Reads a refusal off the wire: status, headers and body of an AWS answer become one [`Refusal`].
//! Takes the JSON and XML forms alike; it must never judge, and never keep more of a body than a message.

use serde_json::Value;

/// Only so much of a body is looked at.
const BODY_BOUND: usize = 64 * 1024;

/// An answer that is no success, as far as it could be read.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Refusal {
    pub status: Option<u16>,
    /// The bare error code, without namespace and address.
    pub code: Option<String>,
    /// The provider's text; empty if there was none.
    pub message: String,
    /// `x-amzn-requestid`, which only AWS itself (or what stands for it) sets.
    pub request_id: Option<String>,
    /// What kind of proxy answered in place of AWS, as its headers tell.
    pub proxy: Option<String>,
}

impl Refusal {
    /// Reads an answer. `header` looks a header up by its lower-case name.
    pub fn read<'h>(status: u16, header: impl Fn(&str) -> Option<&'h str>, body: &[u8]) -> Self {
        let body = body.get(..BODY_BOUND).unwrap_or(body);
        let (from_body, message) = match serde_json::from_slice::<Value>(body) {
            Ok(json) => read_json(&json),
            Err(_) => read_xml(&String::from_utf8_lossy(body)),
        };
        let code = header("x-amzn-errortype").map(str::to_owned).or(from_body);
        let request_id = header("x-amzn-requestid").or_else(|| header("x-amz-request-id")).map(str::to_owned);
        let proxy = if request_id.is_some() { None } else { proxy_of(status, &header) };
        Self {
            status: Some(status),
            code: code.map(|c| bare(&c).to_owned()).filter(|c| !c.is_empty()),
            message: without_echo(&message),
            request_id,
            proxy,
        }
    }
}

/// `com.amazonaws.kms#DisabledException:http://...` is `DisabledException`.
fn bare(code: &str) -> &str {
    let before = code.split(':').next().unwrap_or("");
    before.rsplit('#').next().unwrap_or("").trim()
}

fn read_json(json: &Value) -> (Option<String>, String) {
    let inner = json.get("Error").or_else(|| json.get("error")).filter(|e| e.is_object()).unwrap_or(json);
    let text = |names: &[&str]| names.iter().find_map(|n| inner.get(n).and_then(Value::as_str)).map(str::to_owned);
    (text(&["__type", "code", "Code", "errorCode"]), text(&["message", "Message", "errorMessage"]).unwrap_or_default())
}

/// The query protocol's `<Code>` and `<Message>`, or a root element that is itself the code.
fn read_xml(body: &str) -> (Option<String>, String) {
    let message = element(body, "Message").unwrap_or_default();
    let code = element(body, "Code").or_else(|| {
        let root = body.trim_start().strip_prefix('<')?;
        let name: String = root.chars().take_while(char::is_ascii_alphanumeric).collect();
        name.ends_with("Exception").then_some(name)
    });
    (code, message)
}

fn element(body: &str, name: &str) -> Option<String> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim().to_owned())
}

/// A signature refusal may echo the canonical request, session token included: that part is cut off.
fn without_echo(message: &str) -> String {
    let lower = message.to_ascii_lowercase();
    let cut = ["the canonical string", "the string-to-sign", "x-amz-security-token"].iter().filter_map(|w| lower.find(w)).min();
    cut.and_then(|at| message.get(..at)).unwrap_or(message).trim().to_owned()
}

/// Headers by which a forward proxy or a captive portal gives itself away.
fn proxy_of<'h>(status: u16, header: &impl Fn(&str) -> Option<&'h str>) -> Option<String> {
    if status == 407 || header("proxy-authenticate").is_some() {
        return Some("proxy authentication".to_owned());
    }
    let named = ["x-squid-error", "via", "x-bluecoat-via", "x-zscaler-error", "proxy-connection", "proxy-status"];
    if named.iter().any(|n| header(n).is_some()) {
        return Some(header("server").or_else(|| header("via")).unwrap_or("proxy").chars().take(60).collect());
    }
    let server = header("server").unwrap_or("").to_ascii_lowercase();
    let known = ["squid", "zscaler", "bluecoat", "envoy", "haproxy", "mcafee", "fortigate", "websense", "tinyproxy"];
    known.iter().any(|k| server.contains(k)).then(|| server.chars().take(60).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> Refusal {
        Refusal::read(status, |name| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v), body.as_bytes())
    }

    #[test]
    fn the_code_is_found_in_every_place_where_aws_puts_it() {
        for (headers, body) in [
            (vec![], r#"{"__type":"DisabledException","message":"m"}"#),
            (vec![], r#"{"__type":"com.amazonaws.kms#DisabledException","Message":"m"}"#),
            (vec![("x-amzn-errortype", "DisabledException:http://internal.amazon.com/coral/com.amazonaws.kms/")], r#"{"message":"m"}"#),
            (vec![("x-amzn-errortype", "com.amazonaws.kms#DisabledException:http://a/")], r#"{"message":"m"}"#),
            (vec![], r#"{"code":"DisabledException","errorMessage":"m"}"#),
            (vec![], "<ErrorResponse><Error><Code>DisabledException</Code><Message>m</Message></Error></ErrorResponse>"),
            (vec![], "<DisabledException>\n <Message>m</Message>\n</DisabledException>"),
        ] {
            let seen = read(400, &headers, body);
            assert_eq!((seen.code.as_deref(), seen.message.as_str()), (Some("DisabledException"), "m"), "{body}");
        }
    }

    #[test]
    fn a_page_of_html_has_no_code_and_leaks_no_text() {
        let seen = read(503, &[], "<html><body>Service Unavailable</body></html>");
        assert_eq!((seen.code, seen.message.as_str(), seen.proxy), (None, "", None));
    }

    #[test]
    fn an_echoed_session_token_is_cut_off() {
        let body = r#"{"__type":"InvalidSignatureException","message":"The signature does not match.\n\nThe Canonical String for this request should have been\n'POST\nx-amz-security-token:SECRET'"}"#;
        assert_eq!(read(400, &[], body).message, "The signature does not match.");
    }

    #[test]
    fn a_proxy_is_named_unless_aws_itself_answered_through_it() {
        assert_eq!(read(503, &[("server", "squid/5.7"), ("via", "1.1 p")], "").proxy.as_deref(), Some("squid/5.7"));
        assert_eq!(read(403, &[("server", "Zscaler/6.2")], "").proxy.as_deref(), Some("zscaler/6.2"));
        assert_eq!(read(503, &[("via", "1.1 p"), ("x-amzn-requestid", "r")], "").proxy, None);
        assert!(read(407, &[], "").proxy.is_some());
    }

    proptest::proptest! {
        #[test]
        fn no_body_makes_the_reader_panic(body in "\\PC{0,400}", status in 0u16..1000) {
            let _ = read(status, &[("x-amzn-errortype", "#:#")], &body);
        }
    }
}
