//! A folder, and what of it a request gets: looked up and read by threads that may wait for a disk.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat2};
use rustix::io::{Errno, pread};

use super::conditions::{Conditions, Verdict};
use super::media_type;
use crate::config::web::{Coding, Files};
use crate::net::clock;

/// The most bytes that are read at once: what a response holds of its file, twice at most.
pub const CHUNK_SIZE: usize = 64 << 10;

/// A fault of the file system is logged once in this time for a folder, however many requests meet it.
const LOG_EVERY_MS: u64 = 1_000;

/// How often a lookup is tried again that the kernel gave up because something was renamed meanwhile (`openat2(2)`).
const RACES_MAX: u32 = 8;

/// A folder whose files are served.
#[derive(Debug)]
pub struct Folder {
    route: String,
    files: Files,
    logged_ms: AtomicU64,
}

/// What a request wants of a folder.
#[derive(Debug)]
pub struct Wanted {
    /// The path below the folder, unescaped, its segments neither empty nor of dots alone. Nothing where the folder itself is
    /// meant and the slash is missing.
    pub path: Vec<u8>,
    /// Whether only the head of the response is wanted.
    pub is_head: bool,
    /// Whether the client takes a page in place of what is missing.
    pub takes_html: bool,
    /// The codings in which the client would rather have it, the best first.
    pub codings: Vec<Coding>,
    /// What it makes the answer depend on.
    pub conditions: Conditions,
}

/// What it gets.
#[derive(Debug)]
pub enum Answer {
    /// A file.
    Found(Box<Found>),
    /// A folder, in whose place there may be a page, behind the slash.
    Folder,
    /// Nothing that is served.
    Missing,
    /// Something that the gateway may not read.
    Forbidden,
    /// Not now: descriptors or readers are short.
    Busy,
    /// The file system failed.
    Broken,
}

/// A file, and what the request makes of it.
#[derive(Debug)]
pub struct Found {
    /// What is answered.
    pub verdict: Verdict,
    /// Its tag, in its quotes.
    pub etag: String,
    /// When it was changed last, in seconds since the Unix epoch.
    pub modified: Option<u64>,
    /// Its size in bytes.
    pub size: u64,
    /// The coding it is in, if that is not its type's own.
    pub coding: Option<Coding>,
    /// Its media type.
    pub media_type: String,
    /// The beginning of what is sent.
    pub first: Bytes,
    /// The rest of it; `None` where that is all.
    pub rest: Option<Rest>,
}

/// What of a file is still to be read, at least one byte.
#[derive(Debug)]
pub struct Rest {
    file: OwnedFd,
    offset: u64,
    left: u64,
}

impl Folder {
    /// The folder of this route, which is there.
    ///
    /// It is opened anew for each lookup: what is published by putting another folder or link in its place is served at once.
    ///
    /// # Errors
    /// Where it is none, or cannot be read; [`io::ErrorKind::Unsupported`] where the kernel or a filter of system calls has
    /// no `openat2`, without which nothing would keep links within the folder.
    pub fn open(route: &str, files: &Files) -> io::Result<Self> {
        match beneath(&root(files)?, b".") {
            Ok(_) => {}
            Err(Errno::NOSYS | Errno::PERM) => return Err(io::ErrorKind::Unsupported.into()),
            Err(error) => return Err(error.into()),
        }
        Ok(Self { route: route.to_owned(), files: files.clone(), logged_ms: AtomicU64::new(0) })
    }

