//! Does a tracer stay as it is, whatever comes and goes while it watches, and leave nothing behind when it is killed?

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::load::{self, Server};
use super::microseconds;
use super::process::Watch;
use crate::attached;
use crate::docker::next;
use crate::expect::wait_until;
use crate::host::{Engine, HostOptions, RunnerHost};
use crate::spec::{ContainerSpec, NetworkSpec};

/// Requests of each container of a turn that are answered, and of one that are not.
const ASKED: u32 = 400;
const IN_VAIN: u32 = 64;
/// The engine is killed and started again each time so many turns are over.
const RESTART: usize = 8;
/// Turns at least: the first half is for memory to find its size, and the second is compared within itself.
const LEAST: usize = 8;
/// By how much the last quarter may be above the one before it: memory in hundredths and MB, processor time in hundredths.
const GROWTH: f64 = 1.10;
const SLACK: f64 = 2.0;
const SLOWER: f64 = 1.5;
/// Runs that are killed, one after the other, and by how much later each is.
const KILLED: u32 = 12;
const LATER: Duration = Duration::from_millis(13);
const PATIENCE: Duration = Duration::from_secs(20);

/// What a turn left.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Resident, MB.
    memory: f64,
    descriptors: usize,
    objects: usize,
    /// Processor time an exchange, us.
    each: f64,
}

/// Runs for so long, and then kills some. Gives what it saw, in words; an error if anything grew, was lost or was left behind.
pub fn soak(time: Duration) -> Result<String> {
    let (options, _) = HostOptions::best();
    let host = RunnerHost::start(options)?;
    let server = Server::start(host.imds_ns())?;
    // Else what is not acknowledged is sent again for minutes, and its ports are taken.
    host.imds_ns().sysctl("net/ipv4/tcp_orphan_retries", "1")?;
    let before = attached::loaded_of_ours()?;
    let watch = Watch::start_with(&host, true, &["--record-rotate", "4MiB", "--record-keep", "2"])?;
    let (mut samples, mut answered, mut asked) = (Vec::new(), 0, 0);
    let began = Instant::now();
    while began.elapsed() < time || samples.len() < LEAST {
        let spent = watch.cpu()?;
        let turn = turn(&host, &server)?;
        (answered, asked) = (answered + turn, asked + turn + IN_VAIN);
        if samples.len() % RESTART == RESTART - 1 && host.engine() == Engine::Docker {
            host.restart_engine()?;
        }
        watch.settle()?;
        let each = microseconds(watch.cpu()? - spent) / f64::from(turn + IN_VAIN);
        let (memory, descriptors) = (watch.memory("VmRSS")?, watch.descriptors()?);
        let sample = Sample { memory, descriptors, objects: watch.objects()?, each };
        eprintln!("turn {}: {sample:?}", samples.len() + 1);
        samples.push(sample);
    }
    let told = watch.stop()?;
    if told.lost > 0 {
        bail!("soak: {} records were lost", told.lost);
    }
    if told.answered != answered as usize {
        bail!("soak: {answered} were answered, and {} told so", told.answered);
    }
    if told.counted != told.spent {
        bail!("soak: the kernel refused {} packets for their header, and {} were told", told.counted, told.spent);
    }
    let flat = judge(&samples)?;
    killed(&host, before.len())?;
    Ok(format!("{} turns, {asked} exchanges: {flat}; {KILLED} were killed and left nothing", samples.len()))
}

/// Containers on two networks, one of them new, ask and go. Gives how many were answered.
fn turn(host: &RunnerHost, server: &Server) -> Result<u32> {
    let network = host.network_create(NetworkSpec::new(&format!("soak-{}", next())))?;
    let linger = ["imds-client", "linger", "600"];
    let near = host.run(ContainerSpec::new(&format!("near-{}", next()), &linger))?;
    let far = host.run(ContainerSpec::new(&format!("far-{}", next()), &linger).network(network.name()))?;
    let mut answered = 0;
    for container in [&near, &far] {
        answered += load::ask(&container.namespace()?, ASKED, None)?.answered;
    }
    let spent = server.near();
    let asked = load::ask_in_vain(&near.namespace()?, IN_VAIN)?;
    drop(spent);
    if answered != 2 * ASKED || asked.answered > 0 {
        bail!("soak: {answered} of {} were answered, and {} at a hop limit of 1", 2 * ASKED, asked.answered);
    }
    host.settle(PATIENCE)?;
    Ok(answered)
}

/// Is the last quarter as the one before it?
fn judge(samples: &[Sample]) -> Result<String> {
    let quarter = samples.len() / 4;
    let (earlier, late) = samples[samples.len() - 2 * quarter..].split_at(quarter);
    let median = |samples: &[Sample], of: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().context("no turn")
    };
    let both = |of: fn(&Sample) -> f64| anyhow::Ok((median(earlier, of)?, median(late, of)?));
    let memory = both(|sample| sample.memory)?;
    let descriptors = both(|sample| sample.descriptors as f64)?;
    let objects = both(|sample| sample.objects as f64)?;
    let each = both(|sample| sample.each)?;
    if memory.1 > memory.0 * GROWTH + SLACK {
        bail!("soak: memory grew from {:.1} to {:.1} MB", memory.0, memory.1);
    }
    if descriptors.1 > descriptors.0 || objects.1 > objects.0 {
        bail!(
            "soak: open files grew from {} to {}, objects of the kernel from {} to {}",
            descriptors.0,
            descriptors.1,
            objects.0,
            objects.1
        );
    }
    if each.1 > each.0 * SLOWER {
        bail!("soak: an exchange took {:.0} us, and takes {:.0}", each.0, each.1);
    }
    Ok(format!(
        "{:.1} MB, then {:.1}; {} open files; {:.0} us an exchange, then {:.0}",
        memory.0, memory.1, late[0].descriptors, each.0, each.1
    ))
}

/// Starts some, kills each a little later than the one before, and looks at what is left.
fn killed(host: &RunnerHost, before: usize) -> Result<()> {
    for number in 0..KILLED {
        let (mut child, _) = Watch::spawn(host, false, &[])?;
        std::thread::sleep(LATER * number);
        child.kill()?;
        child.wait()?;
        wait_until("nothing to be left", PATIENCE, || (attached::loaded_of_ours().ok()?.len() == before).then_some(()))
            .with_context(|| format!("killed {} ms after its start", (LATER * number).as_millis()))?;
    }
    Ok(())
}
