//! What a client's certificate says, read once a connection.
//!
//! 1. rustls has verified it before; what is read here are its names and its end, and nothing of it is an instruction.
//! 2. All of it or nothing: a certificate whose names can't be read, hold control characters or are too many has no names
//!    at all ([`ClientCertificate::names`]). It is still a certificate that tokens may be bound to.
//! 3. Of its extensions only the subject alternative names are read, and a second such extension makes it unreadable.
//! 4. Distinguished names are written as RFC 4514 has them, escaped so that no attribute can pass for two, not even to a
//!    glob. Attributes that it has no short name for stand there as their OID and their DER in hex.

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use x509_parser::asn1_rs::{FromDer, ToDer};
use x509_parser::certificate::{X509Certificate, X509CertificateParser};
use x509_parser::extensions::{GeneralName, SubjectAlternativeName};
use x509_parser::nom::Parser;
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use crate::clock::UnixSeconds;

/// Largest certificate whose names are read, in bytes.
const MAX_DER: usize = 16 * 1024;

/// Most alternative names, and most attributes of a distinguished name.
const MAX_NAMES: usize = 100;

/// Longest name, in bytes: a SPIFFE ID has at most as many.
const MAX_NAME: usize = 2048;

/// A certificate as a client showed it in the handshake.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The client's own first.
    chain: Vec<CertificateDer<'static>>,
    thumbprint: [u8; 32],
    names: Option<Names>,
}

/// What a certificate says about its holder.
#[derive(Debug, PartialEq, Eq)]
pub struct Names {
    /// The subject as RFC 4514 has it; empty when there is none.
    pub distinguished_name: String,
    pub common_name: Vec<String>,
    pub organization: Vec<String>,
    pub organizational_unit: Vec<String>,
    /// Subject alternative names; DNS names in lower case.
    pub dns: Vec<String>,
    pub uri: Vec<String>,
    pub email: Vec<String>,
    /// Who issued it, as RFC 4514 has it.
    pub issuer: String,
    /// In hex digits.
    pub serial: String,
    /// The last second that it is good for.
    pub not_after: UnixSeconds,
}

impl ClientCertificate {
    /// Reads a chain, the client's own certificate first; `None` when it is empty.
    pub fn read(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let leaf = chain.first()?;
        let hash = digest::digest(&digest::SHA256, leaf);
        Some(Self {
            thumbprint: hash.as_ref().try_into().expect("SHA-256 has 32 bytes"),
            names: Names::read(leaf),
            chain: chain
                .iter()
                .map(|certificate| certificate.clone().into_owned())
                .collect(),
        })
    }

    /// SHA-256 of it, as `x5t#S256` has it (RFC 8705 section 3.1).
    pub fn thumbprint(&self) -> &[u8; 32] {
        &self.thumbprint
    }

    /// The client's own certificate, and those that it sent along.
    pub fn chain(&self) -> (&CertificateDer<'static>, &[CertificateDer<'static>]) {
        self.chain.split_first().expect("a chain begins with the client's own")
    }

    /// What it says about its holder; `None` when that can't be read.
    pub fn names(&self) -> Option<&Names> {
        self.names.as_ref()
    }
}

