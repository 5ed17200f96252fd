//! By what a receiver knows that a webhook is ours.

use std::fmt::{self, Write};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::config::{Config, ConfigError};

/// Bytes of a secret.
const LENGTH: std::ops::RangeInclusive<usize> = 16..=1024;

/// The secret that signs webhooks. Shows itself to nobody who prints it.
pub struct WebhookSecret(Hmac<Sha256>);

impl WebhookSecret {
    /// The environment's variable. There is no flag: a command line is everybody's to read.
    const VARIABLE: &str = "PENTIMENTO_WEBHOOK_SECRET";

    /// The secret of the environment, or else of the file that the configuration names.
    ///
    /// # Errors
    /// [`ConfigError`], where it is too short or too long.
    pub fn load(config: &Config) -> Result<Option<Self>, ConfigError> {
        if let Some(value) = std::env::var_os(Self::VARIABLE) {
            let secret = value.to_str().ok_or_else(|| "is not UTF-8".to_owned()).and_then(Self::new);
            return secret.map(Some).map_err(|reason| ConfigError::Value { key: Self::VARIABLE, reason });
        }
        let path = &config.webhook_secret_file;
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Io { path: path.clone(), source })?;
        Self::new(&text).map(Some).map_err(|reason| ConfigError::File { path: path.clone(), reason })
    }

    /// Of a text; spaces and line ends around it do not count.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let secret = text.trim().as_bytes();
        if !LENGTH.contains(&secret.len()) {
            let (least, most) = (LENGTH.start(), LENGTH.end());
            return Err(format!("a secret must be {least} to {most} bytes long, not {}", secret.len()));
        }
        Hmac::new_from_slice(secret).map(Self).map_err(|error| error.to_string())
    }

    /// What the signature's header says of a body that is sent at `time`, in Unix seconds: the time is signed too, so
    /// that an old notice cannot be sent again as a new one.
    pub fn header(&self, time: u64, body: &[u8]) -> String {
        let mac = self.0.clone().chain_update(format!("{time}.")).chain_update(body);
        let mut header = format!("t={time},v1=");
        for byte in mac.finalize().into_bytes() {
            // Writing into a string does not fail.
            let _ = write!(header, "{byte:02x}");
        }
        header
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("WebhookSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_hmac_of_time_and_body() {
        // printf '1700000000.{"id":"job_1"}' | openssl dgst -sha256 -hmac 0123456789abcdef
        let secret = WebhookSecret::new("0123456789abcdef\n").unwrap();
        let header = secret.header(1_700_000_000, br#"{"id":"job_1"}"#);
        assert_eq!(
            header,
            "t=1700000000,v1=81363d6d79af2b34656494be588b899a9417fde60b7c450e8de6b1e1aa469335"
        );
        assert!(!format!("{secret:?}").contains("0123"));
    }

    #[test]
    fn the_mac_is_that_of_rfc_4231() {
        // Test case 6: a key longer than a block.
        let secret = WebhookSecret(Hmac::new_from_slice(&[0xaa; 131]).unwrap());
        let mac = secret.0.chain_update("Test Using Larger Than Block-Size Key - Hash Key First").finalize();
        assert_eq!(mac.into_bytes()[..8], [0x60, 0xe4, 0x31, 0x59, 0x1e, 0xe0, 0xb6, 0x7f]);
    }

    #[test]
    fn a_secret_that_can_be_guessed_is_refused() {
        for text in ["", "  \n", "short", &"a".repeat(1025)] {
            assert!(WebhookSecret::new(text).unwrap_err().contains("16 to 1024"), "{text}");
        }
    }
}
