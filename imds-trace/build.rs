//! How does the kernel half get into the user binary? Built here for the BPF target, left in `OUT_DIR/imds-trace.o`.

#![expect(clippy::disallowed_methods, reason = "a build script holds nothing that would have to be let go")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::exit,
};

#[path = "build/toolchain.rs"]
#[allow(dead_code, reason = "xtask uses the rest")]
mod toolchain;

fn main() {
    // Without its live half the program has no kernel half either.
    if env::var_os("CARGO_FEATURE_LIVE").is_none() {
        return;
    }
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let root = here.parent().unwrap_or(&here);
    let out = PathBuf::from(variable("OUT_DIR"));

    // A folder counts with everything in it. PATH and HOME are not watched: they differ between a shell, an editor, sudo
    // and `cargo xtask`, and what was found once stays good as long as it is there (see the last two `watch`es).
    for name in ["imds-trace/build.rs", "imds-trace/build", "imds-trace-ebpf", "Cargo.toml", "Cargo.lock"] {
        watch(&root.join(name));
    }

    let toolchain = match toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(missing) => fail(&missing.to_string()),
    };
    watch(&toolchain.compiler.bin.join("rustc"));
    watch(&toolchain.linker.path);

    let object = build(&toolchain, root, &out);
    let kept = out.join("imds-trace.o");
    if let Err(error) = fs::copy(&object, &kept) {
        fail(&format!("copy {} to {}: {error}", object.display(), kept.display()));
    }
}

/// Builds the object in a target folder of its own (the outer cargo holds the lock on the usual one) and says where it is.
/// dev, release and clippy each have another `OUT_DIR`; this folder lies above them all, so they share one build of core.
fn build(toolchain: &toolchain::Toolchain, root: &Path, out: &Path) -> PathBuf {
    let toolchain::Toolchain { compiler, linker } = toolchain;
    let above = out.ancestors().nth(4).unwrap_or(out);
    // With `--target` there is a folder more.
    let above = if above.ends_with(variable("TARGET")) { above.parent().unwrap_or(above) } else { above };
    let mut target_dir = above.join("imds-trace-ebpf");
    let machine = variable("CARGO_CFG_TARGET_ARCH");
    if variable("TARGET") != variable("HOST") {
        // Each has other flags, and would be built anew after the other.
        target_dir.push(&machine);
    }
    let status = toolchain.build(root, &target_dir, &machine).status();
    match status {
        Ok(status) if status.success() => target_dir.join(toolchain::TARGET).join("release/imds-trace"),
        Ok(_) => {
            let hint = match linker.llvm {
                Some(_) => String::new(),
                None => format!(
                    " If {} could not read the bitcode, its LLVM is older than {}, the compiler's: `cargo install bpf-linker` brings a newer one.",
                    linker.path.display(),
                    compiler.llvm
                ),
            };
            eprintln!("\nimds-trace-ebpf did not build with rustc {} (see above).{hint}", compiler.release);
            exit(1)
        }
        Err(error) => fail(&format!("run {}: {error}", compiler.bin.join("cargo").display())),
    }
}

fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

/// Cargo sets it for every build script.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| fail(&format!("{name} is not set: build.rs is run by cargo")))
}

/// The sentence alone: on a failing exit status cargo would print it amid everything else this script wrote.
fn fail(sentence: &str) -> ! {
    println!("cargo::error={sentence}");
    exit(0)
}
