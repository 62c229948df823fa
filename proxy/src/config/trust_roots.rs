//! `certificateAuthorityFile` and `certificateAuthority`: whom to trust beside the system's verifiers.

use std::path::PathBuf;

use berth_config::Section;

use crate::oidc::TrustRoots;

/// Reads both keys.
pub fn read(section: &Section<'_>) -> TrustRoots {
    let key = section.path_of("certificateAuthorityFile");
    let file = section.text("certificateAuthorityFile").map(PathBuf::from);
    let authority = TrustRoots::new(key.clone(), file, section.text("certificateAuthority").map(str::to_owned));
    if let Err(problem) = authority.certificates() {
        let message = problem.strip_prefix(&key).unwrap_or(&problem).trim_start_matches(": ");
        section.problem("certificateAuthorityFile", message);
    }
    authority
}
