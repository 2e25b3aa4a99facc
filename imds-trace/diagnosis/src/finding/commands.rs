//! With which commands does one look at what a finding says, and where are they to run?

use super::Case;
use crate::net::Netns;
use crate::printable::shell_word;

impl Case<'_> {
    /// The command that shows how the instance is set.
    pub(super) fn describe_options(&self) -> String {
        format!(
            "aws ec2 describe-instances --instance-ids {} --query 'Reservations[].Instances[].MetadataOptions'",
            self.instance()
        )
    }

    /// What goes before a command that is to run in this namespace: nothing in the host's.
    pub(super) fn enter(&self, netns: Netns) -> String {
        if netns == self.host.netns || netns == Netns::default() {
            return String::new();
        }
        // A container's first process lives as long as it does; the one that asked may be gone, or have been elsewhere.
        let asked = self.who.process.as_ref().filter(|_| self.who.netns == Some(netns)).map(|process| process.pid);
        match self.directory.pid_in(netns, self.exchange.opened).or(asked) {
            Some(pid) => format!("nsenter -t {pid} -n "),
            None => "nsenter -t <pid> -n ".to_owned(),
        }
    }

    /// The tool for firewall rules of the endpoint's address family.
    pub(super) fn iptables(&self) -> &'static str {
        if self.exchange.endpoint.address.is_ipv4() { "iptables" } else { "ip6tables" }
    }

    /// The commands that show what redirects the client's packets on this host: a process of the host's own namespace meets OUTPUT,
    /// whatever is forwarded PREROUTING. Where it may have been redirected before it came to this host's, those of its client's too.
    pub(super) fn redirects(&self) -> Vec<String> {
        let rules = |chain: &str| format!("{} -t nat -vnL {chain} --line-numbers", self.iptables());
        let own = self.who.netns.filter(|netns| *netns != self.host.netns);
        let chain = if self.who.netns.is_some() && own.is_none() { "OUTPUT" } else { "PREROUTING" };
        let inside = own
            .filter(|_| self.exchange.redirected.is_some_and(|redirect| redirect.before))
            .map(|netns| self.enter(netns));
        let inside = inside.map(|enter| format!("{enter}{}", rules("OUTPUT")));
        [rules(chain), "nft -a list ruleset".to_owned()].into_iter().chain(inside).collect()
    }

    /// The command that asks IMDS from inside the client's container, if it is one. Of one inside another the network is not that of the
    /// outer one, which alone has a name here.
    pub(super) fn probe(&self) -> Option<String> {
        let container = self.who.container.as_ref().filter(|container| container.inner.is_none())?;
        Some(format!("imds-trace probe {}", shell_word(&container.handle())))
    }
}
