//! Is every secret of the list in docs/masking.md masked, and does every other word stay?

use super::*;

const TOKEN: &str = "AQAEAEXAMPLEtokenEXAMPLEtokenEXAMPLEtoken0123456789abc==";

#[test]
fn a_token_is_masked_wherever_it_stands() {
    assert_eq!(mask(&format!("a {TOKEN} b")), "a *** b");
    assert_eq!(mask(&format!("({TOKEN})")), "(***)");
    assert_eq!(mask("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY12"), "***");
}

#[test]
fn known_good_words_stay() {
    for text in [
        "Boto3/1.40 Python/3.11 Linux/6.12.0 Botocore/1.40",
        "aws-cli/2.17.0 md/awscrt#0.20.11 ua/2.0 os/linux#6.12.0 md/arch#x86_64 lang/python#3.11.9 cfg/retry-mode#standard",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "registry.example.com:5000/group/project/image:1.2.3-rc1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "123456789012.dkr.ecr.eu-central-1.amazonaws.com/my-team/my-image:latest",
        "1c0d7e2a-5a5f-4d8b-9c55-0a1b2c3d4e5f",
        "0123456789abcdef0123456789abcdef01234567",
        "/usr/lib/python3/dist-packages/awscli/bin/aws_completer",
        "/opt/hostedtoolcache/Python/3.11.4/x64/bin/python3",
        "/home/runner/work/MyProject/MyProject/build2/Release/tests",
        "arn:aws:iam::123456789012:role/MyTeam/CiRunnerRoleForProduction2",
        "arn:aws:secretsmanager:eu-central-1:123456789012:secret:prod/db",
        "https://gitlab.example.com/group/project/-/jobs/4711",
        "http://169.254.169.254:80/latest/meta-data/iam/security-credentials/",
        "http://[fd00:ec2::254]/latest/api/token",
        "git@github.com:owner/repository.git",
        "HttpTokens=required,HttpPutResponseHopLimit=2",
        "AWS_WEB_IDENTITY_TOKEN_FILE=/var/run/secrets/eks.amazonaws.com/serviceaccount/token",
        "AWS_REGION=eu-central-1",
        "glpat-",
        "xoxb-",
        "AKIA",
        "mailto:someone@example.com",
        "",
        " ",
        "don't \"stop",
        "\u{1f600}%3",
    ] {
        assert_eq!(mask(text), text);
        assert_eq!(mask_argv(&["prog", text]), ["prog", text]);
    }
    for argv in [
        &[
            "curl",
            "-X",
            "PUT",
            "-H",
            "X-aws-ec2-metadata-token-ttl-seconds: 21600",
            "http://169.254.169.254/latest/api/token",
        ][..],
        &["docker", "run", "-u", "1000:1000", "--user", "app:app", "-p", "8080:80", "nginx"],
        &["sudo", "-u", "runner", "true"],
        &["docker", "run", "-e", "AWS_SECRET_ACCESS_KEY", "image"],
        &["sh", "-c", "set -e; set x; make"],
        &["sh", "-c", "curl -s http://169.254.169.254/latest/meta-data/ | sort -u out; exit 0"],
        &["sh", "-c", "echo it's  two\tspaces\n and lines"],
        &[
            "aws",
            "ec2",
            "modify-instance-metadata-options",
            "--http-tokens",
            "required",
            "--http-put-response-hop-limit",
            "2",
        ],
        &["docker", "login", "--password-stdin", "registry.example.com"],
        &["mysql", "-p", "shop"],
        &["curl", "-sSfo", "/dev/null", "-XPUT", "http://h/"],
    ] {
        assert_eq!(mask_argv(argv), argv);
    }
}

