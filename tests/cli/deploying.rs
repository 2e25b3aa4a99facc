//! Do the manifests for Kubernetes, the command for Docker, the image and the program agree?

use std::collections::BTreeSet;

use imds_trace_tests::expect::{expect_equal, expect_that};
use imds_trace_tests::oci;
use imds_trace_tests::shipped::{IMAGE, documented, manifest};
use serde_json::{Value, json};

use crate::Outcome;
use crate::program::run;

crate::tests![
    the_manifests_name_each_other_and_this_version,
    the_program_accepts_what_it_is_started_with,
    docker_and_kubernetes_give_the_same_privileges,
];

/// The DaemonSet's pod, and its only container.
fn pod() -> anyhow::Result<(Value, Value)> {
    let pod = manifest("daemonset.yaml")?["spec"]["template"]["spec"].take();
    let container = pod["containers"][0].clone();
    Ok((pod, container))
}

fn the_manifests_name_each_other_and_this_version() -> Outcome {
    let all = manifest("kustomization.yaml")?;
    expect_equal("what it puts together", &all["resources"], &json!(["namespace.yaml", "daemonset.yaml"]))?;
    expect_equal("the namespace", &manifest("namespace.yaml")?["metadata"]["name"], &all["namespace"])?;
    let set = manifest("daemonset.yaml")?;
    expect_equal("it is one on every node", &set["kind"], &json!("DaemonSet"))?;
    let (chosen, given) = (&set["spec"]["selector"]["matchLabels"], &set["spec"]["template"]["metadata"]["labels"]);
    expect_equal("it finds its pods", chosen, given)?;
    let (pod, container) = pod()?;
    expect_equal("containers", pod["containers"].as_array().map(Vec::len), Some(1))?;
    expect_equal("the image", &container["image"], &json!(IMAGE))?;
    let image = &all["images"][0];
    let renamed = format!("{}:{}", image["name"].as_str().unwrap_or(""), image["newTag"].as_str().unwrap_or(""));
    expect_equal("what the kustomization renames", renamed.as_str(), IMAGE)?;
    let names = |list: &Value| -> BTreeSet<String> {
        list.as_array().into_iter().flatten().filter_map(|one| one["name"].as_str().map(str::to_owned)).collect()
    };
    expect_equal("every volume is there, and mounted", names(&container["volumeMounts"]), names(&pod["volumes"]))?;
    for mount in container["volumeMounts"].as_array().into_iter().flatten() {
        expect_equal("nothing can be written to", &mount["readOnly"], &json!(true))?;
        let volumes = pod["volumes"].as_array().into_iter().flatten();
        let path = volumes
            .filter(|volume| volume["name"] == mount["name"])
            .find_map(|volume| volume["hostPath"]["path"].as_str());
        let expected = path.map(|path| format!("/host{path}"));
        expect_equal("it is below the root that is looked into", mount["mountPath"].as_str(), expected.as_deref())?;
    }
    Ok(())
}

fn the_program_accepts_what_it_is_started_with() -> Outcome {
    let (_, container) = pod()?;
    expect_equal("the DaemonSet does what the image does by itself", &container["args"], &json!(oci::COMMAND))?;
    // What is not accepted is named before what stands behind it.
    let ran = run(oci::COMMAND.iter().copied().chain(["--no-such-option"]))?;
    ran.expect_code(2)?;
    expect_that("only that is refused", ran.stderr.contains("'--no-such-option'"), &ran)?;
    Ok(())
}

fn docker_and_kubernetes_give_the_same_privileges() -> Outcome {
    let words = documented()?;
    let given = |option: &str| -> Vec<&str> {
        words.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].as_str()).collect()
    };
    let (pod, container) = pod()?;
    let security = &container["securityContext"];
    expect_equal("capabilities", &json!(given("--cap-add")), &security["capabilities"]["add"])?;
    expect_equal("and no others", &json!(given("--cap-drop")), &security["capabilities"]["drop"])?;
    expect_equal("the network", (given("--network"), &pod["hostNetwork"]), (vec!["host"], &json!(true)))?;
    expect_equal("the processes", (given("--pid"), &pod["hostPID"]), (vec!["host"], &json!(true)))?;
    let read_only = words.iter().any(|word| word == "--read-only");
    expect_equal("the root", (read_only, &security["readOnlyRootFilesystem"]), (true, &json!(true)))?;
    let options = given("--security-opt");
    expect_equal(
        "no new privileges",
        options.contains(&"no-new-privileges"),
        security["allowPrivilegeEscalation"] == false,
    )?;
    let unconfined = security["appArmorProfile"]["type"] == "Unconfined";
    expect_equal("AppArmor", options.contains(&"apparmor=unconfined"), unconfined)?;
    expect_equal("nothing more", (options.len(), &security["privileged"]), (2, &json!(false)))?;
    Ok(())
}
