//! On which interfaces is the tracer, as they come and go?

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::bail;
use tokio::sync::mpsc;

use super::MAX_SHOWN;
use crate::config::Tracing;
use crate::ethtool;
use crate::interfaces::{Change, Interfaces};
use crate::kernel::attach::Tracer;
use crate::kernel::ring::MachineNames;
use diagnosis::event::{Attached, Missing};
use diagnosis::identity::fact::{Forwarding, Network, Said};
use diagnosis::net::Ifindex;
use diagnosis::printable::printable;
use diagnosis::way::listen::{self, Wanted, Ways, Why};
use diagnosis::way::network::Link;

/// Interfaces whose names are remembered at most.
const MAX_NAMES: usize = 4096;

/// Keeps the tracer on the right interfaces.
pub(super) struct Follower<'a> {
    interfaces: Interfaces,
    pub(super) changes: mpsc::Receiver<Change>,
    links: BTreeMap<Ifindex, Link>,
    ways: Ways,
    /// Those that were there at the last look at everything.
    listed: BTreeSet<Ifindex>,
    networks: BTreeSet<Network>,
    /// The surroundings that were told last.
    told: Option<Said>,
    /// What was told last of forwarding.
    forwarding: Option<Forwarding>,
    /// Which interfaces forward, of those that were asked.
    forwards: BTreeMap<Ifindex, bool>,
    /// Interfaces that cannot be listened on, each told once.
    failed: BTreeMap<String, Missing>,
    config: &'a Tracing,
}

impl<'a> Follower<'a> {
    /// Knows nothing yet.
    pub(super) fn new(interfaces: Interfaces, changes: mpsc::Receiver<Change>, config: &'a Tracing) -> Self {
        Self {
            interfaces,
            changes,
            links: BTreeMap::new(),
            ways: Ways::default(),
            listed: BTreeSet::new(),
            networks: BTreeSet::new(),
            told: None,
            forwarding: None,
            forwards: BTreeMap::new(),
            failed: BTreeMap::new(),
            config,
        }
    }

    /// Looks at what is there. An error if an interface that was asked for is not.
    pub(super) async fn look(&mut self) -> anyhow::Result<()> {
        self.links = self.interfaces.list().await?.into_iter().map(|link| (link.index, link)).collect();
        for asked in self.config.interfaces.iter().filter(|asked| !asked.contains('*')) {
            if !self.links.values().any(|link| link.name == *asked) {
                bail!("--interface {asked}: no such interface in this network namespace");
            }
        }
        self.listed = self.links.keys().copied().collect();
        self.ways.settled.clone_from(&self.listed);
        self.ask_routes().await;
        self.networks = self.interfaces.addresses().await;
        Ok(())
    }

    /// What is to be listened on.
    pub(super) fn wanted(&self) -> Vec<Wanted> {
        listen::plan(&self.links, &self.ways, &self.config.interfaces)
    }

    /// Attaches to what is there. An error if nothing can be attached.
    pub(super) fn begin(&mut self, tracer: &mut Tracer, names: &mut MachineNames) -> anyhow::Result<()> {
        self.attach(tracer, names);
        if !tracer.attached().iter().any(|attached| matches!(attached, Attached::Tc { .. })) {
            match self.failed.values().next() {
                Some(missing) => bail!("{}", missing.why),
                // Nothing to listen on yet; a bridge or a route may come. Drops are seen all the same.
                None => diagnosis::say!(
                    "imds-trace: warning: no interface to listen on yet (no route to the endpoints, no bridge)"
                ),
            }
        }
        Ok(())
    }

    async fn ask_routes(&mut self) {
        (self.ways.towards, self.ways.routed) = self.interfaces.routes(&self.config.endpoints, &self.links).await;
    }

    fn attach(&mut self, tracer: &mut Tracer, names: &mut MachineNames) {
        let wanted = self.wanted();
        for wanted in &wanted {
            names.interfaces.insert(wanted.index, wanted.name.as_str().into());
        }
        while names.interfaces.len() > MAX_NAMES {
            // The kernel counts indices up: the lowest is the longest gone.
            names.interfaces.pop_first();
        }
        let (new, failed) = tracer.follow(&wanted);
        for new in new {
            let why = match new.why {
                Why::Asked => "--interface",
                Why::Route => "a route to an endpoint",
                Why::Nic => "a network card",
                Why::Bridge => "a container bridge",
                Why::Pair => "a container's or pod's own link",
            };
            log::info!("listening on {} ({why})", printable(&new.name, MAX_SHOWN));
        }
        for missing in failed {
            if !self.failed.contains_key(&missing.hook) && self.failed.len() < MAX_NAMES {
                log::warn!("{}", printable(&missing.why, MAX_SHOWN));
                self.failed.insert(missing.hook.clone(), missing);
            }
        }
    }

