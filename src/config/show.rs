//! A configuration in force, written as TOML.

use std::fmt::{self, Write};
use std::num::NonZeroU32;

use super::auth::{KeySetPlace, KeySource};
use super::certificate::{CertificateFiles, Version};
use super::file::Unit;
use super::limits::{self, Limit, milliseconds};
use super::upstream::{HealthKind, LIMITS, Relay, UpstreamTls};
use super::web::Files;
use super::{
    Access, Auth, Config, Deflate, Origins, Port, PortSet, RatePolicy, Redirect, Route, Service, size,
};

/// See [`Config::to_toml`].
pub(super) fn show(config: &Config) -> String {
    let mut out = String::new();
    write(&mut out, config).expect("writing to a string cannot fail");
    out
}

fn write(out: &mut String, config: &Config) -> fmt::Result {
    writeln!(out, "[gateway]")?;
    match config.gateway.shards {
        Some(shards) => writeln!(out, "shards = {shards}")?,
        None => writeln!(out, "# shards: one for each available core")?,
    }
    writeln!(out, "io_driver = \"{}\"", config.gateway.io_driver)?;
    writeln!(out, "resolve_interval_ms = {}", milliseconds(config.gateway.resolve_interval))?;
    if let Some(max) = config.gateway.memory_max {
        writeln!(out, "memory_max = {}", string(&size::format(max.get())))?;
    }

    writeln!(out, "\n[admin]")?;
    match &config.admin {
        Some(admin) => writeln!(out, "listen = \"{}\"", admin.listen)?,
        None => writeln!(out, "listen = \"off\"")?,
    }
    if let Some(token) = config.admin.as_ref().and_then(|admin| admin.token.as_ref()) {
        writeln!(out, "token = {}", string(&token.to_string()))?;
    }

    writeln!(out, "\n[limits]")?;
    for limit in limits::TABLE {
        writeln!(out, "{} = {}", limit.key, number(limit, limit.of(&config.limits)))?;
    }

    for port in &config.ports {
        write_port(out, config, port)?;
    }
    for route in &config.routes {
        write_route(out, config, route)?;
    }
    Ok(())
}

fn write_port(out: &mut String, config: &Config, port: &Port) -> fmt::Result {
    writeln!(out, "\n[[port]]\nnumber = {}", port.number)?;
    match port.address {
        Some(address) => writeln!(out, "address = \"{address}\"")?,
        None => writeln!(out, "# address: every one, of both families")?,
    }
    if is_named(port) {
        writeln!(out, "name = {}", string(&port.label))?;
    }
    if let Some(tls) = &port.tls {
        let versions = strings(tls.versions.iter().map(Version::label));
        writeln!(out, "tls = {{ versions = [{versions}], certificates = [")?;
        for CertificateFiles { certificate, key } in &tls.certificates {
            let (certificate, key) = (string(&certificate.name), string(&key.name));
            writeln!(out, "    {{ certificate = {certificate}, key = {key} }},")?;
        }
        writeln!(out, "] }}")?;
    }
    if let Some(scheme) = port.public_scheme {
        writeln!(out, "public_scheme = \"{scheme}\"")?;
    }
    if let Some(host) = &port.public_host {
        writeln!(out, "public_host = {}", string(host))?;
    }
    if let Some(number) = port.public_port {
        writeln!(out, "public_port = {number}")?;
    }
    if let Some(trusted) = &port.proxy_protocol {
        writeln!(out, "proxy_protocol = {{ trusted = [{}] }}", strings(trusted))?;
    }
    write_access(out, &port.access)?;
    let limits = limits::TABLE.iter().map(|limit| (limit, limit.of(&port.limits)));
    write_limits(out, limits.filter(|(limit, value)| *value != limit.of(&config.limits)))
}

