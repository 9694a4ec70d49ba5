//! Client certificates. Input: the DER that a client sends.
//!
//! Oracle: what can be read is printable and bounded; a distinguished name parts at its commas and pluses into attributes
//! of one type and one value each, whatever the values hold; and no tail makes it another certificate with the same names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use portcullis::listener::ClientCertificate;

const MAX_NAME: usize = 2048;

fuzz_target!(|der: &[u8]| {
    let read = |der: &[u8]| ClientCertificate::read(&[der.to_vec().into()]).expect("there is one");
    let certificate = read(der);
    let Some(names) = certificate.names() else {
        return;
    };
    for name in names.dns.iter().chain(&names.uri).chain(&names.email) {
        assert!((1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic()));
    }
    for text in names
        .common_name
        .iter()
        .chain(&names.organization)
        .chain(&names.organizational_unit)
    {
        assert!((1..=MAX_NAME).contains(&text.len()) && !text.contains(char::is_control));
    }
    for name in [&names.distinguished_name, &names.issuer] {
        assert!(!name.contains(char::is_control));
        for attribute in name.split([',', '+']).filter(|_| !name.is_empty()) {
            assert_eq!(attribute.matches('=').count(), 1, "{name}");
        }
    }
    let common = names
        .distinguished_name
        .split([',', '+'])
        .filter(|attribute| attribute.starts_with("CN="));
    assert_eq!(common.count(), names.common_name.len());
    assert!(names.serial.bytes().all(|byte| byte.is_ascii_hexdigit()));
    assert!(read(&[der, b"\0"].concat()).names().is_none());
});