impl Names {
    fn read(der: &[u8]) -> Option<Self> {
        if der.len() > MAX_DER {
            return None;
        }
        let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
        let (rest, certificate) = parser.parse(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let subject = certificate.subject();
        let mut names = Self {
            distinguished_name: rfc4514(subject)?,
            common_name: texts(subject.iter_common_name())?,
            organization: texts(subject.iter_organization())?,
            organizational_unit: texts(subject.iter_organizational_unit())?,
            dns: Vec::new(),
            uri: Vec::new(),
            email: Vec::new(),
            issuer: rfc4514(certificate.issuer())?,
            serial: hex(certificate.raw_serial()),
            not_after: u64::try_from(certificate.validity().not_after.timestamp()).ok()?,
        };
        names.alternative(&certificate)?;
        Some(names)
    }

    fn alternative(&mut self, certificate: &X509Certificate<'_>) -> Option<()> {
        let Some(extension) = certificate.get_extension_unique(&OID_X509_EXT_SUBJECT_ALT_NAME).ok()? else {
            return Some(());
        };
        let (rest, alternative) = SubjectAlternativeName::from_der(extension.value).ok()?;
        if !rest.is_empty() || alternative.general_names.len() > MAX_NAMES {
            return None;
        }
        for name in &alternative.general_names {
            match name {
                GeneralName::DNSName(name) => self.dns.push(ascii(name)?.to_ascii_lowercase()),
                GeneralName::URI(name) => self.uri.push(ascii(name)?),
                GeneralName::RFC822Name(name) => self.email.push(ascii(name)?),
                GeneralName::Invalid(..) => return None,
                _ => {}
            }
        }
        Some(())
    }
}

/// An alternative name: an IA5String, of which only what is printed and no space is taken.
fn ascii(name: &str) -> Option<String> {
    let printed = name.bytes().all(|byte| byte.is_ascii_graphic());
    (printed && (1..=MAX_NAME).contains(&name.len())).then(|| name.to_owned())
}

fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    let text = attribute.as_str().ok()?;
    let good = (1..=MAX_NAME).contains(&text.len()) && !text.contains(char::is_control);
    good.then(|| text.to_owned())
}

fn texts<'a: 'b, 'b>(attributes: impl Iterator<Item = &'b AttributeTypeAndValue<'a>>) -> Option<Vec<String>> {
    attributes.map(text).collect()
}

/// RFC 4514 section 2.1: the last first.
fn rfc4514(name: &X509Name<'_>) -> Option<String> {
    if name.iter_attributes().count() > MAX_NAMES {
        return None;
    }
    let parts: Option<Vec<String>> = name
        .iter_rdn()
        .map(|part| Some(part.iter().map(attribute).collect::<Option<Vec<_>>>()?.join("+")))
        .collect();
    let mut parts = parts?;
    parts.reverse();
    Some(parts.join(","))
}

/// Whether an object identifier is in its one spelling (X.690 section 8.19.2). The parser reads others as well, but compares
/// bytes: one in another spelling would be a common name in one place and none in another.
fn is_canonical(kind: &[u8]) -> bool {
    let ends = |byte: u8| byte & 0x80 == 0;
    let begins = std::iter::once(true).chain(kind.iter().map(|byte| ends(*byte)));
    kind.last().is_some_and(|last| ends(*last)) && !begins.zip(kind).any(|(begins, byte)| begins && *byte == 0x80)
}

/// RFC 4514 sections 2.3 and 2.4.
fn attribute(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    if !is_canonical(attribute.attr_type().as_bytes()) {
        return None;
    }
    let kind = attribute.attr_type().to_id_string();
    let short = match kind.as_str() {
        "2.5.4.3" => "CN",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "STREET",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        _ => "",
    };
    match text(attribute).filter(|_| !short.is_empty()) {
        Some(value) => Some(format!("{short}={}", escaped(&value))),
        None => {
            let der = attribute.attr_value().to_der_vec().ok()?;
            (der.len() <= MAX_NAME).then(|| format!("{kind}=#{}", hex(&der)))
        }
    }
}