#[test]
fn an_announced_secret_is_masked_however_short() {
    for (argv, expected) in [
        (
            &["curl", "-H", "X-aws-ec2-metadata-token: abc", "http://h/"][..],
            "curl|-H|X-aws-ec2-metadata-token:***|http://h/",
        ),
        (&["x", "--token", "abc", "d"], "x|--token|***|d"),
        (&["x", "-token", "abc", "d"], "x|-token|***|d"),
        (&["x", "--password=a b c", "d"], "x|--password=***|d"),
        (&["AWS_SECRET_ACCESS_KEY=short"], "AWS_SECRET_ACCESS_KEY=***"),
        (&["-H", "Authorization:", "Bearer", "abc", "d"], "-H|Authorization:|Bearer|***|d"),
        (&["curl", "-u", "me:abc", "h"], "curl|-u|***|h"),
        (&["curl", "-sume:abc", "h"], "curl|-su***|h"),
        (&["/usr/bin/curl", "--user=me:abc", "h"], "/usr/bin/curl|--user=***|h"),
        (&["docker", "login", "-u", "me", "-p", "abc"], "docker|login|-u|me|-p|***"),
        (&["mysql", "-pabc"], "mysql|-p***"),
        (&["https://h/o?X-Amz-Date=1&X-Amz-Signature=abc&x=1"], "https://h/o?X-Amz-Date=1&X-Amz-Signature=***&x=1"),
        (&["git", "clone", "https://me:abc@h/r.git"], "git|clone|https://***@h/r.git"),
        (&["git", "clone", "https://me:a/b#c@h/r.git"], "git|clone|https://***@h/r.git"),
        (&["ssh", "host", "curl -u me:abc h"], "ssh|host|curl -u *** h"),
        (
            &["sh", "-c", "curl -H \"X-aws-ec2-metadata-token: abc\" h"],
            "sh|-c|curl -H \"X-aws-ec2-metadata-token:***\" h",
        ),
        (&["sh", "-c", "TOKEN=abc curl -H'Cookie: a; b' h"], "sh|-c|TOKEN=*** curl -H'Cookie:*** h"),
        (&["python3", "-c", "f({'SecretAccessKey': 'a b', 'x': 1})\nf()"], "python3|-c|f({'SecretAccessKey':***"),
    ] {
        assert_eq!(mask_argv(argv).join("|"), expected);
    }
    assert_eq!(mask_value("com.example.registry-password", "abc"), MASK);
    assert_eq!(mask_value("com.example.name", "abc"), "abc");
}

#[test]
fn of_a_token_that_says_what_it_is_only_that_is_kept() {
    assert_eq!(mask("glpat-abcdefghij0123456789"), "glpat-***");
    assert_eq!(mask("x/ghp_abcdefghij0123456789/y"), "x/ghp_***");
    assert_eq!(mask("AKIAIOSFODNN7EXAMPLE"), "AKIA***");
    assert_eq!(mask("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl x"), "*** x");
    assert_eq!(mask("glcbt-64_abcdefghij.01.0123456"), "glcbt-***");
}

/// A generator of our own, so that the same secrets come again: xorshift, Marsaglia 2003.
pub(super) struct Random(pub u64);

impl Random {
    pub(super) fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize
    }

    pub(super) fn word(&mut self, letters: &[u8], length: usize) -> String {
        (0..length).map(|_| char::from(letters[self.next() % letters.len()])).collect()
    }
}