    /// What is known of the ways to IMDS, if that has changed since it was asked.
    pub(super) fn surroundings(&mut self, tracer: &Tracer) -> Option<Said> {
        let uplinks = self.ways.uplinks(&self.links);
        let said = Said::Uplinks {
            watched: !uplinks.is_empty() && uplinks.iter().all(|index| tracer.is_on(*index)),
            interfaces: uplinks.into_iter().collect(),
            inward: self.ways.inward(&self.links).into_iter().collect(),
            addresses: self
                .networks
                .iter()
                .map(|network| network.address)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            networks: self.networks.iter().copied().collect(),
        };
        (self.told.as_ref() != Some(&said)).then(|| {
            self.told = Some(said.clone());
            said
        })
    }

    /// What the settings of our namespace say of forwarding, if that has changed since it was asked.
    pub(super) fn forwarding(&mut self) -> Option<Said> {
        let on = |key: &str| match fs::read_to_string(format!("/proc/sys/net/{key}")).ok()?.trim() {
            "0" => Some(false),
            _ => Some(true),
        };
        let (v4, v6) = (on("ipv4/ip_forward"), on("ipv6/conf/all/forwarding"));
        if self.forwarding.as_ref().is_some_and(|told| told.v4 != v4) {
            // It sets all of them.
            self.forwards.clear();
        }
        let asked = &self.ways.uplinks(&self.links) | &self.ways.inward(&self.links);
        let mut off = Vec::new();
        for link in asked.iter().filter_map(|index| self.links.get(index)) {
            // Once an interface: where hundreds come one after the other, each change would ask for all of them.
            let forwards = self
                .forwards
                .entry(link.index)
                .or_insert_with(|| on(&format!("ipv4/conf/{}/forwarding", link.name)) != Some(false));
            if !*forwards {
                off.push(link.name.clone());
            }
        }
        self.forwards.retain(|index, _| asked.contains(index));
        let forwarding = Forwarding { v4, v6, off };
        (self.forwarding.as_ref() != Some(&forwarding)).then(|| {
            self.forwarding = Some(forwarding.clone());
            Said::Forwarding(forwarding)
        })
    }

    /// What the ENA drivers of the interfaces towards IMDS count of packets over the link-local allowance; nothing with other
    /// drivers.
    pub(super) fn exceeded(&self) -> Vec<Said> {
        let uplinks = self.ways.uplinks(&self.links).into_iter();
        let names = uplinks.filter_map(|index| self.links.get(&index)).map(|link| link.name.clone());
        names
            .filter_map(|interface| {
                let packets = ethtool::counter(&interface, ethtool::LINK_LOCAL_EXCEEDED).ok()??;
                Some(Said::LinkLocalExceeded { interface, packets })
            })
            .collect()
    }

    /// Everything that could not be attached so far.
    pub(super) fn missing(&self, tracer: &Tracer) -> Vec<Missing> {
        tracer.missing().iter().chain(self.failed.values()).cloned().collect()
    }

    /// Looks at everything anew: on a busy host a message about a change can be lost.
    pub(super) async fn look_again(&mut self, tracer: &mut Tracer, names: &mut MachineNames) {
        // Nobody tells when a setting changes.
        self.forwards.clear();
        if let Ok(links) = self.interfaces.list().await {
            self.links = links.into_iter().map(|link| (link.index, link)).collect();
            // What was there at the last look, and still is, has had time to become some bridge's port.
            let listed: BTreeSet<Ifindex> = self.links.keys().copied().collect();
            self.ways.settled = &listed & &self.listed;
            self.listed = listed;
            self.ask_routes().await;
            self.networks = self.interfaces.addresses().await;
            self.attach(tracer, names);
        }
    }

    /// Takes in a change, and those that wait behind it.
    pub(super) async fn change(&mut self, change: Change, tracer: &mut Tracer, names: &mut MachineNames) {
        let (mut routes_changed, mut addresses_changed) = (false, false);
        let mut next = Some(change);
        while let Some(change) = next {
            match change {
                Change::Link(link) => {
                    self.forwards.remove(&link.index);
                    self.links.insert(link.index, link);
                }
                Change::Gone(index) => {
                    self.forwards.remove(&index);
                    self.links.remove(&index);
                }
                Change::Routes => routes_changed = true,
                Change::Addresses => addresses_changed = true,
            }
            next = self.changes.try_recv().ok();
        }
        if routes_changed {
            self.ask_routes().await;
        }
        if addresses_changed {
            self.networks = self.interfaces.addresses().await;
        }
        self.attach(tracer, names);
    }
}