fn write_route(out: &mut String, config: &Config, route: &Route) -> fmt::Result {
    writeln!(out, "\n[[route]]")?;
    // A name that was derived holds the path, with its slash, and one that was written cannot.
    if route.name.contains('/') {
        writeln!(out, "# name: {}", route.name)?;
    } else {
        writeln!(out, "name = {}", string(&route.name))?;
    }
    writeln!(out, "host = {}", string(&route.host.to_string()))?;
    match &route.ports {
        PortSet::All => writeln!(out, "# ports: all")?,
        PortSet::Only(indices) => {
            let ports = indices.iter().map(|&index| {
                let port = &config.ports[index];
                if is_named(port) { string(&port.label) } else { port.label.clone() }
            });
            writeln!(out, "ports = [{}]", ports.collect::<Vec<_>>().join(", "))?;
        }
    }
    writeln!(out, "path = {}", string(&route.path.to_string()))?;
    writeln!(out, "service = \"{}\"", route.service)?;
    if route.websocket && !route.service.is_websocket() {
        writeln!(out, "websocket = true")?;
    }
    if route.websocket {
        match &route.origins {
            Origins::Any => writeln!(out, "origins = \"any\"")?,
            Origins::Same => writeln!(out, "origins = \"same\"")?,
            Origins::Upstream => writeln!(out, "origins = \"upstream\"")?,
            Origins::Exact(origins) => writeln!(out, "origins = [{}]", strings(origins))?,
        }
    }
    if !route.subprotocols.is_empty() {
        writeln!(out, "subprotocols = [{}]", strings(&route.subprotocols))?;
    }
    if let Some(Deflate { mode, level, window_bits, size_min }) = route.deflate {
        let size_min = if size_min == 0 { "0".to_owned() } else { string(&size::format(size_min as u64)) };
        write!(out, "deflate = {{ mode = \"{mode}\", level = {level}, ")?;
        writeln!(out, "window_bits = {window_bits}, size_min = {size_min} }}")?;
    }
    if let Some(auth) = &route.auth {
        write_auth(out, auth)?;
    }
    write_access(out, &route.access)?;
    if route.rate_policy != RatePolicy::Close {
        writeln!(out, "rate_policy = \"{}\"", route.rate_policy)?;
    }
    if !route.trusted.is_empty() {
        writeln!(out, "trusted = [{}]", strings(&route.trusted))?;
    }
    write_limits(out, route.overrides.iter())?;
    if let Some(files) = &route.files {
        write_files(out, files)?;
    }
    if let Some(redirect) = &route.redirect {
        write_redirect(out, redirect)?;
    }
    match &route.relay {
        Some(relay) => write_relay(out, relay, route.service),
        None => Ok(()),
    }
}

fn write_access(out: &mut String, access: &Access) -> fmt::Result {
    for (key, networks) in [("allow", &access.allow), ("deny", &access.deny)] {
        if !networks.is_empty() {
            writeln!(out, "{key} = [{}]", strings(networks))?;
        }
    }
    Ok(())
}

/// Writes what a route wants proved.
fn write_auth(out: &mut String, auth: &Auth) -> fmt::Result {
    let pairs = |pairs: &[(String, String)]| {
        let pairs: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{} = {}", string(name), string(value))).collect();
        format!("{{ {} }}", pairs.join(", "))
    };
    match auth {
        Auth::Forward(forward) => {
            let limits = &forward.relay.limits;
            write!(out, "auth = {{ forward = {{ url = {}, ", string(&forward.url))?;
            if let Some(tls) = &forward.relay.tls {
                write!(out, "ca = {}, ", string(&tls.ca.name))?;
            }
            if !forward.headers.is_empty() {
                write!(out, "headers = [{}], ", strings(&forward.headers))?;
            }
            let concurrent_max = limits.connections_max.map_or(0, NonZeroU32::get);
            write!(out, "timeout_ms = {}, ", milliseconds(limits.response_timeout))?;
            writeln!(out, "concurrent_max = {concurrent_max} }} }}")
        }
        Auth::Jwt(jwt) => {
            write!(out, "auth = {{ jwt = {{ ")?;
            match &jwt.keys {
                KeySource::Key { source, algorithm, .. } => {
                    write!(out, "key = {}, algorithm = \"{algorithm}\", ", string(&source.to_string()))?;
                }
                KeySource::Set(set) => {
                    write!(out, "jwks = {}, ", string(&set.name))?;
                    write!(out, "jwks_refresh_interval_ms = {}, ", milliseconds(set.refresh_interval))?;
                    if let KeySetPlace::Url { ca: Some((ca, _)), .. } = &set.place {
                        write!(out, "jwks_ca = {}, ", string(&ca.name))?;
                    }
                }
            }
            if let Some(issuer) = &jwt.issuer {
                write!(out, "issuer = {}, ", string(issuer))?;
            }
            if !jwt.audience.is_empty() {
                write!(out, "audience = [{}], ", strings(&jwt.audience))?;
            }
            if !jwt.claims.is_empty() {
                write!(out, "claims = {}, ", pairs(&jwt.claims))?;
            }
            if !jwt.headers.is_empty() {
                write!(out, "headers = {}, ", pairs(&jwt.headers))?;
            }
            if let Some(code) = jwt.expiry_close_code {
                write!(out, "expiry_close_code = {}, ", code.get())?;
            }
            writeln!(out, "from = [{}], leeway_ms = {} }} }}", strings(&jwt.from), milliseconds(jwt.leeway))
        }
    }
}

