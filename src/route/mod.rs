//! From the port, host and path of a request to the route that answers it.
//!
//! An exact host wins over the longest wildcard, that over any host; among equal hosts an exact path wins over the
//! longest prefix. Where a host's paths do not fit, the next best host is tried. The order of the file means nothing:
//! a configuration in which two routes could win is a faulty one.

pub mod policy;

use std::cmp::Reverse;

use crate::config::{Config, HostPattern, PathPattern, path, pattern};

/// Finds routes.
#[derive(Clone, Debug)]
pub struct Router {
    /// For each port the routes it is in, the narrowest first, so that the first that matches is the one.
    by_port: Vec<Vec<Entry>>,
}

#[derive(Clone, Debug)]
struct Entry {
    host: HostPattern,
    path: PathPattern,
    route_index: usize,
}

impl Router {
    /// The router of a configuration.
    pub fn new(config: &Config) -> Self {
        let entries_of = |port_index| {
            let mut entries: Vec<Entry> = config
                .routes
                .iter()
                .enumerate()
                .filter(|(_, route)| route.ports.contains(port_index))
                .map(|(route_index, route)| Entry {
                    host: route.host.clone(),
                    path: route.path.clone(),
                    route_index,
                })
                .collect();
            entries.sort_by_key(|entry| Reverse((entry.host.specificity(), entry.path.specificity())));
            entries
        };
        Self { by_port: (0..config.ports.len()).map(entries_of).collect() }
    }

