//! Files and directories that only their owner may read, because they may contain prompts.

use std::path::Path;

/// Creates a directory, and its missing parents, for its owner only. An existing directory keeps its mode: it may be
/// the operator's own, and what the cache creates in it is private even so.
pub(crate) fn create_directory(dir: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir)
}

/// Sets the mode of a file or directory of the cache's own to `mode` if other users have any access to it. A failure is
/// logged.
pub(crate) fn restrict(path: &Path, mode: u32) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let is_wider = |found: std::fs::Metadata| found.permissions().mode() & 0o077 != 0;
        let set = || std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
        if std::fs::metadata(path).is_ok_and(is_wider)
            && let Err(error) = set()
        {
            tracing::warn!(%error, path = %path.display(), "others may read prompts in it");
        }
    }
    #[cfg(not(unix))]
    let _ = (path, mode);
}