/// Writes where a route sends clients.
fn write_files(out: &mut String, files: &Files) -> fmt::Result {
    writeln!(out, "folder = {}", string(&files.folder.name))?;
    writeln!(out, "index = {}", string(&files.index))?;
    if let Some(fallback) = &files.fallback {
        writeln!(out, "fallback = {}", string(fallback))?;
    }
    if !files.precompressed.is_empty() {
        writeln!(out, "precompressed = [{}]", strings(&files.precompressed))?;
    }
    if let Some(cache_control) = &files.cache_control {
        writeln!(out, "cache_control = {}", string(cache_control))?;
    }
    writeln!(out, "hidden = {}", files.hidden)
}

fn write_redirect(out: &mut String, redirect: &Redirect) -> fmt::Result {
    write!(out, "redirect = {{ ")?;
    if let Some(scheme) = redirect.scheme {
        write!(out, "scheme = \"{scheme}\", ")?;
    }
    if let Some(host) = &redirect.host {
        write!(out, "host = {}, ", string(host))?;
    }
    if let Some(port) = redirect.port {
        write!(out, "port = {port}, ")?;
    }
    if let Some(path) = &redirect.path {
        write!(out, "path = {}, ", string(&path.to_string()))?;
    }
    writeln!(out, "status = {} }}", redirect.status)
}

/// Writes what a route says of its upstreams, the tables in it last.
fn write_relay(out: &mut String, relay: &Relay, service: Service) -> fmt::Result {
    writeln!(out, "upstreams = [{}]", strings(relay.upstreams.iter().map(|upstream| &upstream.name)))?;
    writeln!(out, "balance = {}", string(&relay.balance.to_string()))?;
    if !relay.sources.is_empty() {
        writeln!(out, "source_addresses = [{}]", strings(&relay.sources))?;
    }
    if let Some(UpstreamTls { ca, name, .. }) = &relay.tls {
        let name = name.as_ref().map(|name| format!(", name = {}", string(name))).unwrap_or_default();
        writeln!(out, "upstream_tls = {{ ca = {}{name} }}", string(&ca.name))?;
    }
    if let Some(path) = &relay.upstream_path {
        writeln!(out, "upstream_path = {}", string(&path.to_string()))?;
    }
    for (key, edits) in
        [("request_headers", &relay.request_headers), ("response_headers", &relay.response_headers)]
    {
        let set = edits.set.iter().map(|(name, value)| format!("{} = {}", string(name), string(value)));
        let set = set.collect::<Vec<_>>().join(", ");
        match (edits.remove.is_empty(), edits.set.is_empty()) {
            (true, true) => {}
            (true, false) => writeln!(out, "{key} = {{ set = {{ {set} }} }}")?,
            (false, true) => writeln!(out, "{key} = {{ remove = [{}] }}", strings(&edits.remove))?,
            (false, false) => {
                writeln!(out, "{key} = {{ remove = [{}], set = {{ {set} }} }}", strings(&edits.remove))?;
            }
        }
    }
    writeln!(out, "[route.upstream_limits]")?;
    for limit in LIMITS.iter().filter(|limit| limit.is_for(service)) {
        writeln!(out, "{} = {}", limit.key, (limit.get)(&relay.limits))?;
    }
    let Some(health) = &relay.health else { return Ok(()) };
    writeln!(out, "[route.health]\nkind = \"{}\"", health.kind.label())?;
    match &health.kind {
        HealthKind::Tcp => {}
        HealthKind::Http { path } | HealthKind::WebSocket { path } => {
            writeln!(out, "path = {}", string(path))?;
        }
    }
    writeln!(out, "interval_ms = {}", milliseconds(health.interval))?;
    writeln!(out, "timeout_ms = {}", milliseconds(health.timeout))?;
    writeln!(out, "healthy_after = {}", health.healthy_after)?;
    writeln!(out, "unhealthy_after = {}", health.unhealthy_after)
}

