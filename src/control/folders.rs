//! The folders that routes serve files from, and the threads that read them.

use std::io;
use std::sync::Arc;

use super::RunError;
use crate::config::Config;
use crate::service::web::files::folder::Folder;
use crate::service::web::files::readers::Readers;

/// The folders of all routes.
#[derive(Debug, Default)]
pub(super) struct Folders {
    /// The threads; there exactly where a route serves files.
    pub(super) readers: Option<Readers>,
    /// By the routes' index; `None` for a route that serves no files.
    pub(super) folders: Vec<Option<Arc<Folder>>>,
}

/// Looks at them, and starts the threads if there is one.
pub(super) fn open(config: &Config) -> Result<Folders, RunError> {
    let open = |route: &crate::config::Route| {
        let Some(files) = &route.files else { return Ok(None) };
        match Folder::open(&route.name, files) {
            Ok(folder) => Ok(Some(Arc::new(folder))),
            Err(error) => Err(RunError::Folder {
                route: route.name.clone(),
                folder: files.folder.name.clone(),
                error: explained(error),
            }),
        }
    };
    let folders: Vec<_> = config.routes.iter().map(open).collect::<Result<_, _>>()?;
    let is_read = folders.iter().any(Option::is_some);
    let readers = is_read.then(Readers::start).transpose().map_err(RunError::System)?;
    Ok(Folders { readers, folders })
}

fn explained(error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::Unsupported {
        return error;
    }
    io::Error::other(
        "there is no openat2 here, which keeps links within the folder; it takes Linux 5.6, and a filter of system calls \
         that lets it pass",
    )
}