pub(super) const BASE64: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
pub(super) const BASE64_URL: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const WORD: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
const HEX: &[u8] = b"0123456789abcdef";
const KEY_ID: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Shapes in which `{}` is a secret that something announces. `|` parts arguments.
const ANNOUNCED: &[&str] = &[
    "curl|-H|X-aws-ec2-metadata-token: {}|http://169.254.169.254/",
    "curl|-H|x-AWS-ec2-Metadata-TOKEN:{}|http://169.254.169.254/",
    "curl|-HX-aws-ec2-metadata-token: {}",
    "curl|-sH|X-aws-ec2-metadata-token: {}",
    "curl|--header=X-aws-ec2-metadata-token: {}",
    "curl|--header|X-aws-ec2-metadata-token: {}",
    "curl|-H|X-aws-ec2-metadata-token:|{}|http://h/",
    "wget|--header=X-aws-ec2-metadata-token: {}|-O-",
    "sh|-c|curl -s -H 'X-aws-ec2-metadata-token: {}' http://169.254.169.254/latest/",
    "sh|-c|curl -H'X-aws-ec2-metadata-token: {}' http://h/",
    "sh|-c|curl -H\"X-aws-ec2-metadata-token: \"{} http://h/",
    "sh|-c|curl --header=\"X-aws-ec2-metadata-token:{}\" http://h/",
    "sh|-c|sh -c \"curl -H 'X-aws-ec2-metadata-token: {}' http://h/\"",
    "bash|-exc|curl -H X-aws-ec2-metadata-token:\\ {} http://h/",
    "ssh|host|curl -H 'X-aws-ec2-metadata-token: {}' http://h/",
    "curl|-H|Authorization: Bearer {}",
    "curl|-H|authorization: basic {}",
    "curl|-H|Authorization:|Bearer|{}",
    "curl|-H|Proxy-Authorization: Basic {}",
    "curl|-H|Authorization: AWS4-HMAC-SHA256 Credential={}/20260101/r/s/aws4_request, SignedHeaders=host, Signature={}",
    "sh|-c|curl -H 'Authorization: AWS4-HMAC-SHA256 Credential=x, Signature={}' http://h/",
    "curl|-H|X-Amz-Security-Token: {}",
    "curl|-H|PRIVATE-TOKEN: {}",
    "curl|-H|JOB-TOKEN: {}",
    "curl|-H|Cookie: a=1; b={}",
    "curl|-u|me:{}",
    "curl|-ume:{}",
    "curl|-sSfu|me:{}",
    "curl|-u|{}:",
    "curl|--user|me:{}",
    "curl|--proxy-user|me:{}",
    "curl|--oauth2-bearer|{}",
    "sh|-c|curl -u 'me:{}' http://h/",
    "sh|-c|set -e; curl -s -u me:{} http://h/ | sh",
    "aws|configure|set|aws_secret_access_key={}",
    "aws|configure|set|aws_secret_access_key|{}",
    "sh|-c|aws configure set aws_session_token {} --profile x",
    "npm|config|set|//registry.example.com/:_authToken|{}",
    "git|-c|http.extraheader=AUTHORIZATION: basic {}|fetch",
    "psql|-c|password=a b {}",
    "su|runner|-c|curl -u me:{} h",
    "env|AWS_ACCESS_KEY_ID={}|aws|s3|ls",
    "env|AWS_SECRET_ACCESS_KEY={}|aws|s3|ls",
    "env|AWS_SESSION_TOKEN={}|aws|s3|ls",
    "docker|run|-e|AWS_SECURITY_TOKEN={}|image",
    "docker|run|--env=AWS_CONTAINER_AUTHORIZATION_TOKEN={}|image",
    "docker|run|-eAWS_CONTAINER_CREDENTIALS_RELATIVE_URI=/v2/credentials/{}|image",
    "sh|-c|export AWS_SECRET_ACCESS_KEY={} && aws s3 ls",
    "sh|-c|export AWS_SECRET_ACCESS_KEY='{}'; aws s3 ls",
    "x|{\"AccessKeyId\": \"{}\", \"SecretAccessKey\": \"{}\", \"Token\": \"{}\"}",
    "x|{\"SecretAccessKey\":\"{}\"}",
    "x|{\\\"SecretAccessKey\\\":\\\"{}\\\"}",
    "curl|https://b.s3.amazonaws.com/k?X-Amz-Credential={}&X-Amz-Security-Token={}&X-Amz-Signature={}",
    "curl|https://b.s3.amazonaws.com/k?AWSAccessKeyId={}&Signature={}&Expires=1",
    "curl|https://h/?url=https%3A%2F%2Fb%2Fk%3FX-Amz-Signature%3D{}",
    "curl|https://h/?token={}",
    "curl|https://h/?a=1&password={}#x",
    "curl|https://h/?a=1&private_token={}&b=2",
    "curl|https://h/?sv=1&sig={}",
    "git|clone|https://me:{}@h/r.git",
    "git|clone|https://{}@h/r.git",
    "git|clone|https://gitlab-ci-token:{}@h:8443/r.git",
    "sh|-c|git clone https://x:{}@h/r.git && make",
    "curl|-x|socks5://me:{}@proxy:1080|http://h/",
    "x|postgres://me:{}@db:5432/shop?sslmode=require",
    "x|--token|{}",
    "x|--token={}",
    "x|-token|{}",
    "x|--password|{}",
    "x|--password={}",
    "x|--registration-token|{}",
    "x|--client-secret={}",
    "x|--api-key|{}",
    "x|DB_PASSWORD={}",
    "x|password: {}",
    "sshpass|-p|{}|ssh|host",
    "sshpass|-p{}|ssh|host",
    "docker|login|-u|me|-p|{}|registry.example.com",
    "sh|-c|docker login -u me -p {} registry.example.com",
    "mysql|-p{}|shop",
    "redis-cli|-a|{}",
    "x|CI_JOB_TOKEN={}",
    "x|GITHUB_TOKEN={}",
];

/// Shapes of tokens that nothing announces: letters and length of `{}`.
const BY_SHAPE: &[(&str, &[u8], usize)] = &[
    ("x|{}", BASE64, 56),
    ("x|{}==", BASE64, 54),
    ("x|({})", BASE64, 40),
    ("x|{}", BASE64_URL, 40),
    ("x|{}", BASE64, 400),
    ("x|a {} b", BASE64, 56),
    ("http://169.254.169.254/{}", BASE64, 56),
    ("-o/tmp/{}", BASE64_URL, 56),
    ("x|AKIA{}", KEY_ID, 16),
    ("x|ASIA{}/20260101/eu-central-1", KEY_ID, 16),
    ("x|eyJhbGciOiJI.{}.c2lnbmF0dXJl", BASE64_URL, 20),
    ("x|eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{}", BASE64_URL, 43),
    ("x|glpat-{}", BASE64_URL, 20),
    ("x|glrt-{}", BASE64_URL, 20),
    ("x|glcbt-64_{}", BASE64_URL, 20),
    ("x|https://h/glptt-{}", HEX, 40),
    ("x|ghp_{}", WORD, 36),
    ("x|ghs_{}", WORD, 36),
    ("x|github_pat_{}", WORD, 22),
    ("x|\"ghp_{}\"", WORD, 36),
    ("x|xoxb-{}", WORD, 24),
    ("x|xapp-1-{}", WORD, 24),
];

