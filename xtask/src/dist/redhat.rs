//! How does it become an RPM? With the crate of that name, in the form that Amazon Linux 2 can still read.

use std::{fs::File, path::Path};

use anyhow::{Context, Result};
use rpm::{BuildConfig, CompressionType, FileMode, FileOptions, PackageBuilder};

use super::{Contents, DESCRIPTION, MAINTAINER, NAME, SUMMARY, VERSION};

/// Where zsh looks there.
const ZSH: &str = "usr/share/zsh/site-functions";

const RELEASE: &str = "1";

/// Nothing is started by installing it; `$1` is how many versions will be there afterwards.
const AFTER_INSTALLING: &str = "\
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    [ \"$1\" -lt 2 ] || systemctl try-restart imds-trace.service || :
fi
";
const BEFORE_REMOVING: &str = "\
if [ \"$1\" -eq 0 ] && [ -d /run/systemd/system ]; then
    systemctl disable --now imds-trace.service || :
fi
";
const AFTER_REMOVING: &str = "\
[ ! -d /run/systemd/system ] || systemctl daemon-reload || :
";

/// Writes the package into the folder and gives its name.
pub(super) fn make(contents: &Contents, folder: &Path) -> Result<String> {
    let arch = contents.arch.rust();
    let name = format!("{NAME}-{VERSION}-{RELEASE}.{arch}.rpm");
    let date = u32::try_from(contents.date).context("RPM's times end in 2106")?;
    let mut package = PackageBuilder::new(NAME, VERSION, "MIT OR Apache-2.0", arch, SUMMARY);
    package
        .using_config(BuildConfig::v4().compression(CompressionType::Gzip).source_date(date))
        .release(RELEASE)
        .description(DESCRIPTION)
        .packager(MAINTAINER)
        .build_host("localhost")
        .post_install_script(AFTER_INSTALLING)
        .pre_uninstall_script(BEFORE_REMOVING)
        .post_uninstall_script(AFTER_REMOVING);
    for file in contents.installed(ZSH)? {
        let permissions = u16::try_from(file.mode).context("a mode has 12 bits")?;
        let options = FileOptions::new(format!("/{}", file.path)).mode(FileMode::regular(permissions));
        let options = if file.path.starts_with("usr/share/doc/") { options.doc() } else { options };
        package.with_file_contents(file.bytes, options).with_context(|| format!("pack {}", file.path))?;
    }
    let package = package.build().context("make the RPM")?;
    let path = folder.join(&name);
    let mut file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    package.write(&mut file).with_context(|| format!("write {}", path.display()))?;
    Ok(name)
}
