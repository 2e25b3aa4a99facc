//! Which processors are programs made for, and what do Rust, Debian and the GNU tools call them?

use std::{env, str::FromStr};

use anyhow::{Result, bail};

/// A processor that EC2 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    X86_64,
    /// Graviton.
    Aarch64,
}

impl Arch {
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// This machine's.
    pub fn own() -> Result<Self> {
        env::consts::ARCH.parse()
    }

    /// As in Rust's targets, QEMU's programs and RPM's packages.
    pub fn rust(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As in Debian's packages.
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The target that programs are built for. Only glibc's has a standard library in every toolchain, and it can be linked statically.
    pub fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.rust())
    }

    /// What GNU tools for it begin with, and the folder of its libraries.
    pub fn gnu(self) -> String {
        format!("{}-linux-gnu", self.rust())
    }

    /// A GNU tool for it: `strip`, or `aarch64-linux-gnu-strip` on another machine.
    pub fn tool(self, name: &str) -> String {
        if Self::own().is_ok_and(|own| own == self) { name.to_owned() } else { format!("{}-{name}", self.gnu()) }
    }
}

impl FromStr for Arch {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|arch| [arch.rust(), arch.debian()].contains(&word)) {
            Some(arch) => Ok(arch),
            None => bail!("{word} is no processor known here: x86_64 (amd64) or aarch64 (arm64)"),
        }
    }
}