    /// The index in [`Config::routes`] of the route for a request at the port of this index.
    ///
    /// `host` has no port, may be of any case, in brackets if it is an IPv6 address, and empty if the request named none;
    /// `path` is as it came, without the query. Paths are compared in their canonical form ([`path::canonical`]); one
    /// that has none has no route, so that no spelling of a path reaches another route than the path itself. Work is
    /// linear in the routes of the port; memory is taken only for a path with escapes.
    ///
    /// # Panics
    /// Where the index is not one of [`Config::ports`].
    pub fn find(&self, port_index: usize, host: &str, path: &str) -> Option<usize> {
        let path = path::canonical(path).ok()?;
        let host = pattern::canonical_host(host);
        self.by_port[port_index]
            .iter()
            .find(|entry| entry.host.matches(&host) && entry.path.matches(&path))
            .map(|entry| entry.route_index)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;

    /// A router over ports 80 and 81, and the names of its routes.
    fn router(routes: &str) -> (Router, Vec<String>) {
        let text = format!("[[port]]\nnumber = 80\n[[port]]\nnumber = 81\n{routes}");
        let (config, _) =
            Config::from_toml(&text, Path::new("")).unwrap_or_else(|faults| panic!("{faults:?}"));
        (Router::new(&config), config.routes.into_iter().map(|route| route.name).collect())
    }

    fn routes(routes: &[(&str, &str, &str)]) -> (Router, Vec<String>) {
        let mut text = String::new();
        for (host, path, extra) in routes {
            writeln!(text, "[[route]]\nhost = \"{host}\"\npath = \"{path}\"\nservice = \"echo\"\n{extra}")
                .unwrap();
        }
        router(&text)
    }

    const NARROWEST: &[(&str, &str, &str)] = &[
        ("*", "/*", ""),
        ("*", "/chat/*", ""),
        ("*", "/chat/vip/*", ""),
        ("*", "/chat/vip", ""),
        ("*.example.com", "/*", ""),
        ("*.b.example.com", "/*", ""),
        ("a.b.example.com", "/only", ""),
        ("c.example.com", "/*", "ports = [81]"),
    ];

    #[test]
    fn the_narrowest_route_wins_whatever_the_order() {
        let cases = [
            (0, "", "/", Some("/*")),
            (0, "other.net", "/x", Some("/*")),
            (0, "other.net", "/chat", Some("/chat/*")),
            (0, "other.net", "/chat/", Some("/chat/*")),
            (0, "other.net", "/chats", Some("/*")),
            (0, "other.net", "/chat/vip", Some("/chat/vip")),
            (0, "other.net", "/chat/vip/", Some("/chat/vip/*")),
            (0, "other.net", "/chat/vip/x", Some("/chat/vip/*")),
            (0, "x.example.com", "/chat/vip", Some("*.example.com/*")),
            (0, "example.com", "/x", Some("/*")),
            (0, "X.Y.B.example.COM.", "/x", Some("*.b.example.com/*")),
            (0, "a.b.example.com", "/only", Some("a.b.example.com/only")),
            (0, "a.b.example.com", "/else", Some("*.b.example.com/*")),
            (0, "c.example.com", "/x", Some("*.example.com/*")),
            (1, "c.example.com", "/x", Some("c.example.com/*")),
            (0, "evilexample.com", "/x", Some("/*")),
            (0, "x.example.com.evil.net", "/x", Some("/*")),
        ];
        let mut patterns = NARROWEST.to_vec();
        for _ in 0..patterns.len() {
            patterns.rotate_left(1);
            let (router, names) = routes(&patterns);
            for (port_index, host, path, expected) in cases {
                let found = router.find(port_index, host, path).map(|index| names[index].as_str());
                assert_eq!(found, expected, "{port_index} {host} {path} of {patterns:?}");
            }
        }
    }

    #[test]
    fn where_no_route_matches_there_is_none() {
        let (router, _) = routes(&[("chat.example.com", "/chat", "")]);
        assert_eq!(router.find(0, "chat.example.com", "/chat"), Some(0));
        for (host, path) in [("chat.example.com", "/"), ("example.com", "/chat"), ("", "/chat"), ("", "")] {
            assert_eq!(router.find(0, host, path), None, "{host} {path}");
        }
    }

    #[test]
    fn a_path_that_two_servers_could_read_differently_has_no_route() {
        let (router, _) = routes(&[("*", "/*", ""), ("*", "/admin/*", ""), ("*", "/public/*", "")]);
        for path in [
            "/public/../admin/x",
            "/public/%2e%2e/admin/x",
            "/public/.%2E/admin/x",
            "/public/..%2fadmin/x",
            "/public/..%5cadmin/x",
            "/public/..;/admin/x",
            "/public\\..\\admin/x",
            "/%2fadmin/x",
            "//admin/x",
            "/./admin/x",
            "/admin%2fx",
            "/admin%00",
            "/admin%",
            "admin/x",
            "*",
            "http://host/admin",
        ] {
            assert_eq!(router.find(0, "", path), None, "{path}");
        }
    }

    /// A small generator of pseudo-random numbers (xorshift64), so that a seed repeats a failure.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % bound as u64).unwrap()
        }
    }

    #[test]
    fn no_spelling_of_a_path_reaches_another_route_than_the_path_itself() {
        let (router, names) = routes(&[
            ("*", "/*", ""),
            ("*", "/admin", ""),
            ("*", "/admin/*", ""),
            ("*", "/admin/keys", ""),
            ("*", "/a/b/*", ""),
        ]);
        let pieces =
            ["/", "admin", "/admin", "/admin/keys", "/a", "/b", ".", "..", "/../", "//", "x", ";", "é", "%"];
        for seed in 1..=20_000_u64 {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut meant = String::from("/");
            for _ in 0..random.below(5) {
                meant += pieces[random.below(pieces.len())];
            }
            let spelled: String = meant
                .bytes()
                .enumerate()
                .map(|(index, byte)| match random.below(4) {
                    0 if index > 0 => format!("%{byte:02x}"),
                    1 if index > 0 => format!("%{byte:02X}"),
                    _ if byte.is_ascii() && byte != b'%' => char::from(byte).to_string(),
                    _ => format!("%{byte:02X}"),
                })
                .collect();
            let Some(found) = router.find(0, "", &spelled) else {
                continue;
            };
            // What a server makes of the spelling that undoes escapes, joins slashes and follows dots.
            let mut segments: Vec<&str> = Vec::new();
            for segment in meant.split('/').filter(|segment| !segment.is_empty()) {
                match segment.split(';').next() {
                    Some("..") => drop(segments.pop()),
                    Some(".") => {}
                    _ => segments.push(segment),
                }
            }
            let expected = match segments.as_slice() {
                ["admin"] if meant.ends_with('/') => "/admin/*",
                ["admin"] => "/admin",
                ["admin", "keys"] if !meant.ends_with('/') => "/admin/keys",
                ["admin", ..] => "/admin/*",
                ["a", "b", ..] => "/a/b/*",
                _ => "/*",
            };
            assert_eq!(names[found], expected, "seed {seed}: {spelled} for {meant}");
        }
    }

    #[test]
    fn a_plain_path_always_has_the_route_it_is_written_for() {
        let (router, names) = routes(&[("*", "/*", ""), ("*", "/chat/*", "")]);
        for (spelled, expected) in [
            ("/%63hat/x", "/chat/*"),
            ("/chat/%2e", ""),
            ("/c%68at", "/chat/*"),
            ("/chat%73", "/*"),
            ("/%C3%A9", "/*"),
        ] {
            let found = router.find(0, "", spelled).map_or("", |index| names[index].as_str());
            assert_eq!(found, expected, "{spelled}");
        }
    }
}
