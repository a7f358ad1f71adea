//! Secured connections, with certificates made here.

use std::path::Path;

use nbd_net::testing::{Scratch, certificates, certificates_of_2432_bits};

use crate::programs::{output, run};
use crate::server::{PROGRAM, Server};

/// A server with these options that can secure connections, and the port on which it does.
fn server(options: &[&str]) -> (Server, String) {
    server_with(options, |_| {})
}

/// The same with certificates that were changed.
fn server_with(options: &[&str], change: impl FnOnce(&Path)) -> (Server, String) {
    let scratch = Scratch::new();
    certificates(scratch.path()).unwrap();
    change(scratch.path());
    let fixed = ["--listen=tcp:127.0.0.1:0", "--tls-certificates={dir}", "mem:64M"];
    let server = Server::in_directory(scratch, &[&fixed, options].concat());
    let line = server.line("tcp:127.0.0.1:");
    let (_, port) = line.rsplit_once(':').unwrap();
    let port = port.to_owned();
    (server, port)
}

fn secured(server: &Server, port: &str, certificates: &str) -> String {
    let directory = server.path(certificates);
    format!("nbds://localhost:{port}/?tls-certificates={}", directory.display())
}

#[test]
fn nbdinfo_and_nbdcopy_over_tls() {
    let (server, port) = server(&[]);
    let uri = secured(&server, &port, "");
    let words = output("nbdinfo", &[&uri]);
    assert!(words.contains("with TLS"), "{words}");
    let path = |name: &str| server.path(name).to_str().unwrap().to_owned();
    let content = crate::content::pattern(64 << 20);
    std::fs::write(path("source"), &content).unwrap();
    output("nbdcopy", &["--connections=4", &path("source"), &uri]);
    output("nbdcopy", &["--connections=4", &uri, &path("back")]);
    assert!(std::fs::read(path("back")).unwrap() == content);
    assert_eq!(server.stop(), [""; 0]);
}

/// Made by certtool, as the documents of other projects say. GnuTLS verifies for libnbd and qemu.
#[test]
fn rsa_keys_of_2432_bits_are_served_to_gnutls() {
    let change = |directory: &Path| certificates_of_2432_bits(directory).unwrap();
    let (server, port) = server_with(&["--tls-verify-peer"], change);
    assert!(output("nbdinfo", &[&secured(&server, &port, "")]).contains("with TLS"));
    for (code, words) in [qemu_img_info(&port, &server.path("")), our_client(&server, &port, "")] {
        assert_eq!(code, 0, "{words}");
    }
    assert_eq!(server.stop(), [""; 0]);
}

#[test]
fn who_must_or_may_is_the_servers_choice() {
    for (options, clear, with_tls) in [
        (&[] as &[&str], false, true),
        (&["--tls=required"], false, true),
        (&["--tls=optional"], true, true),
    ] {
        let (server, port) = server(options);
        let succeeds = |uri: &str| run("nbdinfo", &["--size", uri]).0 == 0;
        assert_eq!(succeeds(&format!("nbd://localhost:{port}")), clear, "{options:?}");
        assert_eq!(succeeds(&server.uri("")), clear, "{options:?}");
        assert_eq!(succeeds(&secured(&server, &port, "")), with_tls, "{options:?}");
    }
    let server = Server::new(&["mem:1M"]);
    let uri = server.uri("").replace("nbd+unix", "nbds+unix");
    let (code, _, words) = run("nbdinfo", &[&uri]);
    assert_ne!(code, 0, "{words}");
}

#[test]
fn clients_need_the_right_certificate_where_it_is_asked_for() {
    let (server, port) = server(&["--tls-verify-peer"]);
    output("nbdinfo", &[&secured(&server, &port, "")]);
    // libnbd does not even send one of an authority that the server does not know.
    for (bad, advice) in
        [("other", "it has none; give it one"), ("expired", "it has expired; renew it")]
    {
        // It believes the server, but is not believed.
        let bad = server.path(bad);
        std::fs::copy(server.path("ca-cert.pem"), bad.join("ca-cert.pem")).unwrap();
        let uri = secured(&server, &port, bad.file_name().unwrap().to_str().unwrap());
        let (code, _, words) = run("nbdinfo", &[&uri]);
        assert_ne!(code, 0, "{words}");
        let line = server.line("cannot secure the connection");
        assert!(line.contains("certificate is not acceptable") && line.contains(advice), "{line}");
    }
    let none = server.path("none");
    std::fs::create_dir(&none).unwrap();
    std::fs::copy(server.path("ca-cert.pem"), none.join("ca-cert.pem")).unwrap();
    let (code, _, words) = run("nbdinfo", &[&secured(&server, &port, "none")]);
    assert_ne!(code, 0, "{words}");
    let line = server.line("cannot secure the connection");
    assert!(line.contains("it has none; give it one"), "{line}");
    output("nbdinfo", &[&secured(&server, &port, "")]);
}

