//! What is a client called in a label? What made it, never itself: containers come and go, and each of their names would be a series
//! for ever.

use std::collections::HashSet;

use crate::identity::{Attribution, Container};
use crate::printable::printable;
use crate::secret::mask;

/// Names at most.
const MAX_NAMES: usize = 50;
/// Bytes of a name.
const MAX_NAME: usize = 100;

/// The host's own processes. Nobody else can have a name in brackets: see [`name`].
const HOST: &str = "(host)";
/// Whoever cannot be named, or has neither pod nor service nor image.
const UNNAMED: &str = "(unnamed)";
/// Whoever comes when there are names enough.
const OTHER: &str = "(other)";

/// The names so far.
#[derive(Debug, Default)]
pub struct Workloads(HashSet<String>);

impl Workloads {
    /// The name of a client's workload.
    pub fn of(&mut self, who: &Attribution) -> String {
        let Some(container) = who.told() else { return HOST.to_owned() };
        let Some(name) = name(container) else { return UNNAMED.to_owned() };
        if self.0.contains(&name) {
            return name;
        }
        if self.0.len() >= MAX_NAMES {
            return OTHER.to_owned();
        }
        self.0.insert(name.clone());
        name
    }
}

/// What made a container: `NAMESPACE/WORKLOAD` of its pod, `PROJECT/SERVICE` of Compose, or its image without tag and digest.
fn name(container: &Container) -> Option<String> {
    let of_pod = container.pod.as_ref().and_then(|pod| {
        let workload = pod.workload()?;
        Some(pod.namespace.as_ref().map_or_else(|| workload.to_owned(), |namespace| format!("{namespace}/{workload}")))
    });
    let of_compose = || {
        let compose = container.compose.as_ref()?;
        Some(format!("{}/{}", compose.project, compose.service.as_deref()?))
    };
    let of_image = || container.image.as_deref().map(repository).map(str::to_owned);
    let name = of_pod.or_else(of_compose).or_else(of_image).filter(|name| !name.is_empty())?;
    Some(printable(&mask(&name), MAX_NAME).replace(['(', ')'], "_"))
}

/// An image's name without digest and tag: `registry:5000/team/app:v1` is `registry:5000/team/app`. One that is only a digest is none.
fn repository(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or_default();
    if name.starts_with("sha256:") {
        return "";
    }
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;
    use crate::identity::Key;
    use crate::identity::pod::Pod;

    fn client(image: &str) -> Attribution {
        let container = Container { id: "c".into(), image: Some(image.into()), ..Container::default() };
        let address = Ipv4Addr::LOCALHOST.into();
        Attribution { container: Some(container), by: Key::Cgroup, ..Attribution::of_nobody(Some(address)) }
    }

    #[test]
    fn a_label_is_what_made_the_container() {
        let mut workloads = Workloads::default();
        let digest = format!("app@sha256:{}", "0".repeat(64));
        for (image, name) in [
            ("registry:5000/team/app:v1", "registry:5000/team/app"),
            ("app", "app"),
            (&digest, "app"),
            (&digest[4..], "(unnamed)"),
            ("(host)", "_host_"),
            ("a\u{1b}[31m\u{202e}b", "a\\u{1b}[31m\\u{202e}b"),
        ] {
            assert_eq!(workloads.of(&client(image)), name);
        }
        let mut in_pod = client("app");
        if let Some(container) = &mut in_pod.container {
            let pod =
                Pod { name: Some("web-7d4b9c6f5-x2x4z".into()), namespace: Some("shop".into()), ..Pod::default() };
            container.pod = Some(Arc::new(pod));
        }
        assert_eq!(workloads.of(&in_pod), "shop/web");
        let host = Attribution { container: None, ..client("app") };
        assert_eq!(workloads.of(&host), "(host)");
    }

    #[test]
    fn however_many_names_there_are_the_labels_are_few() {
        let mut workloads = Workloads::default();
        let names: HashSet<String> =
            (0..10_000).map(|number| workloads.of(&client(&format!("app-{number}")))).collect();
        assert_eq!(names.len(), MAX_NAMES + 1);
        assert!(names.contains(OTHER));
        assert_eq!(workloads.of(&client("app-0")), "app-0");
        assert!(workloads.of(&client(&"x".repeat(9_999))).len() <= MAX_NAME);
    }
}
