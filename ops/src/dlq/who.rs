//! Who changes something: it is recorded with each change.

use rustix::process::geteuid;

#[derive(Debug, clap::Args)]
pub(super) struct Who {
    /// Who does it, for the history. [default: you, also behind sudo]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
}

impl Who {
    /// The name: as it was given, or the user that is logged in, or else a number.
    pub(super) fn name(&self) -> String {
        let before_sudo = || std::env::var("SUDO_USER").ok();
        let user = || whoami::username().ok();
        let names = [self.name.clone(), before_sudo(), user()];
        let name = names.into_iter().flatten().find(|name| !name.is_empty());
        name.unwrap_or_else(|| format!("uid {}", geteuid().as_raw()))
    }
}