/// How often each shape is tried; a hundred times as often by hand.
const ROUNDS: usize = 4;

/// Does any eight characters in a row of the secret stand in what is left?
pub(super) fn survives(secret: &str, text: &str) -> bool {
    secret.as_bytes().windows(8).any(|part| text.contains(std::str::from_utf8(part).unwrap()))
}

#[test]
fn no_eight_characters_in_a_row_of_a_secret_survive_in_a_command_line() {
    let mut random = Random(0xfade_cafe);
    let check = |shape: &str, secret: &str| {
        let argv: Vec<String> = shape.split('|').map(|argument| argument.replace("{}", secret)).collect();
        let masked = mask_argv(&argv).join("|");
        assert!(!survives(secret, &masked), "{shape}: {secret} in {masked}");
        assert!(masked.contains(MASK), "{shape}");
        let again = mask_argv(&masked.split('|').collect::<Vec<_>>()).join("|");
        assert!(!survives(secret, &again), "{shape}");
    };
    // A pipe in a shape parts arguments: where the shell's is meant, none of the secrets has one.
    for shape in ANNOUNCED {
        for letters in [WORD, HEX, BASE64_URL, KEY_ID, BASE64] {
            // Before the colon nobody can tell a slash that was not encoded from a path.
            if shape.contains("//{}@") && letters == BASE64 {
                continue;
            }
            for length in [8, 12, 20, 40, 56, 300] {
                for _ in 0..ROUNDS {
                    check(shape, &random.word(letters, length));
                }
            }
        }
    }
    for (shape, letters, length) in BY_SHAPE {
        for _ in 0..100 * ROUNDS {
            check(shape, &random.word(letters, *length));
        }
    }
}

#[test]
fn free_text_is_masked_like_arguments() {
    let mut random = Random(42);
    for shape in ["Boto3/1.40 ({})", "x token={}", "Authorization: Bearer {}", "https://u:{}@h/", "app/1 {} lang/x"] {
        for _ in 0..100 * ROUNDS {
            let secret = random.word(BASE64, 56);
            let masked = mask(&shape.replace("{}", &secret));
            assert!(!survives(&secret, &masked), "{shape}: {secret} in {masked}");
        }
    }
}

#[test]
fn no_text_makes_it_panic_or_slow() {
    let pieces = [
        "'",
        "\"",
        "\\",
        " ",
        "\n",
        "=",
        ":",
        "://",
        "@",
        "%3d",
        "%",
        "token",
        "curl",
        "-u",
        "--",
        "-c",
        "é",
        "\u{1f600}",
        "ey",
        ".",
        "AKIA",
        "Authorization:",
        "?",
        "&",
    ];
    let mut random = Random(7);
    for _ in 0..100 * ROUNDS {
        let text: String = (0..20).map(|_| pieces[random.next() % pieces.len()]).collect();
        mask(&text);
        mask_argv(&["sh", "-c", &text, &text]);
    }
    for piece in pieces {
        mask(&piece.repeat(20_000));
        mask_argv(&["sh", "-c", &piece.repeat(20_000)]);
    }
}

#[test]
fn names_of_containers_may_look_random_and_secrets_are_none() {
    for name in [
        "job-17",
        "runner-t1_Xs6Vz-project-12-concurrent-0-8f3c1d2b9a7e6f50-build-2",
        "k8s_app_web-5d9f7c-x2x_default_0",
    ] {
        assert_eq!(mask_name(name), name);
    }
    let token = "AQAEAJ7xTk2Qm9vZ4pLw8sYcH1nRb6uXe3dGf0aKiOqWtPyUzM5hVw==";
    for name in [token.to_owned(), format!("j{token}"), "glpat-ABCDEFGHIJ0123456789".to_owned()] {
        let masked = mask_name(&name);
        assert!(!masked.contains("ABCDEFGH") && !masked.contains("J7xTk2Qm"), "{masked}");
    }
}
