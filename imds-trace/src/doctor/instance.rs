//! Is this an EC2 instance? By what firmware and hypervisor say of themselves; EC2 itself is not asked.

use std::fs;

use super::{Answer, Check, Status, Subject};

/// The check.
pub const CHECK: Check = Check {
    id: "instance",
    explain: "whether firmware or hypervisor say that this is EC2",
    examine: |_| {
        vec![examine(&|path| fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|error| error.kind()))]
    },
};

const VENDOR: &str = "/sys/class/dmi/id/sys_vendor";
const UUIDS: [&str; 2] = ["/sys/class/dmi/id/product_uuid", "/sys/hypervisor/uuid"];

fn examine(read: &dyn Fn(&str) -> Result<String, std::io::ErrorKind>) -> Answer {
    let look = format!("cat {VENDOR} {}", UUIDS.join(" "));
    let vendor = read(VENDOR).ok();
    let uuids: Vec<_> = UUIDS.iter().map(|path| read(path)).collect();
    let ours = uuids.iter().flatten().find(|uuid| is_ec2(uuid));
    let denied = uuids.contains(&Err(std::io::ErrorKind::PermissionDenied));
    let answer = |status, summary: String| Answer::new(Subject::Host, status, summary).look(look.clone());
    match (vendor.as_deref(), ours) {
        (Some(vendor), _) if vendor.contains("Amazon EC2") => {
            answer(Status::Ok, format!("This is EC2: the firmware's vendor is {vendor}."))
        }
        (_, Some(uuid)) => answer(
            Status::Ok,
            format!("This is EC2: the machine's uuid begins with {}.", uuid.get(..8).unwrap_or(uuid)),
        ),
        (None, None) if uuids.iter().all(Result::is_err) => answer(
            Status::Unknown,
            if denied {
                "Whether this is EC2 is not known: the machine's uuid needs root to read.".into()
            } else {
                "Whether this is EC2 is not known: there is neither DMI nor a hypervisor's uuid to read.".into()
            },
        ),
        (vendor, None) => {
            let says = vendor.map_or("the machine's uuid is not one of EC2's".to_owned(), |vendor| {
                format!("the firmware's vendor is {vendor:?}")
            });
            answer(
                Status::Warning,
                format!(
                    "This does not look like EC2 ({says}): elsewhere that address is unused, or another cloud's metadata service."
                ),
            )
        }
    }
}

/// EC2's uuids begin with `ec2`; where the first group is little-endian, the bytes stand the other way round.
fn is_ec2(uuid: &str) -> bool {
    let uuid = uuid.to_ascii_lowercase();
    uuid.starts_with("ec2") || (uuid.get(6..8) == Some("ec") && uuid.get(4..5) == Some("2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_known_by_either_sign() {
        assert!(is_ec2("EC2E1916-9099-7CAF-FD21-012345ABCDEF") && is_ec2("45E12AEC-DCD1-B213-94ED-012345ABCDEF"));
        assert!(
            !is_ec2("e2c00000-0000-0000-0000-000000000000")
                && !is_ec2("")
                && !is_ec2("4c4c4544-004a-5110-8051-b6c04f4a3032")
        );
        let amazon = examine(&|path| {
            if path == VENDOR { Ok("Amazon EC2".into()) } else { Err(std::io::ErrorKind::PermissionDenied) }
        });
        assert_eq!(amazon.status, Status::Ok);
        let nobody = examine(&|_| Err(std::io::ErrorKind::PermissionDenied));
        assert_eq!(nobody.status, Status::Unknown);
        assert!(nobody.summary.contains("needs root"));
        let other = examine(&|path| if path == VENDOR { Ok("QEMU".into()) } else { Err(std::io::ErrorKind::NotFound) });
        assert_eq!(other.status, Status::Warning);
    }
}