/// `qemu-img info`, with the certificates in a directory.
fn qemu_img_info(port: &str, directory: &Path) -> (i32, String) {
    let credentials = format!("tls-creds-x509,id=t,endpoint=client,dir={}", directory.display());
    let image = format!("driver=nbd,host=localhost,port={port},tls-creds=t");
    let (code, _, words) =
        run("qemu-img", &["info", "--object", &credentials, "--image-opts", &image]);
    (code, words)
}

#[test]
fn revoked_clients_are_refused_and_no_others() {
    let (server, port) = server_with(&["--tls-verify-peer"], |directory| {
        std::fs::copy(directory.join("revoked/ca-crl.pem"), directory.join("ca-crl.pem")).unwrap();
    });
    output("nbdinfo", &[&secured(&server, &port, "")]);
    assert_eq!(qemu_img_info(&port, &server.path("")).0, 0);
    let is_told = || {
        let line = server.line("cannot secure the connection");
        assert!(line.contains("our ca-crl.pem revokes it; the peer needs a new one"), "{line}");
    };
    let (code, _, words) = run("nbdinfo", &[&secured(&server, &port, "revoked")]);
    assert_ne!(code, 0, "{words}");
    is_told();
    let (code, words) = qemu_img_info(&port, &server.path("revoked"));
    assert_ne!(code, 0, "{words}");
    is_told();
    assert_eq!(server.stop(), [""; 0]);
}

/// One of ours that a client revokes: it is said on which side to look. (As a client, qemu 7.2 reads
/// no list.)
#[test]
fn peers_refuse_a_server_whose_certificate_is_revoked() {
    let (server, port) = server_with(&[], |directory| {
        for name in ["server-cert.pem", "server-key.pem"] {
            std::fs::copy(directory.join("revoked").join(name), directory.join(name)).unwrap();
        }
    });
    output("nbdinfo", &[&secured(&server, &port, "")]);
    let (code, _, words) = run("nbdinfo", &[&secured(&server, &port, "revoked")]);
    assert_ne!(code, 0, "{words}");
    let line = server.line("cannot secure the connection");
    assert!(line.contains("our certificate"), "{line}");
    assert_eq!(server.stop(), [""; 0]);
}

/// Our own client with certificates, and what it says.
fn our_client(server: &Server, port: &str, certificates: &str) -> (i32, String) {
    let uri = secured(server, port, certificates);
    let (code, _, words) = run(PROGRAM, &["--print-geometry", &uri]);
    (code, words)
}

#[test]
fn our_client_is_told_what_a_server_has_against_it() {
    let (server, port) = server_with(&["--tls-verify-peer"], |directory| {
        std::fs::copy(directory.join("revoked/ca-crl.pem"), directory.join("ca-crl.pem")).unwrap();
        let none = directory.join("none");
        std::fs::create_dir(&none).unwrap();
        for bad in ["none", "other"] {
            std::fs::copy(directory.join("ca-cert.pem"), directory.join(bad).join("ca-cert.pem"))
                .unwrap();
        }
    });
    assert_eq!(our_client(&server, &port, "").0, 0);
    for (certificates, advice) in [
        ("revoked", "our certificate is revoked; a new one is needed"),
        ("expired", "our certificate has expired; renew it"),
        ("other", "it does not know the authority that has signed our certificate"),
        ("none", "name a directory with client-cert.pem and client-key.pem"),
    ] {
        let (code, words) = our_client(&server, &port, certificates);
        assert_eq!(code, 1, "{certificates}: {words}");
        assert!(words.contains(advice), "{certificates}: {words}");
        server.line("cannot secure the connection");
    }
    assert_eq!(server.stop(), [""; 0]);
}

#[test]
fn qemu_img_over_tls() {
    let (server, port) = server(&["--tls-verify-peer"]);
    // It wants the names of the files as they are, and nobody else to read them.
    let directory = server.path("").to_str().unwrap().to_owned();
    let credentials = format!("tls-creds-x509,id=t,endpoint=client,dir={directory}");
    let image = format!("driver=nbd,host=localhost,port={port},tls-creds=t");
    let source = format!("driver=raw,file.filename={directory}/source");
    std::fs::write(server.path("source"), crate::content::pattern(64 << 20)).unwrap();
    let file = format!("{directory}/source");
    let write = ["convert", "--object", &credentials, "-n", "--target-image-opts", "-f", "raw"];
    output("qemu-img", &[&write[..], &[&file, &image]].concat());
    let compare = ["compare", "--object", &credentials, "--image-opts", &source, &image];
    output("qemu-img", &compare);
    assert_eq!(server.stop(), [""; 0]);
}
