//! From the port, host and path of a request to the route that answers it.
//!
//! An exact host wins over the longest wildcard, that over any host; among equal hosts an exact path wins over the
//! longest prefix. Where a host's paths do not fit, the next best host is tried. The order of the file means nothing:
//! a configuration in which two routes could win is a faulty one.

pub mod auth;
mod paths;
pub mod policy;

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use crate::config::{Config, HostPattern, Route, path, pattern};
use paths::Paths;

/// Finds routes.
#[derive(Clone, Debug)]
pub struct Router {
    /// Ports that are in the same routes share one.
    hosts: Vec<Hosts>,
    /// For each port the index of its hosts.
    by_port: Vec<usize>,
}

impl Router {
    /// The router of a configuration.
    pub fn new(config: &Config) -> Self {
        let mut router = Self { hosts: Vec::new(), by_port: Vec::with_capacity(config.ports.len()) };
        let mut known: HashMap<Vec<usize>, usize> = HashMap::new();
        for port_index in 0..config.ports.len() {
            let is_here = |&index: &usize| config.routes[index].ports.contains(port_index);
            let route_indices: Vec<usize> = (0..config.routes.len()).filter(is_here).collect();
            let hosts_index = *known.entry(route_indices).or_insert_with_key(|route_indices| {
                router.hosts.push(Hosts::new(&config.routes, route_indices));
                router.hosts.len() - 1
            });
            router.by_port.push(hosts_index);
        }
        router
    }

    /// The index in [`Config::routes`] of the route for a request at the port of this index.
    ///
    /// `host` has no port, may be of any case, in brackets if it is an IPv6 address, and empty if the request named none;
    /// `path` is as it came, without the query. Paths are compared in their canonical form ([`path::canonical`]); one
    /// that has none has no route, so that no spelling of a path reaches another route than the path itself. Work is
    /// linear in the wildcards of the port and in the size of the path. Memory is taken for a path with escapes, an IPv6
    /// address, and a path in a tree that lies within another route's tree.
    ///
    /// # Panics
    /// Where the index is not one of [`Config::ports`].
    pub fn find(&self, port_index: usize, host: &str, path: &str) -> Option<usize> {
        let path = match path::canonical(path).ok()? {
            Cow::Borrowed(_) => Cow::Borrowed(path),
            Cow::Owned(path) => Cow::Owned(paths::text(&path).into_owned()),
        };
        self.hosts[self.by_port[port_index]].find(&pattern::canonical_host(host), &path)
    }
}

/// The hosts of a port, and the paths of each.
#[derive(Clone, Debug, Default)]
struct Hosts {
    /// By name, in lower case.
    exact: HashMap<Box<[u8]>, Paths>,
    /// The longest first.
    wildcards: Vec<(HostPattern, Paths)>,
    any: Paths,
}

impl Hosts {
    /// Those of the routes with these indices.
    fn new(routes: &[Route], route_indices: &[usize]) -> Self {
        // By the host's text, in the order of which nothing depends on a hash.
        let mut by_host: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for &index in route_indices {
            by_host.entry(routes[index].host.to_string()).or_default().push(index);
        }
        let mut hosts = Self::default();
        for indices in by_host.into_values() {
            let patterns: Vec<_> = indices.iter().map(|&index| (&routes[index].path, index)).collect();
            let paths = Paths::new(&patterns);
            match &routes[indices[0]].host {
                HostPattern::Exact(name) => {
                    hosts.exact.insert(name.as_bytes().into(), paths);
                }
                wildcard @ HostPattern::Wildcard(_) => hosts.wildcards.push((wildcard.clone(), paths)),
                HostPattern::Any => hosts.any = paths,
            }
        }
        hosts.wildcards.sort_by_key(|(wildcard, _)| match wildcard {
            HostPattern::Wildcard(suffix) => Reverse(suffix.len()),
            HostPattern::Any | HostPattern::Exact(_) => unreachable!("wildcards alone are here"),
        });
        hosts
    }

    /// The route of a canonical host, in any case, and of the text of a canonical path.
    fn find(&self, host: &str, path: &str) -> Option<usize> {
        let exact = self.exact_paths(host).and_then(|paths| paths.find(path));
        let wildcard = || {
            let mut matching = self.wildcards.iter().filter(|(wildcard, _)| wildcard.matches(host));
            matching.find_map(|(_, paths)| paths.find(path))
        };
        exact.or_else(wildcard).or_else(|| self.any.find(path))
    }

