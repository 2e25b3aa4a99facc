//! Which function is at this address of the kernel's text? Read from /proc/kallsyms when first asked, then remembered.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};

/// Addresses remembered at most; a kernel has some hundred places that drop packets.
const MAX_KNOWN: usize = 4096;

/// Names of functions.
#[derive(Debug, Default)]
pub struct Symbols {
    known: HashMap<u64, String>,
}

impl Symbols {
    /// The function that `address` lies in, or the address in hex where the kernel does not tell (`kptr_restrict`).
    pub fn name(&mut self, address: u64) -> String {
        if let Some(name) = self.known.get(&address) {
            return name.clone();
        }
        let name = File::open("/proc/kallsyms")
            .ok()
            .and_then(|file| find(BufReader::new(file), address))
            .unwrap_or_else(|| format!("{address:#x}"));
        if self.known.len() < MAX_KNOWN {
            self.known.insert(address, name.clone());
        }
        name
    }
}

/// The symbol with the highest address that is not above `address`. Lines are `address type name`, not sorted over all modules.
fn find(lines: impl BufRead, address: u64) -> Option<String> {
    let mut best: Option<(u64, String)> = None;
    for line in lines.lines() {
        let line = line.ok()?;
        let mut words = line.split_whitespace();
        let (Some(at), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
        let Ok(at) = u64::from_str_radix(at, 16) else { continue };
        let is_text = matches!(kind, "t" | "T" | "w" | "W");
        // The return address of a call at the very end of a function lies behind it: strictly below.
        if is_text && at != 0 && at < address && best.as_ref().is_none_or(|(known, _)| at > *known) {
            best = Some((at, name.to_owned()));
        }
    }
    best.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
ffffffff81000000 T _text
ffffffff81000100 t ip_rcv
ffffffff81000200 T ip_forward
ffffffff81000300 D some_data
ffffffff81000400 T ip_output
ffffffffc0000000 t module_function\t[nf_tables]
";

    #[test]
    fn a_return_address_lies_in_the_function_that_called() {
        let name = |address| find(TABLE.as_bytes(), address);
        assert_eq!(name(0xffffffff810002c0).as_deref(), Some("ip_forward"));
        assert_eq!(name(0xffffffff81000400).as_deref(), Some("ip_forward"), "a call was its last instruction");
        assert_eq!(name(0xffffffffc0000010).as_deref(), Some("module_function"));
        assert_eq!(name(0x1000), None);
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        assert_eq!(find("0000000000000000 T ip_forward\n".as_bytes(), 0xffffffff81000000), None);
    }
}
