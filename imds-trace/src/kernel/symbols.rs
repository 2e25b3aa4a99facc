//! Which function is at this address of the kernel's text? Read from /proc/kallsyms by a thread while the rest starts.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::thread::JoinHandle;

use crate::privileges;

/// Names and addresses of everything in the kernel; the addresses are 0 for who may not know them.
pub const KALLSYMS: &str = "/proc/kallsyms";

/// Names of functions.
#[derive(Debug)]
pub enum Symbols {
    /// Still being read.
    Loading(Option<JoinHandle<Table>>),
    /// Read.
    Loaded(Table),
}

/// Functions by address.
#[derive(Debug, Default)]
pub struct Table {
    /// Start address, and where its name begins and ends in `names`; sorted by address.
    functions: Vec<(u64, u32, u32)>,
    names: String,
}

impl Symbols {
    /// Begins to read. Some hundred thousand lines take the kernel a tenth of a second to write.
    pub fn load() -> Self {
        let thread = std::thread::Builder::new().name("kallsyms".into()).spawn(|| {
            // Whether addresses are told is decided when it is opened.
            let opened = File::open(KALLSYMS);
            if let Err(error) = privileges::keep_nothing() {
                log::warn!("{error}");
            }
            let mut table = Table::default();
            let (mut lines, mut line) = (opened.ok().map(BufReader::new), Vec::new());
            // Line by line: the text is several times what is kept of it.
            while let Some(lines) = &mut lines
                && lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0)
            {
                table.take(&String::from_utf8_lossy(&line));
                line.clear();
            }
            table.sorted()
        });
        Self::Loading(thread.ok())
    }

    /// The function that `address` lies in; `None` where the kernel does not tell (`kptr_restrict`).
    pub fn name(&mut self, address: u64) -> Option<String> {
        if let Self::Loading(thread) = self {
            let table = thread.take().and_then(|thread| thread.join().ok());
            *self = Self::Loaded(table.unwrap_or_default());
        }
        match self {
            Self::Loaded(table) => table.name(address),
            Self::Loading(_) => None,
        }
        .map(str::to_owned)
    }
}

impl Table {
    /// Lines are `address type name`, with `[module]` behind names of modules, in no order over all modules.
    pub fn read(text: &str) -> Self {
        let mut table = Self::default();
        text.lines().for_each(|line| table.take(line));
        table.sorted()
    }

    fn take(&mut self, line: &str) {
        // All zeros: the addresses are hidden from us.
        if let Some((at, name)) = function(line).filter(|(at, _)| *at != 0) {
            let begin = self.names.len() as u32;
            self.names.push_str(name);
            self.functions.push((at, begin, self.names.len() as u32));
        }
    }

    fn sorted(mut self) -> Self {
        self.functions.sort_unstable();
        self.functions.shrink_to_fit();
        self.names.shrink_to_fit();
        self
    }

    /// The last function that begins below `address`: a drop's location is a return address, which behind a call at the very end
    /// of a function is already the next one's first.
    pub fn name(&self, address: u64) -> Option<&str> {
        let behind = self.functions.partition_point(|(at, _, _)| *at < address);
        let (_, begin, end) = *self.functions.get(behind.checked_sub(1)?)?;
        self.names.get(begin as usize..end as usize)
    }
}

/// Address and name, if a line is about a function.
pub fn function(line: &str) -> Option<(u64, &str)> {
    let mut words = line.split_ascii_whitespace();
    let (at, kind, name) = (words.next()?, words.next()?, words.next()?);
    let at = u64::from_str_radix(at, 16).ok()?;
    matches!(kind, "t" | "T" | "w" | "W").then_some((at, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
ffffffff81000000 T _text
ffffffff81000100 t ip_rcv
ffffffff81000400 T ip_output
ffffffff81000200 T ip_forward
ffffffff81000300 D some_data
ffffffffc0000000 t module_function\t[nf_tables]
";

    #[test]
    fn a_return_address_lies_in_the_function_that_called() {
        let table = Table::read(TEXT);
        assert_eq!(table.name(0xffffffff810002c0), Some("ip_forward"));
        assert_eq!(table.name(0xffffffff81000400), Some("ip_forward"), "a call was its last instruction");
        assert_eq!(table.name(0xffffffffc0000010), Some("module_function"));
        assert_eq!(table.name(0x1000), None);
    }

    #[test]
    fn hidden_addresses_name_nothing() {
        let table = Table::read("0000000000000000 T ip_forward\n");
        assert_eq!(table.name(0xffffffff81000000), None);
    }
}
