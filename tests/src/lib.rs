//! What does a test need to put the tracer in front of a real kernel, a real container and a hop limit of one?
//!
//! ```text
//! netns imds    eth0 10.77.0.1/24, fd77::1/64     169.254.169.254:80 and [fd00:ec2::254]:80: the fake IMDS, in this process
//!    |  veth
//! netns runner  ens5 10.77.0.10/24, fd77::10/64   default route to imds; forwarding on; dockerd (or none: `Engine::Plain`)
//!    |  docker0
//! container     172.17.0.2, fd00:d0c::242:ac11:2
//! ```
//!
//! Everything is inside network namespaces of our own making: nothing here ever asks 169.254.169.254 by an interface of
//! the machine, and nobody else's engine is touched. What is made carries our pid in its name, so that whatever a killed
//! run leaves behind is known and swept: by its keeper at once ([`house`]), or by the next run at its start.
//!
//! It needs root, `ip`, `tc` and `iptables`; an engine is used where there is one.

pub mod attached;
pub mod bench;
pub mod captured;
pub mod capturer;
pub mod cgroup;
pub mod children;
pub mod container;
mod docker;
mod engine;
pub mod expect;
pub mod foreign;
pub mod frames;
pub mod host;
pub mod house;
mod image;
pub mod imds;
pub mod junit;
pub mod machine;
pub mod netns;
pub mod obstacle;
#[path = "../../xtask/src/dist/image.rs"]
pub mod oci;
pub mod own_network;
pub mod pieces;
pub mod pipelines;
mod plain;
pub mod real;
pub mod record;
pub mod runtimes;
pub mod service;
pub mod shipped;
pub mod spec;
pub mod topology;
pub mod tracer;

pub use container::{Container, Network};
pub use host::{Engine, HostOptions, RunnerHost};
pub use imds::{Behaviour, FakeImds, ForcedOn, LimitScope, Tokens};
pub use netns::Namespace;
pub use obstacle::Obstacle;
pub use spec::{ContainerSpec, NetworkSpec};
pub use tracer::{Outcome, Tracer};
