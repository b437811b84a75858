//! The paths of one host, and the route that each has: a tree of the crate matchit, taught what a pattern means here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::config::PathPattern;

/// Finds the route of a path.
#[derive(Clone, Debug, Default)]
pub(super) struct Paths {
    tree: matchit::Router<usize>,
}

impl Paths {
    /// The tree of patterns of which no two are equal, each with the index of its route.
    pub(super) fn new(patterns: &[(&PathPattern, usize)]) -> Self {
        let mut tree = matchit::Router::new();
        let mut add = |path: String, route_index| {
            tree.insert(path, route_index).expect("no two are equal, and what is special is escaped");
        };
        // What one pattern alone is for: an exact path, which wins, and the root of a tree, with the slash and without.
        let mut alone: BTreeMap<Cow<'_, [u8]>, usize> = BTreeMap::new();
        for &(pattern, route_index) in patterns {
            if let PathPattern::Prefix(prefix) = pattern {
                if !prefix.is_empty() {
                    alone.insert(prefix.into(), route_index);
                }
                alone.insert([prefix.as_slice(), b"/"].concat().into(), route_index);
                add(format!("{}/{{*below}}", escaped(prefix)), route_index);
            }
        }
        for &(pattern, route_index) in patterns {
            if let PathPattern::Exact(path) = pattern {
                alone.insert(path.into(), route_index);
            }
        }
        for (path, route_index) in alone {
            add(escaped(&path), route_index);
        }
        Self { tree }
    }

    /// The index of the route for `path`, which is [`text`] of a canonical path.
    ///
    /// Takes memory only where the path lies in a tree within a tree: matchit notes where it could have turned off.
    pub(super) fn find(&self, path: &str) -> Option<usize> {
        self.tree.at(path).ok().map(|found| *found.value)
    }
}

/// A canonical path as the text that the tree knows: itself, but for bytes that are not UTF-8.
///
/// Those become U+0001 and two digits. No canonical path has control characters, so no two paths have one text.
pub(super) fn text(path: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(path) {
        return text.into();
    }
    let mut text = String::with_capacity(path.len() + 8);
    for chunk in path.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            write!(text, "\u{1}{byte:02x}").expect("a string takes every write");
        }
    }
    text.into()
}

/// The text of a path as matchit takes it literally.
fn escaped(path: &[u8]) -> String {
    text(path).replace('{', "{{").replace('}', "}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(patterns: &[&str]) -> Paths {
        let patterns: Vec<PathPattern> =
            patterns.iter().map(|pattern| PathPattern::parse(pattern).unwrap()).collect();
        let patterns: Vec<(&PathPattern, usize)> = patterns.iter().zip(0..).collect();
        Paths::new(&patterns)
    }

    #[test]
    fn braces_are_letters_like_others() {
        let paths = paths(&["/{x}", "/{rest}/*", "/a{b/*", "/a}b", "/{{", "/*"]);
        for (path, expected) in [
            ("/{x}", 0),
            ("/x", 5),
            ("/{rest}", 1),
            ("/{rest}/x", 1),
            ("/rest/x", 5),
            ("/a{b/c", 2),
            ("/a{{b/c", 5),
            ("/a}b", 3),
            ("/{{", 4),
            ("/{", 5),
        ] {
            assert_eq!(paths.find(path), Some(expected), "{path}");
        }
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_told_apart() {
        let paths = paths(&["/%FF", "/%FF/*", "/%FE", "/%25FF", "/%C3%A9", "/%C3"]);
        let cases: [(&[u8], Option<usize>); 8] = [
            (b"/\xff", Some(0)),
            (b"/\xff/x", Some(1)),
            (b"/\xfe", Some(2)),
            (b"/%FF", Some(3)),
            ("/é".as_bytes(), Some(4)),
            (b"/\xc3", Some(5)),
            (b"/\xc3\xa9x", None),
            ("/\u{fffd}".as_bytes(), None),
        ];
        for (path, expected) in cases {
            assert_eq!(paths.find(&text(path)), expected, "{path:?}");
        }
    }
}
