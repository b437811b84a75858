//! Certificates and keys as they are found in files.

use super::fixture::Authority;
use super::*;

#[test]
fn a_certificate_tells_its_hosts_and_its_times() {
    let authority = Authority::new("certificate-read");
    let files = authority.sign(
        "edge",
        &["example.com", "*.Example.com", "192.0.2.1"],
        &rcgen::PKCS_ECDSA_P256_SHA256,
        // The first of these is written with two digits, the second with four (RFC 5280 section 4.1.2.5).
        [2049, 2051],
    );
    let certificate = files.load().unwrap();
    assert_eq!(certificate.names, ["example.com", "*.Example.com"]);
    assert_eq!(certificate.not_before.to_string(), "2049-01-01T00:00:00Z");
    assert_eq!(certificate.not_after.to_string(), "2051-01-01T00:00:00Z");
}

#[test]
fn every_kind_of_key_is_read() {
    let authority = Authority::new("certificate-keys");
    for kind in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        authority
            .sign("edge", &["a"], kind, [2020, 2090])
            .load()
            .unwrap_or_else(|faults| panic!("{faults:?}"));
    }
}

#[test]
fn what_is_wrong_with_either_file_is_told() {
    let authority = Authority::new("certificate-faults");
    let good = authority.good("good", &["a"]);
    let other = authority.good("other", &["a"]);
    let file = |name: &str, content: &[u8]| {
        let file = NamedFile::new(name, &authority.directory);
        std::fs::write(&file.path, content).unwrap();
        file
    };
    let missing = NamedFile::new("missing", &authority.directory);
    let text = file("text", b"no PEM at all\n");
    let cut = file("cut", b"-----BEGIN CERTIFICATE-----\nAAAA\n");
    let junk = file("junk", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let key_junk = file("key-junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let endless = NamedFile::new("/dev/zero", &authority.directory);
    let unreadable = CertificateFault::Unreadable { cause: io::ErrorKind::NotFound };
    for (certificate, key, expected) in [
        (&good.certificate, &good.key, &[][..]),
        (&missing, &good.key, &[FilesFault::Certificate(unreadable)]),
        (&missing, &missing, &[FilesFault::Certificate(unreadable), FilesFault::Key(unreadable)]),
        (&text, &good.key, &[FilesFault::Certificate(CertificateFault::NoCertificate)]),
        (&cut, &good.key, &[FilesFault::Certificate(CertificateFault::NotPem)]),
        (&junk, &good.key, &[FilesFault::Certificate(CertificateFault::NotACertificate)]),
        (&endless, &good.key, &[FilesFault::Certificate(CertificateFault::TooLarge)]),
        (&good.certificate, &text, &[FilesFault::Key(CertificateFault::NoKey)]),
        (&good.certificate, &good.certificate, &[FilesFault::Key(CertificateFault::NoKey)]),
        (&good.certificate, &key_junk, &[FilesFault::Key(CertificateFault::UnknownKey)]),
        (&good.certificate, &other.key, &[FilesFault::Key(CertificateFault::KeyMismatch)]),
    ] {
        let files = CertificateFiles { certificate: certificate.clone(), key: key.clone() };
        let faults = files.load().err().unwrap_or_default();
        assert_eq!(faults, expected, "{} {}", certificate.name, key.name);
    }
}

#[test]
fn no_certificate_that_is_changed_or_cut_panics() {
    let authority = Authority::new("certificate-mutants");
    let files = authority.good("good", &["example.com"]);
    let der = files.certificate.certificates().unwrap().remove(0);
    let mut changed = der.to_vec();
    for index in 0..der.len() {
        assert!(validity(&der[..index]).is_err(), "cut at {index}");
        for flip in [1, 0x80, 0xff] {
            changed[index] ^= flip;
            let _ = read(&CertificateDer::from(&changed[..]));
            let _ = validity(&changed);
            changed[index] ^= flip;
        }
    }
}
