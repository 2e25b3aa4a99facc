//! Which rules does `iptables-nft-save` write without the set that they ask? It says nothing of it, and what is left would hold for all. Pure.

use super::nft::Listed;
use super::rules::Chain;

/// Puts what nft says of such rules in the place of what iptables says of them. Where both do not list as many rules, nft is believed.
pub fn complete(chains: &mut [Chain], listed: Vec<Listed>) {
    for Listed { chain: other, made } in listed {
        let same = |chain: &&mut Chain| {
            matches!(chain.tool, "iptables" | "ip6tables")
                && (&chain.family, &chain.table, &chain.name) == (&other.family, &other.table, &other.name)
        };
        let Some(chain) = chains.iter_mut().find(same).filter(|_| made.iter().any(|(_, asks)| *asks)) else { continue };
        if chain.rules.len() != made.len() {
            chain.rules = other.rules;
            continue;
        }
        let mut theirs = other.rules.into_iter();
        let mut rules = Vec::new();
        for (rule, (count, asks)) in std::mem::take(&mut chain.rules).into_iter().zip(made) {
            let said = theirs.by_ref().take(count);
            if asks {
                rules.extend(said);
            } else {
                said.for_each(drop);
                rules.push(rule);
            }
        }
        chain.rules = rules;
    }
}
