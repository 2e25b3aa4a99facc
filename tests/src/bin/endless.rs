//! Does memory stay flat and do files stay few, however long it runs? A million exchanges through pipeline and recording.
//!
//! A program and no test of cargo's, because it is meant to be optimised: `cargo xtask test endless` builds it so, runs it and counts
//! it as one test. `endless COUNT` runs so many exchanges.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use diagnosis::input::Input;
use diagnosis::net::Timestamp;
use diagnosis::pipeline::{Host, Pipeline};
use diagnosis::recording::{Files, Header, Limits, Reader, open};
use imds_trace_replay_tests::load;
use imds_trace_replay_tests::scenario::{HOST_NETNS, header};

/// Exchanges where nobody says how many, and after how many memory must have found its size: it remembers 57,000 sockets.
const MANY: u64 = 1_000_000;
const FEW: u64 = 100_000;
/// Memory may grow by so many hundredths from then on.
const GROWTH: u64 = 10;
/// A file's size, and how many are kept beside the current one.
const SIZE: u64 = 16 << 20;
const KEEP: usize = 3;

fn main() -> ExitCode {
    let folder = std::env::temp_dir().join(format!("imds-trace-endless-{}", std::process::id()));
    let result = many().and_then(|many| {
        fs::create_dir(&folder).context("make a folder")?;
        run(&folder, many)
    });
    let _ = fs::remove_dir_all(&folder);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("endless: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn many() -> Result<u64> {
    let many =
        std::env::args().nth(1).map_or(Ok(MANY), |word| word.parse().with_context(|| format!("{word}: no number")))?;
    ensure!(many >= 2 * FEW, "{many} exchanges are too few: memory is compared with that after {FEW}");
    Ok(many)
}

fn run(folder: &Path, many: u64) -> Result<()> {
    let start = Instant::now();
    let path = folder.join("host.jsonl");
    let limits = Limits { size: Some(SIZE), keep: Some(KEEP), age: None };
    let header = Header { at: Timestamp(998_000_000_000), ..header() };
    let (mut files, _) = Files::begin(&path, header, limits)?;
    let mut pipeline = Pipeline::new(Host { netns: HOST_NETNS, pid_namespace: None, instance: None });
    let mut told = 0u64;
    let mut take = |input: Input| -> Result<()> {
        files.write(&input)?;
        files.flush(input.at())?;
        pipeline.push(input, &mut |event| told += u64::from(matches!(event, diagnosis::event::Event::Exchange(_))));
        Ok(())
    };
    load::introduction().into_iter().try_for_each(&mut take)?;
    let mut early = 0;
    for number in 0..many {
        load::exchange(number).into_iter().try_for_each(&mut take)?;
        if (number + 1) % FEW == 0 {
            let peak = peak_kb()?;
            println!("{:>8} exchanges, {:.0} s: {peak} kB", number + 1, start.elapsed().as_secs_f64());
            early = if early == 0 { peak } else { early };
        }
    }
    load::conclusion(many).into_iter().try_for_each(&mut take)?;
    files.close(load::begins(many))?;
    let late = peak_kb()?;
    let mut on_disk = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let size = fs::metadata(&path)?.len();
        ensure!(size <= SIZE, "{} has {size} bytes, more than {SIZE}", path.display());
        on_disk += size;
        let reader = Reader::new(open(fs::File::open(&path)?)?)?;
        reader.into_iter().try_for_each(|input| input.map(drop)).with_context(|| path.display().to_string())?;
    }
    println!(
        "{told} exchanges in {:.0} s: peak memory {early} kB after {FEW}, {late} kB after {many}; {on_disk} bytes on disk",
        start.elapsed().as_secs_f64()
    );
    ensure!(told == many, "{told} exchanges were told");
    ensure!(on_disk <= SIZE * (KEEP as u64 + 1), "the files have {on_disk} bytes");
    ensure!(late * 100 <= early * (100 + GROWTH), "memory grew from {early} to {late} kB");
    Ok(())
}

/// The most memory this program ever had.
fn peak_kb() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM in /proc/self/status")?;
    line.trim().trim_end_matches("kB").trim().parse().context("a number of kB")
}
