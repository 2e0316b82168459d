//! Certificates for tests.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

/// A private certificate authority.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate of a private authority, and its key, as PEM files.
pub struct IdentityFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("valid without names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key is made");
        Self(CertifiedIssuer::self_signed(params, key).expect("the authority signs itself"))
    }

    /// Writes the certificate of the authority to the folder.
    pub fn write(&self, folder: &Path, name: &str) -> PathBuf {
        written(folder, name, &self.0.pem())
    }

    /// Issues a certificate for a host, for servers and clients, and writes it to the folder.
    pub fn issue(&self, folder: &Path, host: &str) -> IdentityFiles {
        let mut params = CertificateParams::new(vec![host.to_owned()]).expect("the host is a name");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key is made");
        let certificate = params.signed_by(&key, &self.0).expect("the authority signs");
        IdentityFiles {
            cert: written(folder, &format!("{host}.crt"), &certificate.pem()),
            key: written(folder, &format!("{host}.key"), &key.serialize_pem()),
        }
    }
}

fn written(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).expect("the file is written");
    path
}
