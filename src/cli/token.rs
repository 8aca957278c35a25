//! outside
//! Draws API tokens. The token is shown once and kept nowhere; the configuration holds its digest.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use zeroize::Zeroizing;

use super::exit::CliError;
use super::show::Shown;
use crate::words::Role;

/// Makes a token findable by secret scanners.
const PREFIX: &str = "cmekw_";

/// A fresh token of 256 bits.
///
/// # Errors
/// If the name has not the form of a name, or the system gives no random bytes.
pub fn new(name: &str, role: Role) -> Result<Shown, CliError> {
    let shaped = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(shaped) {
        return Err(CliError::Usage("the name of a token has 1 to 128 letters, digits or `._-`".to_owned()));
    }
    let mut bytes = Zeroizing::new([0_u8; 32]);
    aws_lc_rs::rand::fill(bytes.as_mut()).map_err(|_| CliError::Random)?;
    let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes.as_ref()));
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let sha256: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("{{ name = \"{name}\", role = \"{role}\", sha256 = \"{sha256}\" }}");
    let text = format!(
        "token (shown only this once):\n  {token}\n\nfor the configuration, in the list `tokens` of [server]:\n  tokens = [{line}]\n"
    );
    let value = json!({ "name": name, "role": role, "token": token, "sha256": sha256, "config_line": format!("tokens = [{line}]") });
    Ok(Shown::good(value, text))
}
