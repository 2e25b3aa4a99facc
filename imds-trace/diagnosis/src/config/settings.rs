//! How might an instance's metadata options be set? What `--what-if` and `--expect works-at:` ask about.

use super::Error;

/// The hop limits that EC2 takes.
const HOP_LIMITS: std::ops::RangeInclusive<u8> = 1..=64;

/// Metadata options of an instance. What is not named stays as it was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `HttpTokens=required`: whoever asks without a token is answered with 401.
    pub tokens_required: bool,
    /// `HttpPutResponseHopLimit`: the TTL with which the answer to a token request leaves IMDS.
    pub hop_limit: Option<u8>,
}

impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tokens = self.tokens_required.then(|| "tokens=required".to_owned());
        let hop_limit = self.hop_limit.map(|limit| format!("hop-limit={limit}"));
        let parts: Vec<String> = [tokens, hop_limit].into_iter().flatten().collect();
        f.write_str(&parts.join(","))
    }
}

/// Reads the settings that stand behind this option: `tokens=required`, `hop-limit=N`, or both with a comma between them.
pub fn settings(option: &'static str, text: &str) -> Result<Settings, Error> {
    let wrong = || Error::Settings(option, text.to_owned());
    let mut settings = Settings::default();
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("tokens", "required")) if !settings.tokens_required => settings.tokens_required = true,
            Some(("hop-limit", limit)) if settings.hop_limit.is_none() => {
                let limit = limit.parse().ok().filter(|limit| HOP_LIMITS.contains(limit));
                settings.hop_limit = Some(limit.ok_or_else(wrong)?);
            }
            _ => return Err(wrong()),
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_those_that_ec2_takes() {
        for (text, tokens_required, hop_limit) in [
            ("tokens=required", true, None),
            ("hop-limit=1", false, Some(1)),
            ("hop-limit=64,tokens=required", true, Some(64)),
        ] {
            assert_eq!(settings("--what-if", text), Ok(Settings { tokens_required, hop_limit }), "{text}");
        }
        assert_eq!(
            settings("--what-if", "hop-limit=2,tokens=required").unwrap().to_string(),
            "tokens=required,hop-limit=2"
        );
        for wrong in [
            "",
            "tokens",
            "tokens=optional",
            "hop-limit=0",
            "hop-limit=65",
            "hop-limit=-1",
            "hop-limit=1,hop-limit=2",
            "tokens=required,",
            "tokens=required hop-limit=1",
        ] {
            assert_eq!(settings("--what-if", wrong), Err(Error::Settings("--what-if", wrong.into())), "{wrong}");
        }
    }
}
