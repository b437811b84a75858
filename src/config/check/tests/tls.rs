//! What a port says of TLS.

use super::super::super::certificate::Versions;
use super::super::super::certificate::fixture::{Authority, set_mode};
use super::super::super::{Config, Scheme};

/// A port with this `tls`, and a route.
fn text(tls: &str) -> String {
    format!("[[port]]\nnumber = 443\ntls = {tls}\n[[route]]\npath = \"/\"\nservice = \"page\"\n")
}

/// Both files of a certificate of this name.
fn files(name: &str) -> String {
    format!("{{ certificate = \"{name}.pem\", key = \"{name}.key\" }}")
}

#[test]
fn a_port_of_tls_is_wss_to_its_clients_and_has_its_files_beside_the_configuration() {
    let authority = Authority::new("check-tls");
    let edge = authority.good("edge", &["edge.example"]);
    for (tls, versions, seen) in [
        ("", [true, true], Scheme::Wss),
        (", versions = [\"1.3\"]", [false, true], Scheme::Wss),
        (", versions = [\"1.3\", \"1.2\"] }\npublic_scheme = \"ws\" #", [true, true], Scheme::Ws),
    ] {
        let text = text(&format!("{{ certificates = [{}]{tls} }}", files("edge")));
        let (config, warnings) = Config::from_toml(&text, &authority.directory).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let port = &config.ports[0];
        let tls = port.tls.as_ref().unwrap();
        assert_eq!((&tls.certificates[..], tls.versions), (&[edge.clone()][..], Versions { has: versions }));
        assert_eq!(port.public_scheme, Some(seen));
        let shown = config.to_toml();
        let (again, _) = Config::from_toml(&shown, &authority.directory)
            .unwrap_or_else(|faults| panic!("{faults:?} in\n{shown}"));
        assert_eq!(format!("{again:?}"), format!("{config:?}"), "{shown}");
    }
}

#[test]
fn every_fault_of_every_certificate_is_told() {
    let authority = Authority::new("check-tls-faults");
    authority.good("good", &["a"]);
    authority.good("other", &["b"]);
    let tls = format!(
        "{{ versions = [\"1.1\", \"1.3\", \"1.3\"], certificates = [{}, {}, {}, {}, {{ key = \"good.key\" }}] }}",
        files("good"),
        "{ certificate = \"other.pem\", key = \"good.key\" }",
        "{ certificate = \"missing.pem\", key = \"good.pem\" }",
        files("good"),
    );
    let faults = Config::from_toml(&text(&tls), &authority.directory).unwrap_err();
    let told: Vec<String> = faults
        .iter()
        .map(|fault| format!("{}: {}. {}", fault.key, fault.problem, fault.problem.help()))
        .collect();
    assert_eq!(
        told,
        [
            "port[0].tls.versions[0]: there is no \"1.1\" here. Did you mean \"1.2\"?",
            "port[0].tls.versions[2]: \"1.3\" stands in the list twice. Remove one of them.",
            "port[0].tls.certificates[1].key: \"good.key\": the key is not the one of the certificate. \
             Write the key that was made with the request for the certificate.",
            "port[0].tls.certificates[2].certificate: \"missing.pem\": the file cannot be read: entity not found. \
             Write the path of a file that the gateway may read, from the directory of this file on.",
            "port[0].tls.certificates[2].key: \"good.pem\": the file holds no private key in PEM. \
             Write the path of a file with \"-----BEGIN PRIVATE KEY-----\", such as certbot's privkey.pem.",
            "port[0].tls.certificates[3].certificate: \"good.pem\" stands in the list twice. Remove one of them.",
            "port[0].tls.certificates[4].certificate: it is missing. \
             Write, for example, certificate = \"fullchain.pem\".",
        ]
    );
}