/// Writes the limits that a port or a route sets as one line, or none.
fn write_limits(out: &mut String, limits: impl Iterator<Item = (&'static Limit, u64)>) -> fmt::Result {
    let limits: Vec<String> =
        limits.map(|(limit, value)| format!("{} = {}", limit.key, number(limit, value))).collect();
    if limits.is_empty() { Ok(()) } else { writeln!(out, "limits = {{ {} }}", limits.join(", ")) }
}

fn is_named(port: &Port) -> bool {
    port.label != port.number.to_string()
}

fn number(limit: &Limit, value: u64) -> String {
    match limit.bounds.unit {
        Unit::Bytes if value != 0 => string(&size::format(value)),
        Unit::Bytes | Unit::Milliseconds | Unit::Count => value.to_string(),
    }
}

/// The elements of a list of strings.
fn strings<T: ToString>(elements: impl IntoIterator<Item = T>) -> String {
    let elements: Vec<String> = elements.into_iter().map(|element| string(&element.to_string())).collect();
    elements.join(", ")
}

fn string(text: &str) -> String {
    toml::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::BUILT_IN;
    use super::super::secret::tests::{TOKEN, with_token_file};
    use super::*;

    #[test]
    fn what_is_shown_makes_the_same_configuration() {
        let everything = r#"
            [gateway]
            shards = 3
            io_driver = "epoll"
            resolve_interval_ms = 1000
            memory_max = "512MiB"
            [admin]
            listen = "0.0.0.0:9180"
            token = "file:token"
            [limits]
            bytes_per_s = "1MiB"
            connections_max = 7
            [[port]]
            number = 8443
            address = "127.0.0.1"
            name = "inside"
            [[port]]
            number = 8443
            address = "::1"
            name = "outside"
            public_scheme = "wss"
            public_host = "ws.example.com"
            public_port = 443
            allow = ["10.0.0.0/8", "2001:db8::/32"]
            deny = ["10.1.2.3"]
            proxy_protocol = { trusted = ["10.0.0.0/8", "2001:db8::1"] }
            limits = { handshake_timeout_ms = 7, idle_timeout_ms = 60000 }
            [[port]]
            number = 8080
            [[route]]
            name = "chat"
            host = "*.Example.com"
            ports = ["outside", 8080]
            path = "/caf%c3%a9/*"
            service = "echo"
            origins = ["https://example.com", "http://localhost:3000", "null"]
            subprotocols = ["chat.v1", "chat.v2"]
            limits = { frame_size_max = 126, ping_interval_ms = 0 }
            [[route]]
            host = "[::1]"
            path = "/"
            service = "page"
            [[route]]
            path = "/x"
            service = "echo"
            origins = "any"
            deflate = { mode = "dedicated", level = 6, window_bits = 10, size_min = 0 }
            [[route]]
            path = "/y"
            service = "echo"
            deflate = true
            allow = ["0.0.0.0/0"]
            rate_policy = "pause"
            [route.auth.jwt]
            jwks = "http://127.0.0.1:8080/jwks.json?a=b"
            jwks_refresh_interval_ms = 5000
            from = ["cookie:session", "subprotocol:bearer.", "query:token", "header"]
            issuer = "https://login.example.com/"
            audience = ["chat", "mail"]
            leeway_ms = 0
            claims = { role = "admin", "a.b" = "c" }
            headers = { X-User = "sub" }
            expiry_close_code = 3000
            [[route]]
            path = "/asked"
            service = "echo"
            auth = { forward = { url = "http://127.0.0.1:4181/verify", timeout_ms = 7, concurrent_max = 8, headers = ["X-User"] } }
            [[route]]
            path = "/key"
            service = "echo"
            auth = { jwt = { key = "file:secret", algorithm = "HS256" } }
            [[route]]
            path = "/z"
            service = "echo"
            deflate = { mode = "off", level = 3 }
            [[route]]
            path = "/relayed/*"
            service = "websocket"
            upstreams = ["ws://App.internal", "ws://[::1]:9001", "ws+unix:///run/app.sock"]
            upstream_path = "/a%20b/*"
            balance = "cookie:session"
            source_addresses = ["192.0.2.1", "2001:db8::1"]
            request_headers = { remove = ["Cookie"], set = { "X-Env" = "prod, \"quoted\"", Host = "app" } }
            response_headers = { set = { Server = "" } }
            trusted = ["192.0.2.0/24"]
            limits = { frame_size_max = 126 }
            [route.upstream_limits]
            connect_timeout_ms = 1
            handshake_timeout_ms = 2
            connections_max = 3
            connecting_max = 4
            slow_start_ms = 5
            eject_after = 0
            eject_for_ms = 6
            [route.health]
            kind = "http"
            path = "/health?a=b"
            interval_ms = 100
            healthy_after = 3
            unhealthy_after = 4
            [[route]]
            path = "/bytes"
            service = "tcp"
            upstreams = ["tcp://127.0.0.1:6379", "unix:/run/redis.sock"]
            health = { kind = "tcp", timeout_ms = 100 }
            [[route]]
            path = "/app/*"
            service = "http"
            websocket = true
            origins = ["https://example.com"]
            upstreams = ["http://app.internal", "http://[::1]:8080", "http+unix:///run/app.sock"]
            limits = { request_body_size_max = "1GiB", body_timeout_ms = 1, keep_alive_timeout_ms = 2 }
            upstream_limits = { response_timeout_ms = 7, idle_connections_max = 8, idle_connection_timeout_ms = 9 }
            [[route]]
            path = "/api/*"
            service = "http"
            upstreams = ["http://127.0.0.1:3000"]
            [[route]]
            path = "/old/*"
            service = "redirect"
            redirect = { scheme = "https", host = "[2001:DB8::1]", port = 8443, path = "/a%20b/*", status = 302 }
            [[route]]
            path = "/older"
            service = "redirect"
            redirect = { path = "/new" }
            [[route]]
            path = "/static/*"
            service = "files"
            folder = "."
            index = "start.html"
            fallback = "/app/start.html"
            precompressed = ["gzip", "br"]
            cache_control = "public, max-age=60"
            hidden = true
            [[route]]
            path = "/files/*"
            service = "files"
            folder = "."
            [[route]]
            path = "/plain"
            service = "websocket"
            upstreams = ["ws://127.0.0.1:9001"]
            origins = "upstream"
            response_headers = { remove = ["Server"] }
            health = { kind = "websocket" }
        "#;
        with_token_file("show", |base| {
            for text in [everything, BUILT_IN] {
                let (config, _) = Config::from_toml(text, base).unwrap();
                let shown = config.to_toml();
                let again = Config::from_toml(&shown, base);
                let (again, _) = again.unwrap_or_else(|faults| panic!("{faults:?} in\n{shown}"));
                assert_eq!(format!("{again:?}"), format!("{config:?}"), "{shown}");
            }
        });
    }

    #[test]
    fn a_secret_is_shown_by_its_reference() {
        let text = "[admin]\ntoken = \"file:token\"\n[[port]]\nnumber = 80\n\
                    [[route]]\npath = \"/\"\nservice = \"page\"\n";
        let (config, _) = with_token_file("shown", |base| Config::from_toml(text, base)).unwrap();
        let shown = config.to_toml();
        assert!(shown.contains("token = \"file:token\"\n"), "{shown}");
        assert!(!shown.contains(TOKEN) && !format!("{config:?}").contains(TOKEN), "{shown}");
    }
}
