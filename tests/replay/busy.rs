//! Is anything forgotten that still matters, when a host makes thousands of exchanges a second?

use anyhow::{Result, ensure};
use diagnosis::config::expectation;
use diagnosis::event::{End, Event, Lost};
use diagnosis::expect::Expectations;
use diagnosis::identity::Key;
use diagnosis::net::Timestamp;
use diagnosis::pipeline::{Host, Pipeline};
use imds_trace_replay_tests::load;
use imds_trace_replay_tests::scenario::HOST_NETNS;
use libtest_mimic::{Failed, Trial};

/// More than any table has room for, within the time in which a connection that is not over is remembered.
const MANY: u64 = 70_000;
/// From one to the next, ns: 2,000 a second.
const BETWEEN: u64 = 500_000;

pub fn trials() -> Vec<Trial> {
    vec![Trial::test("busy::what_is_over_is_not_lost", || {
        what_is_over_is_not_lost().map_err(|error| Failed::from(format!("{error:#}")))
    })]
}

fn what_is_over_is_not_lost() -> Result<()> {
    let asked = ["reachable", "v2-only:job-1"].iter().map(|asked| expectation(asked)).collect::<Result<_, _>>()?;
    let mut expectations = Expectations::new(asked);
    let mut pipeline = Pipeline::new(Host { netns: HOST_NETNS, pid_namespace: None, instance: None });
    let (mut answered, mut strangers, mut ended) = (0, 0, End::default());
    let mut hear = |event: &Event| {
        expectations.count(event);
        match event {
            Event::Exchange(told) => {
                answered += u64::from(told.exchange.status() == Some(200));
                strangers += u64::from(told.who.by != Key::Cgroup || told.who.process.is_none());
            }
            Event::End(_, end) => ended = end.clone(),
            _ => {}
        }
    };
    let begin = load::begins(0).0;
    let exchanges = (0..MANY).flat_map(|number| load::exchange_at(number, Timestamp(begin + number * BETWEEN)));
    for input in load::introduction().into_iter().chain(exchanges) {
        pipeline.push(input, &mut hear);
    }
    pipeline.finish(&mut hear);
    ensure!(ended.lost == Lost::default(), "{:?}", ended.lost);
    ensure!((answered, strangers) == (MANY, 0), "{answered} of {MANY} were answered, {strangers} were not attributed");
    for judged in expectations.judge(Timestamp(begin), &ended) {
        ensure!(judged.held, "{judged:?}");
    }
    Ok(())
}
