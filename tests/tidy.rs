//! The rules of the house that no compiler checks: the floors, where unsafe and I/O may live, what no file may hold.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The floors from the top down. A file uses its own floor and those below it, never one above.
const FLOORS: [&str; 12] = [
    "main", "lib", "cli", "bench", "control", "shard", "service", "route", "net", "metrics", "config",
    "protocol",
];

/// A source file longer than this many lines has two subjects: split it.
const LINES_MAX: usize = 900;

/// What the protocol floor must not name, as `::`-joined paths: sockets, files, clocks, threads and runtimes.
///
/// `std::io` is not among them: its `Write` appends to a `Vec`.
const NOT_IN_PROTOCOL: [&[&str]; 10] = [
    &["std", "net"],
    &["std", "fs"],
    &["std", "thread"],
    &["std", "time", "Instant"],
    &["SystemTime"],
    &["tokio"],
    &["monoio"],
    &["hyper"],
    &["socket2"],
    &["rustix"],
];

/// Folders that hold what tools made, not what people wrote.
const NOT_OURS: [&str; 8] =
    ["target", ".git", ".environment", "node_modules", "__pycache__", "corpus", "artifacts", "coverage"];

#[test]
fn a_file_uses_its_own_floor_and_those_below() {
    let mut faults = Vec::new();
    for file in sources() {
        let own = floor_index(&file.floor).unwrap_or_else(|| panic!("{} stands on no floor", file.name));
        for reference in floor_references(&file.trees) {
            let named = floor_index(&reference.floor).expect("only floors are collected");
            if named < own {
                faults.push(format!("{}:{} reaches up to {}", file.name, reference.line, reference.floor));
            }
        }
    }
    faults.dedup();
    assert_none(&faults);
}

#[test]
fn unsafe_lives_in_net_alone() {
    let outside = sources().into_iter().filter(|file| file.floor != "net");
    let faults: Vec<_> = outside.flat_map(|file| places(&file, &["unsafe"])).collect();
    assert_none(&faults);
}

#[test]
fn the_protocol_floor_knows_no_sockets_clocks_or_runtimes() {
    let mut faults = Vec::new();
    for file in sources().iter().filter(|file| file.floor == "protocol") {
        for path in NOT_IN_PROTOCOL {
            faults.extend(places(file, path));
        }
    }
    assert_none(&faults);
}

#[test]
fn a_source_file_says_first_what_it_is_for() {
    let faults: Vec<_> = sources()
        .iter()
        .filter(|file| !file.text.starts_with("//! "))
        .map(|file| file.name.clone())
        .collect();
    assert_none(&faults);
}

#[test]
fn a_file_has_one_subject() {
    let rust = texts().into_iter().filter(|(name, _)| extension_is(name, "rs"));
    let faults: Vec<_> = rust
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(name, lines)| format!("{name} has {lines} lines, {LINES_MAX} at most"))
        .collect();
    assert_none(&faults);
}

#[test]
fn nothing_is_left_for_later() {
    // Joined here so that this file does not find itself.
    let later =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("unimpl", "emented!"), concat!("todo", "!(")];
    assert_none(&lines_with(&later));
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    assert_none(&lines_with(&[concat!("/ro", "ot/"), concat!("/wo", "rk/"), concat!("/ho", "me/")]));
}

#[test]
fn the_checks_see_what_they_forbid() {
    let text = r#"
        //! `crate::shard` in a comment is not a use.
        use crate::{config::{self, Config}, net::Stream};
        use super::super::shard::Shard;
        const TEXT: &str = "crate::cli and unsafe";
        fn f() { unsafe { crate::control::g::<std::time::Instant>() } }
    "#;
    let trees = parse("sample", text);
    let floors: Vec<_> = floor_references(&trees).into_iter().map(|reference| reference.floor).collect();
    assert_eq!(floors, ["config", "config", "net", "shard", "control"]);
    let file =
        Source { name: "sample".to_owned(), floor: "protocol".to_owned(), text: text.to_owned(), trees };
    assert_eq!(places(&file, &["unsafe"]), ["sample:6 names unsafe"]);
    assert_eq!(places(&file, &["std", "time", "Instant"]), ["sample:6 names std::time::Instant"]);
    assert!(places(&file, &["tokio"]).is_empty());

    let grouped = Source { trees: parse("sample", "use std::{io, time::{Duration, Instant}};"), ..file };
    assert_eq!(places(&grouped, &["std", "time", "Instant"]), ["sample:1 names std::time::Instant"]);
    assert_eq!(places(&grouped, &["std", "io"]), ["sample:1 names std::io"]);
}

