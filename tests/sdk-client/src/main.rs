//! What does a program with the AWS SDK for Rust get of IMDS?
//!
//! It asks as every such program does, prints whether it got credentials or the SDK's own words why not, and never the
//! credentials. `--wait-file PATH` lets it begin when that file exists. The exit code is 0 if it got credentials, else 1.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::ProvideCredentials;

#[path = "../../src/own_network.rs"]
mod own_network;

fn main() -> ExitCode {
    if let Some(why) = own_network::refusal() {
        eprintln!("sdk-client: {why}");
        return ExitCode::from(2);
    }
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        (None, _) => {}
        (Some("--wait-file"), Some(path)) => {
            while !std::path::Path::new(&path).exists() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        _ => {
            eprintln!("usage: sdk-client [--wait-file PATH]");
            return ExitCode::from(2);
        }
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sdk-client: start the runtime: {error}");
            return ExitCode::from(2);
        }
    };
    let asked = runtime.block_on(async {
        let http = aws_smithy_http_client::Builder::new().build_http();
        let config = ProviderConfig::default().with_http_client(http);
        ImdsCredentialsProvider::builder().configure(&config).build().provide_credentials().await
    });
    match asked {
        Ok(_) => {
            println!("credentials: yes, imds");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut words = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                words += &format!(": {error}");
                cause = error.source();
            }
            println!("credentials: no, {words}");
            ExitCode::from(1)
        }
    }
}
