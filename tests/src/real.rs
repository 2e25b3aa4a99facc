//! How do real programs ask IMDS for credentials from within a container?
//!
//! Not `imds-client`, which plays all parts, but what people run: Debian's boto3, aws-cli and curl, and a program with the AWS
//! SDK for Rust. Debian's come with the machine's own `/usr`, mounted read-only into a container whose root has nothing but the
//! symbolic links into it; `cargo xtask setup --lab` installs them. `cargo build -p sdk-client` builds the Rust one.
//!
//! Each prints one line, `credentials: yes, …` or `credentials: no, …` with its own words why not, and ends with 0 or 1.
//! None prints a token or a credential. curl's have the token in their arguments, as everybody's do.
//!
//! | Program | Waits for its token | Without one, tokens optional | Tokens required |
//! |---|---|---|---|
//! | [`ContainerSpec::boto3`] | 1 s, once | asks without: IMDSv1, silently | no credentials |
//! | [`ContainerSpec::aws_cli`] | 1 s, once | asks without: IMDSv1, silently | no credentials |
//! | [`ContainerSpec::curl`] | 2 s, once | asks without, and nobody meant it to: curl sends no header that is empty | no credentials |
//! | [`ContainerSpec::sdk_rust`] | 1 s, once | fails | fails |

use std::path::Path;

use anyhow::{Result, bail};

use crate::spec::ContainerSpec;

/// What a container with the machine's userland sees of the machine, read-only.
pub(crate) const MOUNTS: [&str; 3] = ["/usr", "/etc/alternatives", "/etc/ssl"];

/// The links into /usr that such a container's root has.
pub(crate) const LINKS: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// Where the Rust program is in a container.
pub(crate) const SDK_CLIENT: &str = "/lab/sdk-client";

/// Not from the machine's own network: see `own_network`.
const NOT_THERE: &str =
    "[ \"$(readlink /proc/self/ns/net)\" != 'net:[4026531833]' ] || { echo 'not in the own network' >&2; exit 2; }\n";
/// Scripts are run as `sh -c SCRIPT NAME --wait-file FILE` if they are to wait, else without the last two.
const WAIT: &str = "[ \"$1\" != --wait-file ] || while [ ! -e \"$2\" ]; do sleep 0.01; done\n";

/// With credentials it goes on to call the service, which nobody plays: that it cannot connect is its success.
const BOTO3: &str = r#"
import sys
import boto3
import botocore.exceptions
session = boto3.Session()
try:
    session.client("sts", endpoint_url="http://127.0.0.1:1").get_caller_identity()
except botocore.exceptions.EndpointConnectionError:
    print("credentials: yes, " + session.get_credentials().method)
    sys.exit(0)
except Exception as error:
    print("credentials: no, " + str(error))
sys.exit(1)
"#;

/// As boto3's.
const AWS_CLI: &str = r#"
words=$(aws sts get-caller-identity --endpoint-url http://127.0.0.1:1 2>&1)
case $words in
*"Could not connect to the endpoint URL"*) echo "credentials: yes, and a request signed with them"; exit 0 ;;
*) echo "credentials: no, "$words; exit 1 ;;
esac
"#;

/// As it stands in a thousand user-data scripts: nobody looks whether there is a token.
const CURL: &str = r#"
imds=http://169.254.169.254/latest
token=$(curl -sS --max-time 2 -X PUT -H "X-aws-ec2-metadata-token-ttl-seconds: 21600" $imds/api/token 2>/tmp/words)
role=$(curl -sS --fail --max-time 2 -H "X-aws-ec2-metadata-token: $token" \
    $imds/meta-data/iam/security-credentials/ 2>>/tmp/words)
credentials=$(curl -sS --fail --max-time 2 -H "X-aws-ec2-metadata-token: $token" \
    $imds/meta-data/iam/security-credentials/$role 2>>/tmp/words)
case $credentials in
*AccessKeyId*) echo "credentials: yes, of $role"; exit 0 ;;
*) echo "credentials: no, "$(cat /tmp/words); exit 1 ;;
esac
"#;

impl ContainerSpec {
    /// Python with boto3.
    pub fn boto3(name: &str) -> ContainerSpec {
        userland(name, &format!("exec python3 -c '{BOTO3}'"))
    }

    /// The AWS command line, `aws sts get-caller-identity`.
    pub fn aws_cli(name: &str) -> ContainerSpec {
        userland(name, AWS_CLI)
    }

    /// A shell script with curl.
    pub fn curl(name: &str) -> ContainerSpec {
        userland(name, CURL)
    }

    /// A compiled program with the AWS SDK for Rust: its IMDS credentials provider, as it comes.
    pub fn sdk_rust(name: &str) -> ContainerSpec {
        ContainerSpec { userland: true, ..ContainerSpec::new(name, &[SDK_CLIENT]) }
    }
}

fn userland(name: &str, script: &str) -> ContainerSpec {
    let mut spec = ContainerSpec::new(name, &["sh", "-c", &format!("{NOT_THERE}{WAIT}{script}"), name]);
    spec.userland = true;
    // No search for a region, and the programs of /usr even where nobody runs them from an image.
    spec.env = [
        ("AWS_DEFAULT_REGION", "eu-central-1"),
        ("AWS_MAX_ATTEMPTS", "1"),
        ("HOME", "/root"),
        ("PATH", "/usr/bin:/bin"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    spec
}

/// Whether the machine's userland can be mounted and has what is asked for; if not, what is missing.
pub(crate) fn check_userland() -> Result<()> {
    for link in LINKS {
        let path = Path::new("/").join(link);
        if path.exists() && !path.is_symlink() {
            bail!(
                "/{link} is a folder of its own here, not a link into /usr: no container can have this machine's programs"
            );
        }
    }
    for (path, package) in [
        ("/usr/bin/python3", "python3"),
        ("/usr/lib/python3/dist-packages/boto3", "python3-boto3"),
        ("/usr/bin/aws", "awscli"),
        ("/usr/bin/curl", "curl"),
    ] {
        if !Path::new(path).exists() {
            bail!("{path} is not here: install Debian's {package}, as `cargo xtask setup --lab` does");
        }
    }
    Ok(())
}