/// One file below `src`.
struct Source {
    /// The path from the package's root, for people.
    name: String,
    /// The floor it stands on: the first part of its path below `src`, without `.rs`.
    floor: String,
    text: String,
    /// The tokens, without comments.
    trees: Vec<TokenTree>,
}

/// A floor that a file names, and the line where it does.
struct FloorReference {
    floor: String,
    line: usize,
}

fn floor_index(floor: &str) -> Option<usize> {
    FLOORS.iter().position(|name| *name == floor)
}

/// Every Rust file below `src`.
fn sources() -> Vec<Source> {
    let sources: Vec<_> = texts()
        .into_iter()
        .filter(|(name, _)| name.starts_with("src/") && extension_is(name, "rs"))
        .map(|(name, text)| {
            let below = name.strip_prefix("src/").expect("filtered by this prefix");
            let floor = below.split('/').next().expect("split yields at least one part");
            let floor = floor.trim_end_matches(".rs").to_owned();
            let trees = parse(&name, &text);
            Source { name, floor, text, trees }
        })
        .collect();
    assert!(!sources.is_empty(), "no sources found below src");
    sources
}

/// Every text file of the package with its path from the root, in order.
fn texts() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the package can be read") {
            let path = entry.expect("a folder of the package can be read").path();
            let is_ours = NOT_OURS.iter().all(|name| !path.ends_with(name));
            if path.is_dir() && is_ours {
                folders.push(path);
            } else if path.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    files
        .into_iter()
        .filter_map(|path| {
            let name = path.strip_prefix(root).expect("found below the root").to_str()?.to_owned();
            // Pictures and the like are not text, and hold nothing to check.
            let text = String::from_utf8(fs::read(&path).expect("a file of the package can be read")).ok()?;
            Some((name, text))
        })
        .collect()
}

fn parse(name: &str, text: &str) -> Vec<TokenTree> {
    let stream: TokenStream = text.parse().unwrap_or_else(|fault| panic!("{name} is not Rust: {fault}"));
    stream.into_iter().collect()
}

/// The floors that paths from `crate::`, from `ringway::` and from two `super::` upwards name.
fn floor_references(trees: &[TokenTree]) -> Vec<FloorReference> {
    paths(trees)
        .into_iter()
        .filter_map(|(path, line)| {
            let supers = path.iter().take_while(|part| *part == "super").count();
            let floor = match path.first()?.as_str() {
                "crate" | "ringway" => path.get(1)?,
                "super" if supers >= 2 => path.get(supers)?,
                _ => return None,
            };
            floor_index(floor).map(|_| FloorReference { floor: floor.clone(), line })
        })
        .collect()
}

/// The places where the file names `wanted`, a path or the beginning or the end of one.
fn places(file: &Source, wanted: &[&str]) -> Vec<String> {
    paths(&file.trees)
        .into_iter()
        .filter(|(path, _)| path.windows(wanted.len()).any(|window| window == wanted))
        .map(|(_, line)| format!("{}:{line} names {}", file.name, wanted.join("::")))
        .collect()
}

/// Every path, a single word among them, with its line; `a::{b, c}` is `a::b` and `a::c`.
fn paths(trees: &[TokenTree]) -> Vec<(Vec<String>, usize)> {
    let mut found = Vec::new();
    let mut prefix: Vec<String> = Vec::new();
    let mut index = 0;
    while let Some(tree) = trees.get(index) {
        index += 1;
        let continues = is_colon(trees.get(index)) && is_colon(trees.get(index + 1));
        match tree {
            TokenTree::Ident(word) => {
                prefix.push(word.to_string());
                if continues {
                    index += 2;
                    continue;
                }
                found.push((std::mem::take(&mut prefix), word.span().start().line));
            }
            TokenTree::Group(group) => {
                let is_path_list = group.delimiter() == Delimiter::Brace && !prefix.is_empty();
                let outer = std::mem::take(&mut prefix);
                let inner: Vec<_> = group.stream().into_iter().collect();
                found.extend(paths(&inner).into_iter().map(|(path, line)| {
                    let path = if is_path_list { outer.iter().cloned().chain(path).collect() } else { path };
                    (path, line)
                }));
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => {
                // `a::<T>` and `a::*` end with what they have.
                if !prefix.is_empty() {
                    found.push((std::mem::take(&mut prefix), tree.span().start().line));
                }
            }
        }
    }
    found
}

fn is_colon(tree: Option<&TokenTree>) -> bool {
    matches!(tree, Some(TokenTree::Punct(punct)) if punct.as_char() == ':')
}

fn extension_is(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found == extension)
}

/// The lines of all files that hold one of the words.
fn lines_with(words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in texts() {
        for (index, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{name}:{}: {}", index + 1, line.trim()));
            }
        }
    }
    found
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "\n  {}", faults.join("\n  "));
}
