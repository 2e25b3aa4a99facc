//! What is told to whoever started us as a service? systemd's protocol: ready, what is watched, still alive, ending.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

use diagnosis::printable::causes;

/// The service manager that `$NOTIFY_SOCKET` leads to, if there is one.
#[derive(Debug, Default)]
pub(super) struct Supervisor {
    is_there: bool,
    /// How often it wants to hear that we are alive, and when it does next.
    watchdog: Option<(Duration, Instant)>,
    /// What it was told last of what is watched.
    told: String,
    /// It did not listen, which was said once.
    is_deaf: bool,
}

impl Supervisor {
    /// The one that the environment names. What does not speak for a whole service has none: see [`Default`].
    pub(super) fn of_environment() -> Self {
        // Twice as often as it asks for (sd_watchdog_enabled(3)); never without a pause.
        let watchdog = sd_notify::watchdog_enabled().map(|limit| (limit / 2, Instant::now()));
        let is_there = std::env::var_os("NOTIFY_SOCKET").is_some();
        Self { is_there, watchdog, ..Self::default() }
    }

    /// Everything is attached.
    pub(super) fn ready(&mut self, watched: &str) {
        watched.clone_into(&mut self.told);
        self.tell(&[NotifyState::Ready, NotifyState::Status(watched)]);
    }

    /// What is watched now.
    pub(super) fn status(&mut self, watched: &str) {
        if self.told != watched {
            watched.clone_into(&mut self.told);
            self.tell(&[NotifyState::Status(watched)]);
        }
    }

    /// The main loop has come round.
    pub(super) fn alive(&mut self, now: Instant) {
        if let Some((every, next)) = self.watchdog
            && now >= next
        {
            self.watchdog = Some((every, now + every));
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// When the service manager wants to hear again that we are alive.
    pub(super) fn next(&self) -> Option<Instant> {
        self.watchdog.map(|(_, next)| next)
    }

    /// The main loop has ended.
    pub(super) fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// Tells it. That it does not listen now is no reason to end: it may be starting anew.
    fn tell(&mut self, news: &[NotifyState<'_>]) {
        if self.is_there
            && let Err(error) = sd_notify::notify(news)
            && !std::mem::replace(&mut self.is_deaf, true)
        {
            log::warn!("tell the service manager at $NOTIFY_SOCKET: {}", causes(&error));
        }
    }
}