    /// What the configuration says of it.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Looks a path up, and reads the beginning of what is to be sent.
    pub fn look(&self, wanted: &Wanted) -> Answer {
        let Some(path) = wanted.path.strip_prefix(b"/") else { return Answer::Folder };
        let root = match root(&self.files) {
            Ok(root) => root,
            Err(errno) => return self.gone(errno),
        };
        let mut path = path.to_vec();
        let is_folder = path.is_empty() || path.ends_with(b"/");
        if is_folder {
            path.extend_from_slice(self.files.index.as_bytes());
        }
        let found = match self.open_file(&root, &path) {
            // What stands for a folder is none.
            Err(Answer::Folder) if is_folder => Err(Answer::Missing),
            found => found,
        };
        let found = match found {
            Err(Answer::Missing) if wanted.takes_html => match &self.files.fallback {
                Some(fallback) => {
                    path = fallback.trim_start_matches('/').as_bytes().to_vec();
                    self.open_file(&root, &path).map_err(|answer| match answer {
                        Answer::Folder => Answer::Missing,
                        answer => answer,
                    })
                }
                None => Err(Answer::Missing),
            },
            found => found,
        };
        let (mut file, mut stat) = match found {
            Ok(found) => found,
            Err(answer) => return answer,
        };
        let mut coding = None;
        for &offered in &wanted.codings {
            let variant = [&path, offered.suffix().as_bytes()].concat();
            if let Ok(found) = self.open_file(&root, &variant) {
                (file, stat) = found;
                coding = Some(offered);
                break;
            }
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        let etag = etag(&stat, coding);
        // RFC 9110 section 8.8.2.1: no later than now. (Nor are there dates beyond the year 9999.)
        let modified = u64::try_from(stat.st_mtime).ok().map(|modified| modified.min(now_s()));
        let verdict = wanted.conditions.judge(&etag, modified, size);
        let (offset, left) = match verdict {
            _ if wanted.is_head => (0, 0),
            Verdict::Whole => (0, size),
            Verdict::Part { first, last } => (first, last - first + 1),
            Verdict::NotModified | Verdict::Failed | Verdict::Unsatisfiable => (0, 0),
        };
        let (first, rest) = if left == 0 {
            (Bytes::new(), None)
        } else {
            match (Rest { file, offset, left }).read() {
                Ok(read) => read,
                Err(error) => return self.fault(&path, Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            }
        };
        let media_type = media_type(&path).into_owned();
        Answer::Found(Box::new(Found { verdict, etag, modified, size, coding, media_type, first, rest }))
    }

    /// Says once in a while that a file broke off.
    pub fn log(&self, error: &io::Error) {
        if self.may_log() {
            tracing::error!(route = self.route, %error, "a file could not be read to its end");
        }
    }

    /// The folder itself is not there any more, or not to be had.
    fn gone(&self, errno: Errno) -> Answer {
        if self.may_log() {
            let (folder, error) = (&self.files.folder.name, io::Error::from(errno));
            tracing::error!(route = self.route, folder, %error, "a folder cannot be served from any more");
        }
        match errno {
            Errno::MFILE | Errno::NFILE | Errno::NOMEM => Answer::Busy,
            _ => Answer::Missing,
        }
    }

    /// Opens a regular file.
    fn open_file(&self, root: &OwnedFd, path: &[u8]) -> Result<(OwnedFd, Stat), Answer> {
        let opened = beneath(root, path).and_then(|file| fstat(&file).map(|stat| (file, stat)));
        let (file, stat) = opened.map_err(|errno| self.fault(path, errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok((file, stat)),
            FileType::Directory => Err(Answer::Folder),
            _ => Err(Answer::Missing),
        }
    }

    /// What an error says to the client, and to the log where it is nobody's business but the operator's.
    fn fault(&self, path: &[u8], errno: Errno) -> Answer {
        let answer = match errno {
            // EXDEV is a link that leads out of the folder.
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::LOOP
            | Errno::XDEV
            | Errno::NAMETOOLONG
            | Errno::INVAL
            | Errno::NXIO
            | Errno::NODEV => return Answer::Missing,
            Errno::ACCESS | Errno::PERM => Answer::Forbidden,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN => Answer::Busy,
            _ => Answer::Broken,
        };
        if self.may_log() {
            let (file, error) = (OsStr::from_bytes(path), io::Error::from(errno));
            tracing::warn!(route = self.route, ?file, %error, "a file cannot be served");
        }
        answer
    }

    fn may_log(&self) -> bool {
        let now_ms = clock::monotonic_ms();
        let logged_ms = self.logged_ms.load(Ordering::Relaxed);
        (logged_ms == 0 || now_ms.saturating_sub(logged_ms) >= LOG_EVERY_MS)
            && self
                .logged_ms
                .compare_exchange(logged_ms, now_ms.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// The time of day, in seconds since the Unix epoch.
fn now_s() -> u64 {
    clock::time_of_day().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The folder, to look things up in.
fn root(files: &Files) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(&files.folder.path, flags, Mode::empty())
}

impl Rest {
    /// Reads one chunk.
    ///
    /// # Errors
    /// Those of the system; [`io::ErrorKind::UnexpectedEof`] where the file has become shorter.
    pub fn read(self) -> io::Result<(Bytes, Option<Self>)> {
        let Self { file, mut offset, mut left } = self;
        let size = usize::try_from(left).unwrap_or(CHUNK_SIZE).min(CHUNK_SIZE);
        let mut chunk = vec![0; size];
        let mut filled = 0;
        while filled < size {
            match pread(&file, &mut chunk[filled..], offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    filled += read;
                    offset += read as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        left -= size as u64;
        Ok((chunk.into(), (left > 0).then_some(Self { file, offset, left })))
    }
}

/// Opens what is below a folder, and never anything outside of it: no link and no `..` leads out. Nothing is waited for
/// that is no file.
fn beneath(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut races = 0;
    loop {
        match openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if races < RACES_MAX => races += 1,
            Err(Errno::INTR) => {}
            opened => return opened,
        }
    }
}

/// A strong tag (RFC 9110 section 8.8.3): a file that is written anew has another inode or time, or another size.
fn etag(stat: &Stat, coding: Option<Coding>) -> String {
    let coding = coding.map(|coding| format!("-{}", coding.label())).unwrap_or_default();
    let (size, inode, s, ns) = (stat.st_size, stat.st_ino, stat.st_mtime, stat.st_mtime_nsec);
    format!("\"{size:x}-{s:x}.{ns:x}-{inode:x}{coding}\"")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;
    use crate::config::Config;

    /// A folder of a test's own, gone when the test is.
    struct Scene {
        path: PathBuf,
    }

    impl Scene {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("ringway-files-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(path.join("public/sub")).unwrap();
            fs::write(path.join("secret"), "secret").unwrap();
            fs::write(path.join("public/a.js"), "let a = 1;").unwrap();
            fs::write(path.join("public/index.html"), "<p>start").unwrap();
            fs::write(path.join("public/empty"), "").unwrap();
            Self { path }
        }

        fn public(&self) -> PathBuf {
            self.path.join("public")
        }

        fn folder(&self, keys: &str) -> Folder {
            let text = format!(
                "[[port]]\nnumber = 80\n[[route]]\npath = \"/*\"\nservice = \"files\"\nfolder = \"public\"\n{keys}"
            );
            let (config, _) = Config::from_toml(&text, &self.path).unwrap();
            Folder::open("files", config.routes[0].files.as_ref().unwrap()).unwrap()
        }
    }

    impl Drop for Scene {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.path);
        }
    }

    fn wanted(path: &str) -> Wanted {
        Wanted {
            path: path.into(),
            is_head: false,
            takes_html: false,
            codings: Vec::new(),
            conditions: Conditions::default(),
        }
    }

    /// What a path leads to, in short.
    fn look(folder: &Folder, wanted: &Wanted) -> String {
        match folder.look(wanted) {
            Answer::Found(found) => {
                assert_eq!(found.verdict, Verdict::Whole);
                String::from_utf8(found.first.to_vec()).unwrap()
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn files_and_folders_are_told_apart() {
        let scene = Scene::new("apart");
        let folder = scene.folder("");
        for (path, expected) in [
            ("/a.js", "let a = 1;"),
            ("/", "<p>start"),
            ("", "Folder"),
            ("/sub", "Folder"),
            ("/sub/", "Missing"),
            ("/a.js/", "Missing"),
            ("/a.js/b", "Missing"),
            ("/A.js", "Missing"),
            ("/empty", ""),
            ("/none", "Missing"),
            ("/nul\0byte", "Missing"),
        ] {
            assert_eq!(look(&folder, &wanted(path)), expected, "{path}");
        }
        assert_eq!(look(&folder, &wanted(&format!("/{}", "x".repeat(300)))), "Missing");
    }

    #[test]
    fn nothing_leads_out_of_the_folder_and_nothing_but_files_is_read() {
        let scene = Scene::new("out");
        let public = scene.public();
        symlink("../secret", public.join("up")).unwrap();
        symlink(scene.path.join("secret"), public.join("absolute")).unwrap();
        symlink("/", public.join("slash")).unwrap();
        symlink("/dev/zero", public.join("zero")).unwrap();
        symlink("/proc/self/environ", public.join("environ")).unwrap();
        symlink("loop", public.join("loop")).unwrap();
        symlink("a.js", public.join("inside")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, public.join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let folder = scene.folder("");
        for path in
            ["/up", "/absolute", "/slash/etc/passwd", "/zero", "/environ", "/loop", "/fifo", "/../secret"]
        {
            assert_eq!(look(&folder, &wanted(path)), "Missing", "{path}");
        }
        assert_eq!(look(&folder, &wanted("/inside")), "let a = 1;");
    }

    #[test]
    fn a_page_that_is_missing_is_the_fallback_and_a_script_is_not() {
        let scene = Scene::new("fallback");
        let folder = scene.folder("fallback = \"/index.html\"\n");
        let page = |path| Wanted { takes_html: true, ..wanted(path) };
        assert_eq!(look(&folder, &page("/none/deeper")), "<p>start");
        assert_eq!(look(&folder, &page("/a.js")), "let a = 1;");
        assert_eq!(look(&folder, &wanted("/none.js")), "Missing");
    }

    #[test]
    fn what_was_compressed_beforehand_has_the_type_of_the_original_and_a_tag_of_its_own() {
        let scene = Scene::new("compressed");
        fs::write(scene.public().join("a.js.gz"), "packed").unwrap();
        fs::write(scene.public().join("b.js.gz"), "alone").unwrap();
        let folder = scene.folder("precompressed = [\"br\", \"gzip\"]\n");
        let found = |codings: &[Coding]| match folder
            .look(&Wanted { codings: codings.to_vec(), ..wanted("/a.js") })
        {
            Answer::Found(found) => found,
            other => panic!("{other:?}"),
        };
        let (plain, packed) = (found(&[]), found(&[Coding::Br, Coding::Gzip]));
        assert_eq!((plain.coding, plain.size, &plain.first[..]), (None, 10, &b"let a = 1;"[..]));
        assert_eq!((packed.coding, packed.size, &packed.first[..]), (Some(Coding::Gzip), 6, &b"packed"[..]));
        assert_eq!(packed.media_type, plain.media_type);
        assert_eq!(plain.media_type, "text/javascript; charset=utf-8");
        assert_ne!(packed.etag, plain.etag);
        let alone = Wanted { codings: vec![Coding::Gzip], ..wanted("/b.js") };
        assert_eq!(look(&folder, &alone), "Missing", "the original is what is asked for");
    }

    #[test]
    fn a_file_is_read_chunk_by_chunk_and_one_that_became_shorter_breaks_off() {
        let scene = Scene::new("chunks");
        let big: Vec<u8> = (0..3 * CHUNK_SIZE + 5).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let path = scene.public().join("big");
        fs::write(&path, &big).unwrap();
        let folder = scene.folder("");
        let begin = || match folder.look(&wanted("/big")) {
            Answer::Found(found) => (found.first.to_vec(), found.rest.unwrap()),
            other => panic!("{other:?}"),
        };
        let (mut all, rest) = begin();
        let mut rest = Some(rest);
        while let Some(part) = rest {
            let (chunk, left) = part.read().unwrap();
            assert!(chunk.len() <= CHUNK_SIZE);
            all.extend_from_slice(&chunk);
            rest = left;
        }
        assert_eq!(all, big);

        let (_, rest) = begin();
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, b"more"))
            .unwrap();
        let (_, rest) = rest.read().unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(CHUNK_SIZE as u64 + 1).unwrap();
        assert_eq!(rest.unwrap().read().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn another_folder_in_its_place_is_served_at_once() {
        let scene = Scene::new("place");
        let folder = scene.folder("");
        fs::rename(scene.public(), scene.path.join("old")).unwrap();
        assert_eq!(look(&folder, &wanted("/a.js")), "Missing");
        fs::create_dir(scene.path.join("new")).unwrap();
        fs::write(scene.path.join("new/a.js"), "let a = 2;").unwrap();
        symlink("new", scene.public()).unwrap();
        assert_eq!(look(&folder, &wanted("/a.js")), "let a = 2;");
    }

    #[test]
    fn a_folder_that_is_none_is_no_start() {
        let scene = Scene::new("none");
        let files = scene.folder("").files().clone();
        fs::rename(scene.public(), scene.path.join("elsewhere")).unwrap();
        assert_eq!(Folder::open("files", &files).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(scene.public(), "a file").unwrap();
        assert_eq!(Folder::open("files", &files).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
