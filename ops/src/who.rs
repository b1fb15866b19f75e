//! Who changes something, and why.

use rustix::process::geteuid;

#[derive(Debug, clap::Args)]
pub(crate) struct Who {
    /// Who does it, for those who look later. [default: you, also behind sudo]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
}

impl Who {
    /// The name: as it was given, or the user that is logged in, or else a number.
    pub(crate) fn name(&self) -> String {
        let before_sudo = || std::env::var("SUDO_USER").ok();
        let user = || whoami::username().ok();
        let names = [self.name.clone(), before_sudo(), user()];
        let name = names.into_iter().flatten().find(|name| !name.is_empty());
        name.unwrap_or_else(|| format!("uid {}", geteuid().as_raw()))
    }
}

/// Reads a reason that has to be given, for clap.
///
/// # Errors
/// It says nothing.
pub(crate) fn reason(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("say why: it stands beside what was changed".into()) } else { Ok(text.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_says_something() {
        assert_eq!(reason("the exam").unwrap(), "the exam");
        for text in ["", " ", "\t\n"] {
            assert!(reason(text).unwrap_err().starts_with("say why"), "{text:?}");
        }
    }
}