    fn exact_paths(&self, host: &str) -> Option<&Paths> {
        // No name of a route is longer than the buffer.
        let mut buffer = [0; HostPattern::NAME_SIZE_MAX];
        let name = buffer.get_mut(..host.len()).filter(|_| !self.exact.is_empty())?;
        name.copy_from_slice(host.as_bytes());
        name.make_ascii_lowercase();
        self.exact.get(&*name)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;
    use crate::config::PathPattern;

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

    /// The index of the narrowest route that matches, found by looking at all of them.
    fn narrowest(config: &Config, port_index: usize, host: &str, path: &str) -> Option<usize> {
        let path = path::canonical(path).ok()?;
        let host = pattern::canonical_host(host);
        let width = |route: &Route| {
            let host = match &route.host {
                HostPattern::Exact(_) => (0, 0),
                HostPattern::Wildcard(suffix) => (1, usize::MAX - suffix.len()),
                HostPattern::Any => (2, 0),
            };
            let path = match &route.path {
                PathPattern::Exact(_) => (0, 0),
                PathPattern::Prefix(prefix) => (1, usize::MAX - prefix.len()),
            };
            (host, path)
        };
        let matches = |route: &Route| {
            route.ports.contains(port_index) && route.host.matches(&host) && route.path.matches(&path)
        };
        let matching = config.routes.iter().enumerate().filter(|(_, route)| matches(route));
        matching.min_by_key(|(_, route)| width(route)).map(|(index, _)| index)
    }

    #[test]
    fn the_route_found_is_the_narrowest_of_all_that_match() {
        const HOSTS: &[&str] =
            &["a", "b.a", "c.b.a", "d.c.b.a", "A.b.A", "xa", "x.xa", "[::1]", "[0::1]", "192.0.2.1", ""];
        const SEGMENTS: &[&str] = &[
            "", "a", "b", "ab", "A", "{x}", "{", "a}", "%7Bx%7D", "é", "%C3%A9", "%FF", "%C3", "%25FF", ":x",
        ];
        const PORTS: &[&str] = &["", "ports = [80]\n", "ports = [81]\n"];
        let mut found_count = 0;
        for seed in 1..=500_u64 {
            let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let path = |random: &mut Random, lengths: usize| {
                let mut path = String::new();
                for _ in 0..=random.below(lengths) {
                    path.push('/');
                    path.push_str(SEGMENTS[random.below(SEGMENTS.len())]);
                }
                path
            };
            let mut text = "[[port]]\nnumber = 80\n[[port]]\nnumber = 81\n".to_owned();
            let mut taken = Vec::new();
            for name in 0..random.below(40) {
                let host = match (random.below(4), HOSTS[random.below(HOSTS.len() - 1)]) {
                    (0, host) => host.to_owned(),
                    (1, host) if host.ends_with('a') => format!("*.{host}"),
                    _ => "*".to_owned(),
                };
                let mut path = path(&mut random, 3);
                if random.below(2) == 0 {
                    path = path.trim_end_matches('/').to_owned() + "/*";
                }
                let (Ok(host), Ok(path)) = (HostPattern::parse(&host), PathPattern::parse(&path)) else {
                    continue;
                };
                let (host, path) = (host.to_string(), path.to_string());
                if taken.contains(&(host.clone(), path.clone())) {
                    continue;
                }
                let ports = PORTS[random.below(PORTS.len())];
                write!(
                    text,
                    "[[route]]\nname = \"r{name}\"\nhost = \"{host}\"\npath = \"{path}\"\nservice = \"echo\"\n{ports}"
                )
                .unwrap();
                taken.push((host, path));
            }
            if taken.is_empty() {
                continue;
            }
            let (config, _) = Config::from_toml(&text, Path::new(""))
                .unwrap_or_else(|faults| panic!("seed {seed}: {faults:?}"));
            let router = Router::new(&config);
            for _ in 0..100 {
                let port_index = random.below(2);
                let host = HOSTS[random.below(HOSTS.len())];
                let path = path(&mut random, 5);
                let found = router.find(port_index, host, &path);
                let expected = narrowest(&config, port_index, host, &path);
                assert_eq!(
                    found, expected,
                    "seed {seed}: port {port_index}, host {host:?}, path {path}\n{text}"
                );
                found_count += usize::from(found.is_some());
            }
        }
        assert!(found_count > 1000, "{found_count} requests had a route");
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