#[test]
fn what_clients_refuse_and_a_key_for_everybody_is_warned_of() {
    let authority = Authority::new("check-tls-warnings");
    let kind = &rcgen::PKCS_ECDSA_P256_SHA256;
    authority.sign("old", &["a"], kind, [2019, 2020]);
    authority.sign("early", &["a"], kind, [2089, 2090]);
    set_mode(&authority.good("open", &["a"]).key.path, 0o644);
    let tls = format!("{{ certificates = [{}, {}, {}] }}", files("old"), files("early"), files("open"));
    let (_, warnings) = Config::from_toml(&text(&tls), &authority.directory).unwrap();
    let told: Vec<String> =
        warnings.iter().map(|warning| format!("{}: {}", warning.key, warning.caution)).collect();
    assert_eq!(
        told,
        [
            "port[0].tls.certificates[0].certificate: the certificate has expired: 2020-01-01T00:00:00Z",
            "port[0].tls.certificates[1].certificate: the certificate is not good before 2089-01-01T00:00:00Z",
            "port[0].tls.certificates[2].key: everybody on this machine may read the key: its mode is 644",
        ]
    );
}

#[test]
fn an_upstream_in_tls_is_believed_by_an_authority_that_is_written() {
    let authority = Authority::new("check-upstream-tls");
    let route = |upstream: &str, tls: &str| {
        format!(
            "[[port]]\nnumber = 80\n[[route]]\npath = \"/\"\nservice = \"websocket\"\nupstreams = [\"{upstream}\"]\n{tls}\n"
        )
    };
    for (tls, name) in [
        ("upstream_tls = { ca = \"ca.pem\" }", None),
        ("upstream_tls = { ca = \"ca.pem\", name = \"192.0.2.1\" }", Some("192.0.2.1")),
    ] {
        let (config, warnings) =
            Config::from_toml(&route("wss://app.example", tls), &authority.directory).unwrap();
        assert!(warnings.is_empty(), "{warnings:?}");
        let relay = config.routes[0].relay.as_ref().unwrap();
        let found = relay.tls.as_ref().unwrap();
        assert_eq!((found.name.as_deref(), found.authorities.len()), (name, 1));
        assert_eq!(relay.upstreams[0].host(), "app.example");
        let shown = config.to_toml();
        let (again, _) = Config::from_toml(&shown, &authority.directory)
            .unwrap_or_else(|faults| panic!("{faults:?} in\n{shown}"));
        assert_eq!(format!("{again:?}"), format!("{config:?}"), "{shown}");
    }
    for (upstream, tls, expected) in [
        (
            "wss://app",
            "",
            "route[0].upstream_tls: it is missing. Write, for example, upstream_tls = { ca = \"ca.pem\" }.",
        ),
        (
            "wss://app",
            "upstream_tls = { name = \"app\" }",
            "route[0].upstream_tls.ca: it is missing. Write, for example, ca = \"ca.pem\".",
        ),
        (
            "wss://app",
            "upstream_tls = { ca = \"ca.pem\", name = \"a b\" }",
            "route[0].upstream_tls.name: no certificate is for \"a b\". \
             Write the name of a host or an address, such as \"chat.internal\" or \"192.0.2.1\".",
        ),
        (
            // A name that is looked up, and that no certificate can be for.
            "wss://app-.example",
            "upstream_tls = { ca = \"ca.pem\" }",
            "route[0].upstreams: no certificate is for \"app-.example\". \
             Write the name of a host or an address, such as \"chat.internal\" or \"192.0.2.1\".",
        ),
        (
            "wss://app",
            "upstream_tls = { ca = \"none.pem\" }",
            "route[0].upstream_tls.ca: \"none.pem\": the file cannot be read: entity not found. \
             Write the path of a file that the gateway may read, from the directory of this file on.",
        ),
    ] {
        let faults = Config::from_toml(&route(upstream, tls), &authority.directory).unwrap_err();
        let told: Vec<String> = faults
            .iter()
            .map(|fault| format!("{}: {}. {}", fault.key, fault.problem, fault.problem.help()))
            .collect();
        assert_eq!(told, [expected]);
    }
    let unused = route("ws://app", "upstream_tls = { ca = \"ca.pem\" }");
    let (_, warnings) = Config::from_toml(&unused, &authority.directory).unwrap();
    let told: Vec<_> = warnings.iter().map(|warning| warning.caution.to_string()).collect();
    assert_eq!(told, ["no upstream of this route speaks TLS"]);
}
