//! What a port says of TLS.

use std::path::Path;

use super::super::certificate::{self, CertificateFiles, FilesFault, NamedFile, PortTls, Version, Versions};
use super::super::fault::{Caution, Problem};
use super::super::file::{self, Item, Reader, Section};
use super::list;

/// How many certificates a port may have: each handshake looks its name up, but all are read at start.
const CERTIFICATE_COUNT_MAX: usize = 256;

const EXAMPLE: &str = "certificates = [{ certificate = \"fullchain.pem\", key = \"privkey.pem\" }]";

/// The `tls` of a `[[port]]`, whose paths begin at `base`; `None` where there is none, or a fault in it.
pub(super) fn tls<'t>(reader: &mut Reader<'t>, port: &Section<'t>, base: &Path) -> Option<PortTls> {
    let section = reader.section(port, "tls", &file::PORT_TLS)?;
    let versions = match section.get("versions") {
        Some(item) => versions(reader, &item),
        None => Some(Versions::ALL),
    };
    let certificates = match section.get("certificates") {
        Some(item) => certificates(reader, &section, &item, base),
        None => reader.missing(&section, "certificates", EXAMPLE),
    };
    Some(PortTls { certificates: certificates?, versions: versions? })
}

fn versions<'t>(reader: &mut Reader<'t>, item: &Item<'t>) -> Option<Versions> {
    let mut versions = Versions { has: [false; _] };
    let mut is_good = true;
    for item in list(reader, item, "a list of versions, such as [\"1.2\", \"1.3\"]")? {
        match reader.one_of(&item, Version::ALL, Version::label) {
            Some(version) if versions.has[version.index()] => {
                let value = version.label().to_owned();
                is_good = reader.fault::<()>(&item, Problem::Repeated { value }).is_some();
            }
            Some(version) => versions.has[version.index()] = true,
            None => is_good = false,
        }
    }
    is_good.then_some(versions)
}

fn certificates<'t>(
    reader: &mut Reader<'t>,
    tls: &Section<'t>,
    item: &Item<'t>,
    base: &Path,
) -> Option<Vec<CertificateFiles>> {
    let sections = reader.sections(tls, "certificates", &file::CERTIFICATE)?;
    let count = sections.len();
    if count == 0 {
        return reader.fault(item, Problem::Missing { example: EXAMPLE });
    }
    if count > CERTIFICATE_COUNT_MAX {
        let reason = "Each is read at start, and again when it changes.";
        return reader.fault(item, Problem::TooMany { count, max: CERTIFICATE_COUNT_MAX, reason });
    }
    let mut certificates: Vec<CertificateFiles> = Vec::with_capacity(count);
    // Each is looked at, whatever the others are like.
    for section in &sections {
        let Some(files) = files(reader, section, base) else { continue };
        if certificates.iter().any(|other| other.certificate.name == files.certificate.name) {
            let item = section.get("certificate").expect("it has been read");
            reader.fault::<()>(&item, Problem::Repeated { value: files.certificate.name });
            continue;
        }
        certificates.push(files);
    }
    (certificates.len() == count).then_some(certificates)
}

/// A certificate and its key, which are read and held against each other.
fn files<'t>(reader: &mut Reader<'t>, section: &Section<'t>, base: &Path) -> Option<CertificateFiles> {
    let mut file = |key, example| match section.get(key) {
        Some(item) => reader.string(&item).map(|name| NamedFile::new(name, base)),
        None => reader.missing(section, key, example),
    };
    let certificate = file("certificate", "certificate = \"fullchain.pem\"");
    let key = file("key", "key = \"privkey.pem\"");
    let files = CertificateFiles { certificate: certificate?, key: key? };
    let item = |key| section.get(key).expect("it has been read");
    let certificate = match files.load() {
        Ok(certificate) => certificate,
        Err(faults) => {
            for fault in faults {
                let (item, fault) = match fault {
                    FilesFault::Certificate(fault) => (item("certificate"), fault),
                    FilesFault::Key(fault) => (item("key"), fault),
                };
                let name = reader.string(&item).unwrap_or_default().to_owned();
                reader.fault::<()>(&item, Problem::Certificate { name, fault });
            }
            return None;
        }
    };
    let now = certificate::now();
    if certificate.not_after < now {
        reader.warn(&item("certificate"), Caution::Expired { not_after: certificate.not_after });
    }
    if certificate.not_before > now {
        reader.warn(&item("certificate"), Caution::NotYetGood { not_before: certificate.not_before });
    }
    if let Some(mode) = files.key.open_to_others() {
        reader.warn(&item("key"), Caution::KeyOpen { mode });
    }
    Some(files)
}