/// By hex pairs throughout: behind a backslash, a comma would still be one to a glob.
fn escaped(value: &str) -> String {
    let inner = value.trim_matches(' ');
    let begin = value.len() - value.trim_start_matches(' ').len();
    let inner = begin..begin + inner.len();
    let mut text = String::with_capacity(value.len());
    for (at, char) in value.char_indices() {
        match char {
            '"' | '+' | ',' | ';' | '<' | '>' | '=' | '#' | '\\' => {
                text.push_str(&format!("\\{:02x}", u32::from(char)))
            }
            ' ' if !inner.contains(&at) => text.push_str("\\20"),
            _ => text.push(char),
        }
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, CustomExtension, DistinguishedName, DnType, DnValue,
        IsCa, KeyPair, SanType,
    };

    use super::*;

    fn certificate(fill: impl FnOnce(&mut CertificateParams)) -> ClientCertificate {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name = DistinguishedName::new();
        authority.distinguished_name.push(DnType::CommonName, "Corp Root");
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        params.serial_number = Some(vec![0x0a, 0x1b].into());
        fill(&mut params);
        let certificate = params.signed_by(&KeyPair::generate().unwrap(), &authority).unwrap();
        ClientCertificate::read(&[certificate.der().clone()]).unwrap()
    }

    fn alternative(name: &str) -> [SanType; 3] {
        let name = || name.try_into().unwrap();
        [
            SanType::URI(name()),
            SanType::DnsName(name()),
            SanType::Rfc822Name(name()),
        ]
    }

    #[test]
    fn names_and_end_are_read() {
        let certificate = certificate(|params| {
            params.distinguished_name.push(DnType::CountryName, "NL");
            params.distinguished_name.push(DnType::OrganizationName, "Corp");
            params.distinguished_name.push(DnType::OrganizationalUnitName, "Agents");
            params.distinguished_name.push(DnType::CommonName, "agent ü");
            params.subject_alt_names = vec![
                SanType::URI("spiffe://corp.example/a".try_into().unwrap()),
                SanType::DnsName("A.Corp.example".try_into().unwrap()),
                SanType::DnsName("b.corp.example".try_into().unwrap()),
                SanType::Rfc822Name("A@corp.example".try_into().unwrap()),
                SanType::IpAddress([127, 0, 0, 1].into()),
            ];
        });
        let hash = digest::digest(&digest::SHA256, certificate.chain().0);
        assert_eq!(certificate.thumbprint(), hash.as_ref());
        let expected = Names {
            distinguished_name: "CN=agent ü,OU=Agents,O=Corp,C=NL".to_owned(),
            common_name: vec!["agent ü".to_owned()],
            organization: vec!["Corp".to_owned()],
            organizational_unit: vec!["Agents".to_owned()],
            dns: vec!["a.corp.example".to_owned(), "b.corp.example".to_owned()],
            uri: vec!["spiffe://corp.example/a".to_owned()],
            email: vec!["A@corp.example".to_owned()],
            issuer: "CN=Corp Root".to_owned(),
            serial: "0a1b".to_owned(),
            not_after: 1_893_456_000,
        };
        assert_eq!(certificate.names(), Some(&expected));
        assert_eq!(ClientCertificate::read(&[]), None);
    }

    #[test]
    fn no_attribute_passes_for_two() {
        let of = |value: &str| {
            let value = value.to_owned();
            let certificate = certificate(|params| params.distinguished_name.push(DnType::CommonName, value));
            certificate.names().map(|names| names.distinguished_name.clone())
        };
        for (value, expected) in [
            ("a,O=Corp", "CN=a\\2cO\\3dCorp"),
            ("a+O=Corp", "CN=a\\2bO\\3dCorp"),
            ("a\\", "CN=a\\5c"),
            ("\"a\";<b>#", "CN=\\22a\\22\\3b\\3cb\\3e\\23"),
            ("  a b ", "CN=\\20\\20a b\\20"),
            ("   ", "CN=\\20\\20\\20"),
        ] {
            assert_eq!(of(value).as_deref(), Some(expected), "{value}");
        }
        for value in ["", "a\0b", "a\nb", "a\u{7f}", &"x".repeat(MAX_NAME + 1)] {
            assert_eq!(of(value), None, "{value:?}");
        }
        let strange = certificate(|params| {
            let kind = DnType::CustomDnType(vec![1, 2, 840, 113_549, 1, 9, 1]);
            params
                .distinguished_name
                .push(kind, DnValue::Ia5String("a@b".try_into().unwrap()));
        });
        let names = strange.names().expect("it can be read");
        assert_eq!(names.distinguished_name, "1.2.840.113549.1.9.1=#1603614062");
        // A name that isn't text here can't be told from none.
        let wide = certificate(|params| {
            let name = DnValue::BmpString("agent".try_into().unwrap());
            params.distinguished_name.push(DnType::CommonName, name);
        });
        assert_eq!(wide.names(), None);
    }

    #[test]
    fn a_kind_of_name_has_one_spelling() {
        let good = certificate(|params| params.distinguished_name.push(DnType::CommonName, "agent"));
        let der = good.chain().0.to_vec();
        let kind = [0x06, 3, 0x55, 4, 3];
        let at = der
            .windows(5)
            .rposition(|window| window == kind)
            .expect("it has a common name");
        // As the parser reads numbers, 0x83 at the end is a 3 too.
        for (byte, value) in [(4, 0x83), (2, 0x80)] {
            let mut other = der.clone();
            other[at + byte] = value;
            let read = ClientCertificate::read(&[other.into()]).unwrap();
            assert_eq!(read.names(), None, "{byte}");
        }
        for (kind, canonical) in [
            (&[0x55, 4, 3][..], true),
            (&[0x2a, 0x86, 0x48], true),
            (&[0x55, 0x80, 4, 3], false),
            (&[0x80, 0x55], false),
            (&[], false),
        ] {
            assert_eq!(is_canonical(kind), canonical, "{kind:?}");
        }
    }

    #[test]
    fn alternative_names_are_printed_ascii() {
        for name in ["", "a b", "a\0b", "a\u{7f}", &"x".repeat(MAX_NAME + 1)] {
            for name in alternative(name) {
                let shown = format!("{name:?}");
                let certificate = certificate(|params| params.subject_alt_names = vec![name]);
                assert_eq!(certificate.names(), None, "{shown}");
            }
        }
        let many = certificate(|params| {
            params.subject_alt_names = (0..=MAX_NAMES)
                .map(|number| SanType::DnsName(format!("a{number}").try_into().unwrap()))
                .collect();
        });
        assert_eq!(many.names(), None);
        let twice = certificate(|params| {
            params.subject_alt_names = alternative("a").to_vec();
            // A sequence of one DNS name, `b`.
            let other = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 3, 0x82, 1, b'b']);
            params.custom_extensions = vec![other];
        });
        assert_eq!(twice.names(), None);
        let broken = certificate(|params| {
            let broken = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x30, 3, 0x82, 9, b'b']);
            params.custom_extensions = vec![broken];
        });
        assert_eq!(broken.names(), None);
    }

    #[test]
    fn a_large_or_mangled_certificate_has_no_names_and_breaks_nothing() {
        let large = certificate(|params| {
            params.custom_extensions = vec![CustomExtension::from_oid_content(&[1, 2, 3], vec![4; MAX_DER])];
        });
        assert_eq!(large.names(), None);
        let good = certificate(|params| params.subject_alt_names = alternative("a").to_vec());
        let der = good.chain().0.to_vec();
        let read = |der: Vec<u8>| ClientCertificate::read(&[der.into()]).unwrap();
        assert!(read(der.clone()).names().is_some());
        for end in 0..der.len() {
            assert_eq!(read(der[..end].to_vec()).names(), None, "{end}");
        }
        for at in 0..der.len() {
            for bit in 0..8 {
                let mut mangled = der.clone();
                mangled[at] ^= 1 << bit;
                // Whatever it is read as, it is bounded.
                if let Some(names) = read(mangled).names() {
                    assert!(names.uri.iter().chain(&names.dns).all(|name| name.len() <= MAX_NAME));
                }
            }
        }
        let mut longer = der;
        longer.push(0);
        assert_eq!(read(longer).names(), None);
    }
}
