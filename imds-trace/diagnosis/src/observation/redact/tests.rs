//! Is nothing kept of a message but what may be?

use super::*;

fn read(payload: &[u8]) -> Option<Head> {
    head(payload, &Marker::default())
}

const TOKEN: &str = "AQAEAEXAMPLEtokenEXAMPLEtokenEXAMPLEtoken0123456789abc==";

#[test]
fn a_token_request_keeps_method_path_lifetime_and_user_agent() {
    let payload = b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n\
        X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 21600\r\nUser-Agent: Boto3/1.40\r\n\r\n";
    let Some(Head::Request(head)) = read(payload) else { panic!("not a request") };
    assert_eq!(head.method, "PUT");
    assert_eq!(head.path, "/latest/api/token");
    assert_eq!(head.requested_ttl, Some(21600));
    assert_eq!(head.user_agent.as_deref(), Some("Boto3/1.40"));
    assert!(!head.token);
}

#[test]
fn no_byte_of_a_token_is_kept_wherever_the_client_puts_it() {
    for payload in [
        format!("GET /latest/meta-data/ HTTP/1.1\r\nX-AWS-EC2-METADATA-TOKEN: {TOKEN}\r\n\r\n"),
        format!("GET /{TOKEN} HTTP/1.1\r\nx-aws-ec2-metadata-token: {TOKEN}\r\nHost: {TOKEN}\r\n\r\n"),
        format!("GET /latest/meta-data/iam/security-credentials/{TOKEN}?t={TOKEN} HTTP/1.1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nUser-Agent: x/{TOKEN} y\r\nAuthorization: {TOKEN}\r\n"),
        format!("HTTP/1.1 200 OK\r\nServer: {TOKEN}\r\nContent-Length: 56\r\n\r\n{TOKEN}"),
        format!("{TOKEN} / HTTP/1.1\r\n\r\n"),
        format!("HTTP/1.1 200 {TOKEN}\r\n\r\n{TOKEN}"),
    ] {
        let kept = serde_json::to_string(&read(payload.as_bytes())).unwrap();
        assert!(!kept.contains(&TOKEN[..8]), "{kept}");
        assert!(!kept.contains(&TOKEN[30..]), "{kept}");
    }
}

#[test]
fn a_secret_that_a_client_announces_in_its_user_agent_is_not_kept_however_short() {
    for agent in
        ["x token=pa55word", "x (Authorization: Bearer pa55word)", "https://me:pa55word@h/", "x password: pa55word y"]
    {
        let Some(Head::Request(head)) = read(format!("GET / HTTP/1.1\r\nUser-Agent: {agent}\r\n\r\n").as_bytes())
        else {
            panic!("not a request")
        };
        let kept = head.user_agent.unwrap();
        assert!(kept.contains(MASK) && !kept.contains("pa55"), "{kept}");
    }
}

#[test]
fn what_does_not_belong_into_a_path_is_not_kept() {
    for path in [
        "/latest/glpat-abcdefghij0123456789",
        "/latest/x=eyJhbGciOiJI.eyJzdWIiOiIx.c2ln",
        "/latest/Secret",
        "/token=pa55word",
    ] {
        let Some(Head::Request(head)) = read(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()) else {
            panic!("not a request")
        };
        assert!(
            head.path.ends_with(MASK) && !head.path.contains("abcdefgh") && !head.path.contains("pa55"),
            "{}",
            head.path
        );
    }
    let Some(Head::Request(head)) = read(b"GET /latest/api/token HTTP/1.1\r\n\r\n") else { panic!() };
    assert_eq!(head.path, "/latest/api/token");
}

#[test]
fn a_mark_tells_tokens_apart_and_means_nothing_to_another_run() {
    let (marker, another) = (Marker::default(), Marker::default());
    let mark = marker.mark(TOKEN.as_bytes());
    assert!(mark.is_some());
    assert_eq!(marker.mark(format!(" {TOKEN}\r").as_bytes()), mark);
    assert_ne!(marker.mark(TOKEN.replace('E', "F").as_bytes()), mark);
    assert_ne!(another.mark(TOKEN.as_bytes()), mark);
    assert_eq!(marker.mark(b"short"), None);
    assert_eq!(marker.mark(b"two words that are together long enough"), None);
}

#[test]
fn a_secret_with_slashes_in_the_place_of_a_role_is_masked_from_its_beginning() {
    for place in ["iam/security-credentials", "tags/instance"] {
        let text = format!("GET /latest/meta-data/{place}/wJalrXUtnFEMI/K7MDENG/bPxRfiCYKEY HTTP/1.1\r\n\r\n");
        let Some(Head::Request(head)) = read(text.as_bytes()) else { panic!("not a request") };
        assert_eq!(head.path, format!("/latest/meta-data/{place}/***/***/***"));
    }
}

