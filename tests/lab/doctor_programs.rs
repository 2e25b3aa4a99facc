//! Does `doctor` name the programs of others that may decide about packets, wherever they hang on the way?

use anyhow::Context;
use imds_trace_tests::cgroup::OwnCgroup;
use imds_trace_tests::expect::expect_that;
use imds_trace_tests::foreign::{ForeignProgram, Rank, Side, Verdict};
use imds_trace_tests::{Engine, Namespace};

use crate::Lab;
use crate::doctor::{changed, doctor, expect, expect_nothing_broken, waiting};

crate::tests![
    programs_on_a_clients_way_are_named_and_never_called_broken,
    a_program_on_a_cgroup_is_named_with_whom_it_is_about,
    a_filter_that_is_no_program_is_named_too,
    programs_beside_the_way_are_not_told,
];

type Outcome = anyhow::Result<()>;

fn programs_on_a_clients_way_are_named_and_never_called_broken(lab: &Lab) -> Outcome {
    let job = waiting(lab, "job-17")?;
    expect(&doctor(lab, &[])?, "bpf", "host", "ok", &["No BPF program"])?;
    let attach = |namespace: &Namespace, interface: &str, side, name: &str| {
        ForeignProgram::attach(namespace, interface, side, Rank::First, Verdict::Next, name)
    };
    let runner = lab.host.runner();
    let _bridge = attach(runner, "docker0", Side::Ingress, "lab_bridge")?;
    let _uplink = attach(runner, "ens5", Side::Egress, "lab_uplink")?;
    let inside = job.namespace()?;
    let _inside = attach(&inside, "eth0", Side::Egress, "lab_inside")?;
    let answers = doctor(lab, &["--exit-code"])?;
    expect_nothing_broken(&answers)?;
    // Without an engine a container has the name of its network namespace.
    let who =
        if lab.host.engine() == Engine::Docker { "job-17".to_owned() } else { format!("namespace {}", inside.name()) };
    expect(&answers, "bpf", &who, "unknown", &["`lab_bridge`", "ingress of docker0", "(id ", "not read"])?;
    expect(&answers, "bpf", &who, "unknown", &["`lab_inside`", "egress of eth0"])?;
    let uplink =
        expect(&answers, "bpf", "host", "unknown", &["`lab_uplink`", "egress of ens5", "own processes", &who])?;
    let look = uplink["look"].as_str().unwrap_or_default();
    expect_that("a command to look at it", look.starts_with("bpftool prog dump xlated id "), uplink)?;
    expect_that("and nothing to undo it", uplink["mend"].is_null(), uplink)?;
    Ok(())
}

fn a_program_on_a_cgroup_is_named_with_whom_it_is_about(lab: &Lab) -> Outcome {
    let _other = waiting(lab, "job-18")?;
    let job = waiting(lab, "job-17")?;
    let own = OwnCgroup::of(job.pid()?)?;
    let _program = ForeignProgram::on_cgroup(&own.folder, "sd_fw_lab")?;
    let answers = doctor(lab, &[])?;
    expect_nothing_broken(&answers)?;
    let inside = job.namespace()?;
    let who =
        if lab.host.engine() == Engine::Docker { "job-17".to_owned() } else { format!("namespace {}", inside.name()) };
    let name = own.folder.file_name().context("a name")?.to_string_lossy();
    let at = format!("/{name}");
    expect(&answers, "bpf", &who, "unknown", &["`sd_fw_lab`", "cgroup egress of /", &at, "IPAddressDeny="])?;
    Ok(())
}

fn a_filter_that_is_no_program_is_named_too(lab: &Lab) -> Outcome {
    let runner = lab.host.runner();
    let _qdisc = changed(runner, "tc", "qdisc add dev ens5 ingress", "qdisc del dev ens5 ingress")?;
    let filter = "filter add dev ens5 parent ffff: protocol ip u32 match ip src 192.0.2.1/32 flowid :1";
    runner.run("tc", &filter.split_whitespace().collect::<Vec<_>>())?;
    let answers = doctor(lab, &[])?;
    expect_nothing_broken(&answers)?;
    expect(&answers, "bpf", "host", "unknown", &["`u32`", "tc filter ingress of ens5", "own processes"])?;
    Ok(())
}

fn programs_beside_the_way_are_not_told(lab: &Lab) -> Outcome {
    let _job = waiting(lab, "job-17")?;
    let runner = lab.host.runner();
    let _other = changed(runner, "ip", "link add ens9 type veth peer name beyond9", "link del ens9")?;
    let _program = ForeignProgram::attach(runner, "ens9", Side::Egress, Rank::First, Verdict::Drop, "lab_beside")?;
    expect(&doctor(lab, &[])?, "bpf", "host", "ok", &["No BPF program"])?;
    Ok(())
}
