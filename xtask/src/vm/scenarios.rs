//! What is shown of every kernel? Rows of the table, and the lab's tests that stand behind each.

/// A claim, and the tests that show it.
pub struct Scenario {
    pub claim: &'static str,
    pub tests: &'static [&'static str],
}

const fn row(claim: &'static str, tests: &'static [&'static str]) -> Scenario {
    Scenario { claim, tests }
}

/// All rows.
pub const SCENARIOS: &[Scenario] = &[
    row("it has what is claimed of it, and lacks the rest", &["trace_kernel::every_claim_about_versions_holds_here"]),
    row(
        "hop limit 1: the drop is named and counted",
        &["trace_hop_limit::hundreds_of_lost_token_responses_are_counted_as_the_kernel_counts_them"],
    ),
    row("hop limit 2: all is well", &["trace_hop_limit::a_hop_limit_of_two_is_enough_and_leaves_nothing_over"]),
    row(
        "a bridge made later is followed",
        &["trace_hop_limit::a_bridge_made_later_loses_the_token_response_like_docker0"],
    ),
    row(
        "IPv6, hop limits 1 and 2",
        &[
            "trace_hop_limit::over_ipv6_a_lost_token_response_is_found_and_counted",
            "trace_hop_limit::over_ipv6_a_hop_limit_of_two_is_enough",
        ],
    ),
    row("a firewall's drop is named with its hook", &["trace_causes::a_firewall_that_drops_is_named_with_its_hook"]),
    row(
        "no route, and reverse path",
        &[
            "trace_causes::a_container_without_a_route_never_leaves",
            "trace_causes::an_answer_that_fails_the_reverse_path_is_named",
        ],
    ),
    row(
        "container and process are named",
        &[
            "trace_identity::containers_with_the_same_process_names_are_never_mixed_up",
            "trace_identity::a_container_that_lives_a_moment_is_named",
        ],
    ),
    row("no token is written anywhere", &["trace_tokens::no_token_is_written_anywhere_when_its_response_is_lost"]),
    row("nothing is left after SIGTERM", &["trace_guest::nothing_is_left_after_sigterm"]),
    row(
        "SIGKILL: nothing is left, or the next run and `doctor --clean` remove it",
        &[
            "trace_guest::nothing_is_left_after_sigkill",
            "trace_leftovers::the_next_run_removes_what_a_killed_one_left",
            "trace_leftovers::doctor_removes_what_a_killed_run_left_and_says_so",
        ],
    ),
    row("two tracers at once say the same", &["trace_guest::two_tracers_at_once_say_the_same"]),
    row("a tracer outlives another that is killed", &["trace_leftovers::a_run_outlives_another_that_is_killed"]),
    row(
        "other people's programs and qdiscs stay, and see every packet",
        &[
            "trace_leftovers::filters_and_qdiscs_of_others_stay",
            "trace_guest::programs_before_and_after_ours_see_every_packet",
        ],
    ),
    row(
        "privileges are dropped, and enough is kept",
        &["trace_start::what_is_kept_is_enough_for_interfaces_that_come_and_for_who_asks"],
    ),
    row("without CAP_SYSLOG it says what it can", &["trace_start::without_names_of_functions_a_spent_ttl_is_likely"]),
];

/// The names of all tests behind the rows.
pub fn tests() -> impl Iterator<Item = &'static str> {
    SCENARIOS.iter().flat_map(|scenario| scenario.tests.iter().copied())
}

/// Those of them that are the lab's.
pub fn lab() -> impl Iterator<Item = &'static str> {
    tests().filter(|test| !test.starts_with("bare::"))
}
