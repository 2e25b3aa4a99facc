//! Which recordings and captures are kept, and what stands beside them?

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder `tests`.
pub fn tests() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("tests"))
}

/// The folder with the recordings.
pub fn recordings_folder() -> PathBuf {
    tests().join("recordings")
}

/// Every recording in the folder, by name.
pub fn recordings() -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(recordings_folder()).context("list tests/recordings")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(stem) = name.strip_suffix(".jsonl").filter(|stem| !stem.ends_with(".events")) {
            found.push((stem.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}

/// What the program says of a recording, in the files beside it: kind of output and end of the name.
pub const TOLD: [(&str, &str); 2] = [("text", "report.txt"), ("json", "events.jsonl")];

/// The folder with the captures.
pub fn captures_folder() -> PathBuf {
    tests().join("captures")
}

/// Every capture in the folder, by name.
pub fn captures() -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(captures_folder()).context("list tests/captures")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".pcap") || name.ends_with(".pcapng") {
            found.push((name, path));
        }
    }
    found.sort();
    Ok(found)
}

/// What the bytes that a property is tried with begin from, by name: files of the tests, and lines as they are met.
pub fn seeds(property: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let of_files = |files: Vec<(String, PathBuf)>| {
        let read = |(name, path): (String, PathBuf)| {
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            Ok((name, bytes))
        };
        files.into_iter().map(read).collect::<Result<Vec<_>>>()
    };
    let of_lines = |lines: &[&str]| {
        let seeds = lines.iter().enumerate().map(|(number, line)| (number.to_string(), line.as_bytes().to_vec()));
        Ok(seeds.collect())
    };
    match property {
        "capture" => of_files(captures()?),
        "recorded" => of_files(recordings()?),
        "http" => of_lines(HEADS),
        "cgroup" => of_lines(CGROUPS),
        _ => of_lines(COMMAND_LINES),
    }
}

const HEADS: &[&str] = &[
    "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: curl/8.5.0\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600",
    "GET http://169.254.169.254/latest/meta-data/iam/security-credentials/role HTTP/1.1\r\nUser-Agent: Boto3/1.40",
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\nContent-Length: 56",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    "POST / HTTP/1.1\r\nContent-Length: 3\r\nX-Forwarded-For: 10.0.0.1\r\n\r\nabcGET /latest/ HTTP/1.0",
];

const CGROUPS: &[&str] = &[
    "0::/system.slice/docker-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope\n",
    "12:memory:/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n1:name=systemd:/docker/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\n",
    "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod01234567_89ab_cdef_0123_456789abcdef.slice/cri-containerd-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope",
    "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope/container",
    "/ecstasks.slice/ecstasks-0123456789abcdef0123456789abcdef.slice/docker-0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef.scope (deleted)",
    "/machine.slice/systemd-nspawn@web.service/payload/lxc.payload.web/../../machine-web.scope",
];

const COMMAND_LINES: &[&str] = &[
    "curl\0-H\0X-aws-ec2-metadata-token: abc\0-u\0me:pass\0http://169.254.169.254/latest/",
    "sh\0-c\0T=$(curl -X PUT 'http://169.254.169.254/latest/api/token'); curl -H \"X-aws-ec2-metadata-token: $T\" http://h/",
    "docker\0login\0-u\0me\0-p\0abc\0--password=x\0AKIAIOSFODNN7EXAMPLE\0glpat-abcdefghij0123456789",
    "x\0-----BEGIN PRIVATE KEY-----\\nAbCdEf0123\\n\0https://a:b@h/?token=%3d&X-Amz-Signature=1\0eyJhbGciOiJI.eyJzdWIiOiIx.c2ln",
];
