//! Creates certificates of a temporary authority: for the server, for a client, and of an authority that no
//! client trusts.

use crate::folder::Folder;
use crate::{Error, ErrorKind, Result};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The TLS mode of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tls {
    /// No TLS.
    #[default]
    Off,
    /// The server has a certificate; a client needs none.
    Server,
    /// In addition, a client must present a certificate that the same authority signed.
    Mutual,
}

/// Paths of PEM files; names in the certificates are `localhost` and `127.0.0.1`.
#[derive(Debug, Clone)]
pub struct Certificates {
    /// The authority that signed the server's and the client's certificate.
    pub ca: PathBuf,
    /// An authority that signed nothing here: a client that trusts only this one must refuse the server.
    pub stranger: PathBuf,
    /// The server's certificate.
    pub server: PathBuf,
    /// The server's key.
    pub server_key: PathBuf,
    /// A client's certificate; its common name is `client`.
    pub client: PathBuf,
    /// That client's key.
    pub client_key: PathBuf,
}

impl Certificates {
    /// Creates the certificates in the folder `tls` of a server.
    pub(crate) fn make(folder: &Folder) -> Result<Self> {
        let path = folder.path().join("tls");
        fs::create_dir_all(&path)
            .map_err(|e| Error::system(format!("cannot create {}", path.display()), e))?;
        let all = Self::of(folder.path());
        let files = generate()
            .map_err(|e| Error::new(ErrorKind::System, format!("cannot make certificates: {e}")))?;
        let paths = [&all.ca, &all.stranger, &all.server, &all.server_key, &all.client, &all.client_key];
        for (path, text) in paths.into_iter().zip(files) {
            let mut written = fs::write(path, text);
            if path.extension().is_some_and(|kind| kind == "key") {
                // Some programs refuse a key that others may read.
                written = written.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)));
            }
            written.map_err(|e| Error::system(format!("cannot write {}", path.display()), e))?;
        }
        Ok(all)
    }

    /// Returns their paths in a server's folder.
    pub(crate) fn of(folder: &Path) -> Self {
        let path = folder.join("tls");
        let [ca, stranger, server, server_key, client, client_key] =
            ["ca.pem", "stranger.pem", "server.pem", "server.key", "client.pem", "client.key"]
                .map(|name| path.join(name));
        Self { ca, stranger, server, server_key, client, client_key }
    }
}

/// Generates the six files, in the order of the fields of [`Certificates`].
fn generate() -> std::result::Result<[String; 6], rcgen::Error> {
    let (ca, ca_pem) = authority("test servers")?;
    let (_, stranger_pem) = authority("a stranger")?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let (server, server_key) = leaf(&ca, "server", names, ExtendedKeyUsagePurpose::ServerAuth)?;
    let (client, client_key) = leaf(&ca, "client", Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)?;
    Ok([ca_pem, stranger_pem, server, server_key, client, client_key])
}

fn authority(name: &str) -> std::result::Result<(Issuer<'static, KeyPair>, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key)?.pem();
    Ok((Issuer::new(params, key), pem))
}

fn leaf(
    ca: &Issuer<'_, KeyPair>,
    name: &str,
    hosts: Vec<String>,
    purpose: ExtendedKeyUsagePurpose,
) -> std::result::Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.extended_key_usages = vec![purpose];
    Ok((params.signed_by(&key, ca)?.pem(), key.serialize_pem()))
}
