//! What is shown of every kernel? Rows of the table, and the lab's tests that stand behind each.

/// A claim, and the tests that show it.
pub struct Scenario {
    pub claim: &'static str,
    pub tests: &'static [&'static str],
    /// Is it a part of `cargo xtask test`? Emulated, a test takes half a minute.
    pub always: bool,
}

const fn always(claim: &'static str, tests: &'static [&'static str]) -> Scenario {
    Scenario { claim, tests, always: true }
}

const fn row(claim: &'static str, tests: &'static [&'static str]) -> Scenario {
    Scenario { claim, tests, always: false }
}

/// All rows.
pub const SCENARIOS: &[Scenario] = &[
    always(
        "it has what is claimed of it, and lacks the rest",
        &["trace_kernel::every_claim_about_versions_holds_here"],
    ),
    row(
        "hop limit 1: drops are counted as the kernel counts them",
        &["trace_hop_limit::hundreds_of_lost_token_responses_are_counted_as_the_kernel_counts_them"],
    ),
    row("hop limit 2: all is well", &["trace_hop_limit::a_hop_limit_of_two_is_enough_and_leaves_nothing_over"]),
    always(
        "hop limit 1: the drop is named, on a bridge made later too",
        &["trace_hop_limit::a_bridge_made_later_loses_the_token_response_like_docker0"],
    ),
    always("IPv6, hop limit 1", &["trace_hop_limit::over_ipv6_a_lost_token_response_is_found_and_counted"]),
    row("IPv6, hop limit 2", &["trace_hop_limit::over_ipv6_a_hop_limit_of_two_is_enough"]),
    row("a firewall's drop is named", &["trace_causes::a_firewall_in_the_containers_own_namespace_is_named"]),
    row(
        "no route, and reverse path",
        &[
            "trace_causes::a_container_without_a_route_never_leaves",
            "trace_causes::an_answer_that_fails_the_reverse_path_is_named",
        ],
    ),
    always(
        "container and process are named, however brief",
        &["trace_identity::a_container_that_lives_a_moment_is_named"],
    ),
    row(
        "a client's own TCP says to the byte what it received",
        &[
            "trace_witness::a_clients_tcp_says_to_the_byte_what_it_received",
            "trace_witness::what_a_client_lost_its_tcp_did_not_receive",
            "trace_witness::a_mapped_address_is_counted_as_the_ipv4_address_it_is",
            "trace_witness::who_accepts_is_no_client",
            "trace_witness::who_never_connected_counted_nothing",
        ],
    ),
    row("nothing is left after SIGTERM", &["trace_guest::nothing_is_left_after_sigterm"]),
    always(
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
    // In a machine of its own: bare.sh.
    always(
        "copied to a machine with a kernel and nothing else, it runs",
        &["bare::it_says_its_version", "bare::it_looks_around", "bare::it_traces"],
    ),
];

/// Rows: all, or those that are always run.
pub fn chosen(all: bool) -> Vec<&'static Scenario> {
    SCENARIOS.iter().filter(|scenario| all || scenario.always).collect()
}

/// The names of the tests behind rows.
pub fn tests(rows: &[&'static Scenario]) -> Vec<&'static str> {
    rows.iter().flat_map(|scenario| scenario.tests.iter().copied()).collect()
}

/// Is it a test of the lab, and not of the bare machine?
pub fn is_of_lab(test: &str) -> bool {
    !test.starts_with("bare::")
}