#[test]
fn a_secret_in_the_place_of_a_role_is_masked_and_names_of_roles_stay() {
    let kept = |place: &str, name: &str| {
        let text = format!("GET /latest/meta-data/{place}/{name} HTTP/1.1\r\n\r\n");
        let Some(Head::Request(head)) = read(text.as_bytes()) else { panic!("not a request") };
        head.path.strip_prefix(&format!("/latest/meta-data/{place}/")).map(str::to_owned)
    };
    for place in ["iam/security-credentials", "iam/security-credentials-extended", "tags/instance"] {
        for secret in [
            "AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
            "hT4kQz7vW2mYc9LrXb1Ns6PjD8gFa3KeUo5iVq0J",
            "7bN0q+R2sT5uV8wX1yZ4aB6cD9eF3gH0iJ2kL5mN",
            "ghp_0123456789abcdefABCDEF0123456789abcd",
            "glpat-abcdefghij0123456789",
            "AKIAIOSFODNN7EXAMPLE",
            "xoxb-123456789012-1234567890123-abcdefABCDEF012345678901",
            "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2ln",
        ] {
            assert_eq!(kept(place, secret).as_deref(), Some(MASK), "{place}/{secret}");
        }
        for name in [
            "my-app-Role_prod.2024@eu",
            "AWSReservedSSO_AdministratorAccess_0123456789abcdef",
            "ecsInstanceRole",
            "stack-RoleName-1ABCDEF2GHIJK",
            "stack-key-RoleName-1ABCDEF2GHIJK",
            "secret_rotation-Role-1ABCDEF2GHIJK",
            "AmazonEKSNodegroupRoleForProduction2024a",
            "0123456789abcdef0123456789abcdef01234567",
            "eyewitness.service.role-for-production",
        ] {
            assert_eq!(kept(place, name).as_deref(), Some(name), "{place}");
        }
    }
}

#[test]
fn a_role_name_is_kept_and_a_query_is_not() {
    let payload =
        b"GET /latest/meta-data/iam/security-credentials/Ci-Runner-EXAMPLE0123456789-abcdefghijkl?x=1 HTTP/1.1\r\n\r\n";
    let Some(Head::Request(head)) = read(payload) else { panic!("not a request") };
    assert_eq!(head.path, "/latest/meta-data/iam/security-credentials/Ci-Runner-EXAMPLE0123456789-abcdefghijkl");
}

#[test]
fn a_target_in_absolute_form_is_the_path_in_it() {
    for (target, path) in [
        ("http://169.254.169.254/latest/api/token", "/latest/api/token"),
        ("HTTP://me:pa55word@169.254.169.254:80/latest/meta-data/?x=1", "/latest/meta-data/"),
        ("http://metadata.google.internal/computeMetadata/v1/instance/", "/computeMetadata/v1/instance/"),
        ("http://169.254.169.254", "/"),
        ("http://169.254.169.254?http://x/y", "/"),
        ("/latest/user-data?next=http://x/y", "/latest/user-data"),
        ("/latest/api/token/", "/latest/api/token/"),
    ] {
        let Some(Head::Request(head)) = read(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes()) else {
            panic!("not a request")
        };
        assert_eq!(head.path, path);
    }
}

#[test]
fn what_a_request_wants_besides_is_kept_as_a_yes_or_no() {
    let head = |headers: &str| match read(format!("GET / HTTP/1.1\r\n{headers}\r\n\r\n").as_bytes()) {
        Some(Head::Request(head)) => head,
        other => panic!("{other:?}"),
    };
    assert!(head("x-AWS-ec2-Metadata-TOKEN: \r\nHost: x").empty_token);
    assert!(head("X-aws-ec2-metadata-token:").empty_token);
    assert!(!head("X-aws-ec2-metadata-token: INVALID").empty_token);
    assert!(head("expect: 100-Continue").expects_continue);
    for cloud in ["Metadata-Flavor: Google", "metadata: true", "Authorization: Bearer Oracle"] {
        assert!(head(cloud).other_cloud, "{cloud}");
    }
    assert!(!head("Authorization: Bearer other").other_cloud);
}

#[test]
fn signs_of_a_proxy_are_kept_as_a_yes_or_no_and_their_values_are_not() {
    let Some(Head::Request(head)) =
        read(b"GET http://169.254.169.254/ HTTP/1.1\r\nvia: 1.1 squid\r\nhost: evil.example\r\n")
    else {
        panic!("not a request")
    };
    assert!(head.absolute && head.via && head.foreign_host);
    let kept = serde_json::to_string(&head).unwrap();
    assert!(!kept.contains("evil") && !kept.contains("squid"), "{kept}");
}

#[test]
fn a_head_cut_short_gives_its_whole_lines() {
    let Some(Head::Response(head)) = read(b"HTTP/1.0 404 Not Found\r\nServer: EC2ws\r\nContent-Le") else { panic!() };
    assert_eq!((head.status, head.server.as_deref(), head.content_length), (404, Some("EC2ws"), None));
}

#[test]
fn what_is_not_http_gives_nothing() {
    for payload in [&b""[..], b"\x16\x03\x01\x02\x00", b"HTTP/1.1 ", b"AccessKeyId"] {
        assert_eq!(read(payload), None);
    }
}
