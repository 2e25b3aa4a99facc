//! Are the tokens that people have most masked as their providers document them, wherever they stand? Independent of our own table.

use super::sweep::everywhere;
use super::tests::{Random, survives};
use super::{mask, mask_argv};

const ALNUM: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const URL: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
const LOWER: &str = "abcdefghijklmnopqrstuvwxyz0123456789";
const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
const HEX: &str = "0123456789abcdef";
const BASE32: &str = "abcdefghijklmnopqrstuvwxyz234567";
const BASE64: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A prefix, what stands behind it and how much of that, and a suffix.
const FORMATS: &[(&str, &str, usize, &str)] = &[
    ("AIza", URL, 35, ""),
    ("ya29.", URL, 60, ""),
    ("GOCSPX-", URL, 28, ""),
    ("sk_live_", ALNUM, 24, ""),
    ("rk_live_", ALNUM, 99, ""),
    ("whsec_", ALNUM, 32, ""),
    ("bkua_", HEX, 40, ""),
    ("dckr_pat_", URL, 27, ""),
    ("dckr_oat_", URL, 32, ""),
    ("hf_", ALNUM, 34, ""),
    ("dop_v1_", HEX, 64, ""),
    ("dapi", HEX, 32, "-2"),
    ("dapi", HEX, 32, ""),
    ("abC8Q~", URL, 34, ""),
    ("", BASE32, 52, ""),
    ("", BASE64, 86, "=="),
    ("pul-", HEX, 40, ""),
    ("npm_", ALNUM, 36, ""),
    ("pypi-AgEIcHlwaS5vcmc", URL, 150, ""),
    ("pypi-", URL, 60, ""),
    ("glpat-", URL, 20, ""),
    ("glpat-", URL, 27, ".01.abcdefghi"),
    ("glrt-", URL, 20, ""),
    ("glcbt-64_", URL, 20, ""),
    ("gldt-", URL, 20, ""),
    ("ghp_", ALNUM, 36, ""),
    ("ghs_", ALNUM, 36, ""),
    ("gho_", ALNUM, 36, ""),
    ("github_pat_11ABCDEFG0", ALNUM, 72, ""),
    ("xoxb-123456789012-1234567890123-", ALNUM, 24, ""),
    ("xapp-1-A0123456789-1234567890123-", HEX, 64, ""),
    ("https://hooks.slack.com/services/T01234567/B01234567/", ALNUM, 24, ""),
    ("https://discord.com/api/webhooks/123456789012345678/", URL, 68, ""),
    ("SG.", URL, 22, ".abcdefghijABCDEFGHIJ0123456789abcdefghijklm"),
    ("SK", HEX, 32, ""),
    ("shpat_", HEX, 32, ""),
    ("shpss_", HEX, 32, ""),
    ("hvs.", URL, 90, ""),
    ("hvs.", ALNUM, 24, ""),
    ("AGE-SECRET-KEY-1", "023456789ACDEFGHJKLMNPQRSTUVWXYZ", 58, ""),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.", URL, 43, ""),
    ("abcdefghijklmn.atlasv1.", ALNUM, 67, ""),
    ("lin_api_", ALNUM, 40, ""),
    ("sk-proj-", URL, 74, ""),
    ("sk-", ALNUM, 48, ""),
    ("sk-ant-api03-", URL, 93, "AA"),
    ("sk-ant-oat01-", URL, 93, "AA"),
    ("dp.pt.", ALNUM, 43, ""),
    ("dp.st.prd.", ALNUM, 40, ""),
    ("glsa_", ALNUM, 32, "_0123abcd"),
    ("glc_eyJ", ALNUM, 60, "=="),
    ("NRAK-", UPPER, 27, ""),
    ("PMAK-", HEX, 24, "-0123456789abcdef0123456789abcdef01"),
    ("sntrys_eyJpYXQiOjE2", URL, 80, ""),
    ("sntryu_", HEX, 64, ""),
    ("sq0atp-", URL, 22, ""),
    ("sq0csp-", URL, 43, ""),
    ("EAAA", URL, 60, ""),
    ("123456789:AA", URL, 33, ""),
    ("1234567890:AA", URL, 33, ""),
    ("", URL, 40, ""),
    ("HRKU-AA", URL, 58, ""),
    ("nfp_", ALNUM, 36, ""),
    ("ntn_", ALNUM, 46, ""),
    ("secret_", ALNUM, 43, ""),
    ("pscale_tkn_", URL, 43, ""),
    ("pscale_pw_", URL, 43, ""),
    ("sbp_", HEX, 40, ""),
    ("sb_secret_", URL, 31, ""),
    ("key-", HEX, 32, ""),
    ("ATATT3xFfGF0", URL, 180, ""),
    ("r8_", ALNUM, 37, ""),
    ("figd_", URL, 40, ""),
    ("rubygems_", HEX, 48, ""),
    ("tskey-auth-k", ALNUM, 17, "-abcdefghijABCDEFGHIJ0123456789ab"),
    ("fm2_", BASE64, 200, ""),
    ("FLWSECK-", LOWER, 40, ""),
    ("xai-", ALNUM, 80, ""),
    ("gsk_", ALNUM, 52, ""),
    ("AKIA", "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16, ""),
];

#[test]
fn the_tokens_that_people_have_are_masked_wherever_they_stand() {
    let mut random = Random(0x70ce);
    let mut left = Vec::new();
    for (prefix, letters, length, suffix) in FORMATS {
        for _ in 0..40 {
            let secret = random.word(letters.as_bytes(), *length);
            let whole = format!("{prefix}{secret}{suffix}");
            for text in everywhere(&whole) {
                if survives(&secret, &text) {
                    left.push(format!("{whole}: {text}"));
                }
            }
        }
    }
    assert!(left.is_empty(), "{}: {:#?}", left.len(), &left[..left.len().min(40)]);
}

#[test]
fn a_key_in_pem_is_masked_line_by_line() {
    let mut random = Random(0xbe);
    let lines: Vec<String> = (0..12).map(|_| random.word(BASE64.as_bytes(), 64)).collect();
    let last = format!("{}==", random.word(BASE64.as_bytes(), 22));
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n{last}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    for text in [
        mask(&pem),
        mask_argv(&["sh", "-c", &format!("echo '{pem}' > key")]).join("|"),
        mask(&pem.replace('\n', "\\n")),
    ] {
        assert!(lines.iter().chain([&last]).all(|line| !survives(line, &text)), "{text}");
    }
}

#[test]
fn a_mark_that_is_percent_encoded_is_one_all_the_same() {
    for (text, masked) in [
        ("%41KIAN62BESPSZB2E4AXW", "***"),
        ("curl/8 %41%4b%49AN62BESPSZB2E4AXW x", "curl/8 *** x"),
        ("x glpat%2dabcdefghij0123456789", "x ***"),
        ("ghp%5F0123456789abcdefABCDEF0123456789abcd", "***"),
    ] {
        assert_eq!(mask(text), masked);
    }
    for text in ["100% of it", "a%20b%", "%", "%4", "a%zzb", "my%2drole", "%\u{e9}\u{20ac}", "x%e9%80y"] {
        assert_eq!(mask(text), text);
    }
}

#[test]
fn words_behind_the_same_marks_stay() {
    for text in [
        "pypi-attestations",
        "secret_name_of_the_project",
        "key-value-store-for-all-of-us",
        "hf_transfer_enabled",
        "npm_config_registry",
        "sk-learn-contrib-project-examples",
        "https://discord.com/api/v10/gateway",
        "v1.0-20260101",
        "averylongprogramnamewithoutanybreaksinitversion2",
    ] {
        assert_eq!(mask(text), text);
    }
}
