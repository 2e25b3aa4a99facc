//! Is the page what a browser shows without a complaint, with the lost hop in the picture, and does nothing in it obey a container?

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};
use imds_trace_tests::children;
use imds_trace_tests::expect::expect_that;

use crate::Lab;
use crate::trace::{client, run_all, watched};

crate::tests![a_browser_shows_the_page_with_the_lost_hop_and_obeys_no_container];

type Outcome = anyhow::Result<()>;

/// Seconds: starting a browser on a slow machine takes long.
const PATIENCE: &str = "120";
/// Would be a mark on the page if it ran.
const OWNS: &str = "/latest/meta-data/<svg/onload=document.body.dataset.owned=1>";

/// What a browser without any network makes of a page, and what it complains of.
fn shown(page: &Path, profile: &Path) -> Result<(String, Vec<String>)> {
    let mut command = children::command("timeout");
    command.args([
        PATIENCE,
        "unshare",
        "--net",
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
    ]);
    command.args(["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]);
    command.arg(format!("--user-data-dir={}", profile.display()));
    // It waits for what scripts do, on a clock of its own.
    command.args(["--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom"]);
    command.arg(format!("file://{}", page.display()));
    let output = command.stdin(Stdio::null()).output().context("start chromium")?;
    expect_that("chromium ends well (`cargo xtask setup --lab` installs it)", output.status.success(), &output)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let complaints = text(&output.stderr).lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
    Ok((text(&output.stdout), complaints))
}

fn a_browser_shows_the_page_with_the_lost_hop_and_obeys_no_container(lab: &Lab) -> Outcome {
    let args = ["--output", "html={dir}/page.html", "--what-if", "tokens=required,hop-limit=2"];
    let (seen, _containers) = watched(lab, &args, |_| {
        let owns = client("owns", &format!("v1 --comm <img/src=x> --path {OWNS}"));
        run_all(lab, vec![client("loses", "put-only --timeout-ms 400"), owns])
    })?;
    let page = seen.outcome.dir.join("page.html");
    let (dom, complaints) = shown(&page, &seen.outcome.dir.join("profile"))?;
    expect_that("nothing stands on the console", complaints.is_empty(), &complaints)?;
    for part in [
        "data-ready=\"yes\"",
        "lost in ip_forward, ttl 1",
        ">docker0</text>",
        ">ttl 1</text>",
        "<button>Copy</button>",
        "<button>Client</button>",
        "&lt;svg/onload=document.body.dataset.owned=1&gt;",
        "What if tokens=required,hop-limit=2",
    ] {
        expect_that(&format!("it shows {part}"), dom.contains(part), &dom)?;
    }
    expect_that("nothing ran that a container chose", !dom.contains("data-owned"), &dom)?;
    expect_that("nor is it markup", !dom.contains("<svg/") && !dom.contains("<img"), &dom)?;
    // The browser does complain of what the page's policy forbids, and of nothing that it does not see.
    let forbidden = seen.outcome.dir.join("forbidden.html");
    let text = std::fs::read_to_string(&page)?;
    std::fs::write(&forbidden, text.replace("<footer>", "<script>document.body.dataset.owned=1</script><footer>"))?;
    let (dom, complaints) = shown(&forbidden, &seen.outcome.dir.join("profile"))?;
    expect_that("it would say so", !complaints.is_empty(), &complaints)?;
    expect_that("and does not run it", !dom.contains("data-owned"), &dom)
}
