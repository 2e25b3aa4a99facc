//! What do a capture's frames begin with, by its link type (tcpdump.org/linktypes.html); and what is to be typed instead of those
//! that are not read?

/// Those that are read.
pub const ETHERNET: i32 = 1;
pub const RAW: i32 = 101;
/// What raw IP was in old files.
pub const OLD_RAW: i32 = 12;
pub const LINUX_SLL: i32 = 113;
pub const IPV4: i32 = 228;
pub const IPV6: i32 = 229;
pub const LINUX_SLL2: i32 = 276;

/// Names of others that people capture.
const NAMES: &[(i32, &str)] = &[
    (0, "NULL, the loopback of BSD and macOS"),
    (6, "Token Ring"),
    (7, "ARCnet"),
    (8, "SLIP"),
    (9, "PPP"),
    (10, "FDDI"),
    (50, "PPP in HDLC"),
    (51, "PPPoE"),
    (99, "Symantec firewall"),
    (100, "ATM"),
    (104, "Cisco HDLC"),
    (105, "802.11, Wi-Fi"),
    (107, "Frame Relay"),
    (108, "LOOP, the loopback of OpenBSD"),
    (109, "ENC, IPsec of OpenBSD"),
    (117, "PFLOG, OpenBSD's firewall log"),
    (119, "802.11 with a Prism header, Wi-Fi"),
    (122, "IP over Fibre Channel"),
    (127, "802.11 with radiotap, Wi-Fi"),
    (138, "IP over FireWire"),
    (163, "802.11 with an AVS header, Wi-Fi"),
    (166, "PPP of pppd"),
    (187, "Bluetooth HCI"),
    (189, "USB of Linux"),
    (192, "PPI"),
    (195, "802.15.4"),
    (197, "ERF of Endace"),
    (201, "Bluetooth HCI"),
    (204, "PPP with direction"),
    (205, "Cisco HDLC with direction"),
    (220, "USB of Linux"),
    (227, "CAN bus"),
    (231, "D-Bus"),
    (239, "NFLOG, netfilter's log"),
    (240, "netANALYZER"),
    (242, "IP over InfiniBand"),
    (247, "InfiniBand"),
    (249, "USB of Windows"),
    (251, "Bluetooth Low Energy"),
    (252, "Wireshark's exported PDUs"),
    (253, "NETLINK of Linux"),
    (254, "Bluetooth of Linux"),
    (258, "PKTAP of macOS"),
];
/// Anybody's own.
const USER: std::ops::RangeInclusive<i32> = 147..=162;

/// How a person calls a link type that is read.
pub fn link_name(link: i32) -> &'static str {
    match link {
        ETHERNET => "ethernet",
        RAW | OLD_RAW => "raw",
        LINUX_SLL => "linux_sll",
        LINUX_SLL2 => "linux_sll2",
        IPV4 => "ipv4",
        IPV6 => "ipv6",
        _ => "other",
    }
}

/// Are such frames read?
pub fn is_read(link: i32) -> bool {
    matches!(link, ETHERNET | RAW | OLD_RAW | LINUX_SLL | IPV4 | IPV6 | LINUX_SLL2)
}

/// Does a frame of this link type say which way it passed?
pub fn says_direction(link: i32) -> bool {
    matches!(link, LINUX_SLL | LINUX_SLL2)
}

/// Its number, and its name if it has one here.
pub fn called(link: i32) -> String {
    let name = NAMES.iter().find(|(known, _)| *known == link).map(|(_, name)| *name);
    match name.or(USER.contains(&link).then_some("USER, somebody's own")) {
        Some(name) => format!("link type {link} ({name})"),
        None => format!("link type {link}"),
    }
}

/// The sentence about a capture of which nothing is read.
pub fn said(link: i32) -> String {
    format!(
        "its packets have {}; only Ethernet, Linux cooked and raw IP are read: capture with  tcpdump -i any -w capture.pcap \
         'host 169.254.169.254 or host fd00:ec2::254'",
        called(link)
    )
}
