//! `certificateAuthorityFile` and `certificateAuthority`: whom to trust beside the system's authorities.

use std::path::PathBuf;

use berth_config::Section;

use crate::oidc::Authority;

/// Reads both keys.
pub fn read(section: &Section<'_>) -> Authority {
    let key = section.path_of("certificateAuthorityFile");
    let file = section.text("certificateAuthorityFile").map(PathBuf::from);
    let authority = Authority::new(key.clone(), file, section.text("certificateAuthority").map(str::to_owned));
    if let Err(problem) = authority.certificates() {
        let message = problem.strip_prefix(&key).unwrap_or(&problem).trim_start_matches(": ");
        section.problem("certificateAuthorityFile", message);
    }
    authority
}
