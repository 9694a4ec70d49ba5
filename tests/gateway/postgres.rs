//! A PostgreSQL server for one test: Debian's, with a cluster of its own in a directory that ends with it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portcullis::config::{Database, SealKey, State};
use portcullis::secret::Secret;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;
const PASSWORD: &str = "pg-password-2f81";
const SOON: Duration = Duration::from_secs(60);

pub struct Postgres {
    directory: TempDir,
    port: u16,
    server: Option<Child>,
}

impl Postgres {
    /// Makes a cluster and starts it. Panics where PostgreSQL isn't installed: `tests/run packages` does that.
    pub fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-pg")
            .tempdir()
            .expect("a directory");
        let password = directory.path().join("password");
        fs::write(&password, PASSWORD).expect("a file");
        let named = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
        let key = directory.path().join("server.key");
        fs::write(directory.path().join("server.pem"), named.cert.pem()).expect("a file");
        fs::write(&key, named.signing_key.serialize_pem()).expect("a file");
        fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).expect("its own");
        if rustix::process::geteuid().is_root() {
            for path in [directory.path(), &password, &key] {
                chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
            }
        }
        let made = program("initdb", directory.path())
            .args([
                "-U",
                "gate",
                "-A",
                "scram-sha-256",
                "-E",
                "UTF8",
                "--no-locale",
                "--no-sync",
                "--pwfile",
            ])
            .arg(&password)
            .arg("-D")
            .arg(directory.path().join("data"))
            .output()
            .expect("PostgreSQL's initdb runs; tests/run packages installs it");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .expect("a free port")
            .port();
        let mut postgres = Self {
            directory,
            port,
            server: None,
        };
        postgres.resume();
        postgres
    }

    /// The server, and whoever is connected, ends at once, as in a crash.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let pid = Pid::from_child(&server);
            // Immediate shutdown; backends end too.
            let _ = kill_process(pid, Signal::QUIT);
            let _ = server.wait();
        }
    }

    /// Starts it again where it was.
    pub fn resume(&mut self) {
        let data = self.directory.path().join("data");
        let server = program("postgres", self.directory.path())
            .arg("-D")
            .arg(&data)
            .args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-k"])
            .arg(self.directory.path())
            .args(["-c", "shared_buffers=4MB", "-c", "max_connections=60", "-c", "ssl=on"])
            .args(["-c", "ssl_cert_file=../server.pem", "-c", "ssl_key_file=../server.key"])
            .spawn()
            .expect("PostgreSQL runs");
        self.server = Some(server);
        let until = Instant::now() + SOON;
        // The eighth line says how it is (PostgreSQL's miscadmin.h, LOCK_FILE_LINE_PM_STATUS).
        let ready = || {
            fs::read_to_string(data.join("postmaster.pid"))
                .is_ok_and(|text| text.lines().nth(7).is_some_and(|state| state.trim() == "ready"))
        };
        while !ready() {
            assert!(Instant::now() < until, "PostgreSQL isn't ready");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn url(&self) -> String {
        format!("postgres://gate:{PASSWORD}@127.0.0.1:{}/postgres", self.port)
    }

    /// The certificate it shows, for 127.0.0.1.
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("server.pem")
    }

    /// What a gateway with this database is told of its state, and nothing kept in files.
    pub fn state(&self, seal_keys: Vec<SealKey>) -> State {
        State {
            directory: PathBuf::from("/nonexistent"),
            database: Database::Postgres(Secret::new(self.url())),
            seal_keys,
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// One of PostgreSQL's programs, as somebody who isn't root.
fn program(name: &str, directory: &Path) -> Command {
    // Debian keeps them out of the path, by version.
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let installed = versions
        .map(|version| version.path().join("bin").join(name))
        .find(|path| path.exists());
    let mut command = Command::new(installed.unwrap_or_else(|| name.into()));
    command
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if name == "postgres" {
        command.stderr(Stdio::null());
    }
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}
