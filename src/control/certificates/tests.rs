//! Certificates that change under a gateway that serves.

use std::time::SystemTime;

use super::*;
use crate::config::certificate::fixture::Authority;

/// A port with the certificates of these names.
fn port(authority: &Authority, names: &[&str]) -> Arc<PortTls> {
    let certificates = names.iter().map(|name| authority.good(name, &["edge.example"])).collect();
    let tls = config::PortTls { certificates, versions: Versions::ALL };
    Arc::new(PortTls::load("443", &tls, false).unwrap())
}

/// Which settings are in force, as a number that only a change of them changes.
fn in_force(port: &PortTls) -> usize {
    Arc::as_ptr(&port.settings.load_full()).addr()
}

#[test]
fn what_has_changed_is_put_in_force_once_it_has_settled() {
    let authority = Authority::new("reload-settled");
    let port = port(&authority, &["edge"]);
    let mut watched = Watched::new(&port);
    let before = in_force(&port);
    assert_eq!(watched.look(false), None);
    // The certificate is written, and its key not yet.
    let next = authority.good("next", &["edge.example", "more.example"]);
    let now = authority.files("edge");
    std::fs::copy(&next.certificate.path, &now.certificate.path).unwrap();
    assert_eq!(watched.look(false), None, "it may change still");
    std::fs::copy(&next.key.path, &now.key.path).unwrap();
    assert_eq!(watched.look(false), None, "it has changed since");
    assert_eq!(in_force(&port), before);
    assert_eq!(watched.look(false), Some(ReloadResult::Loaded));
    assert_ne!(in_force(&port), before);
    assert_eq!(port.facts()[0].hosts, ["edge.example", "more.example"]);
    assert_eq!(watched.look(false), None, "once");
}

#[test]
fn a_file_that_is_replaced_by_one_of_the_same_size_and_time_has_changed() {
    let authority = Authority::new("reload-renamed");
    let port = port(&authority, &["edge"]);
    let mut watched = Watched::new(&port);
    let (now, next) = (authority.files("edge"), authority.files("edge.next"));
    for (now, next) in [(&now.certificate, &next.certificate), (&now.key, &next.key)] {
        std::fs::copy(&now.path, &next.path).unwrap();
        let written = now.path.metadata().unwrap().modified().unwrap();
        std::fs::File::options().write(true).open(&next.path).unwrap().set_modified(written).unwrap();
        std::fs::rename(&next.path, &now.path).unwrap();
    }
    assert_eq!(watched.look(false), None);
    assert_eq!(watched.look(false), Some(ReloadResult::Loaded));
}

#[test]
fn a_fault_keeps_what_is_in_force_and_is_told_until_it_is_mended() {
    let authority = Authority::new("reload-fault");
    let port = port(&authority, &["edge", "second"]);
    let mut watched = Watched::new(&port);
    let (before, facts) = (in_force(&port), port.facts());
    let files = authority.files("edge");
    let key = std::fs::read(&files.key.path).unwrap();
    std::fs::copy(authority.files("second").key.path, &files.key.path).unwrap();
    watched.look(false);
    assert_eq!(watched.look(false), Some(ReloadResult::Failed));
    assert_eq!((in_force(&port), port.facts()), (before, facts));
    let expected = "\"edge.pem\": key: the key is not the one of the certificate";
    assert_eq!(port.fault().as_deref().map(String::as_str), Some(expected));
    assert_eq!(watched.look(false), None, "what has not changed is not read again");
    assert_eq!(watched.look(true), Some(ReloadResult::Failed), "but on demand");
    std::fs::remove_file(&files.key.path).unwrap();
    watched.look(false);
    assert_eq!(watched.look(false), Some(ReloadResult::Failed));
    assert!(port.fault().unwrap().contains("cannot be read"));
    std::fs::write(&files.key.path, key).unwrap();
    watched.look(false);
    assert_eq!(watched.look(false), Some(ReloadResult::Loaded));
    assert_eq!(port.fault(), None);
    assert_ne!(in_force(&port), before);
}

#[tokio::test(start_paused = true)]
async fn a_change_and_a_signal_are_heard_of_and_counted() {
    let authority = Authority::new("reload-watch");
    let ports = [None, Some(port(&authority, &["edge"]))];
    let metrics = Arc::new(Metrics::new(1, vec!["443".to_owned()], vec![], SystemTime::UNIX_EPOCH));
    let hang_ups = watch::Sender::new(());
    let mut tasks = JoinSet::new();
    watch(&ports, &metrics, hang_ups.subscribe(), &mut tasks);
    let loaded_count = || {
        let text = metrics.encode();
        let line = text
            .lines()
            .find(|line| line.starts_with("ringway_certificate_reloads_total{result=\"loaded\"}"));
        line.and_then(|line| line.rsplit(' ').next()).unwrap().to_owned()
    };
    let until = async |count: &str| {
        while loaded_count() != count {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    until("0").await;
    hang_ups.send_replace(());
    until("1").await;
    let files = authority.sign("edge", &["edge.example"], &rcgen::PKCS_ECDSA_P256_SHA256, [2020, 2033]);
    assert_eq!(files.certificate.name, "edge.pem");
    until("2").await;
    let expected = "ringway_certificate_not_after_timestamp_seconds{name=\"edge.pem\"} 1988150400\n";
    assert!(metrics.encode().contains(expected), "{}", metrics.encode());
    assert!(tasks.try_join_next().is_none());
}

#[test]
fn a_certificate_of_two_ports_is_one_series() {
    let authority = Authority::new("reload-series");
    let ports = [Some(port(&authority, &["edge"])), None, Some(port(&authority, &["edge", "other"]))];
    let names: Vec<_> = expiries(&ports).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["edge.pem", "other.pem"]);
}
