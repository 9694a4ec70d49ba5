//! The processes that are compared, and what `/proc` says about them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portcullis::cli::demo::issuer::DevelopmentIssuer;
use tempfile::TempDir;

use crate::{Failure, bare};

/// The gate's configuration, in its directory.
const CONFIG: &str = "portcullis.yaml";
/// Where a line of it begins that changes nothing which matters: a body limit of 65 and some more digits, in KiB.
const CHANGES: &str = "    limits: {body: 65";

/// The gate's identity accepts it on every route.
pub const AUDIENCE: &str = "bench";

/// In the order of the table's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Direct,
    Bare,
    Nginx,
    Gate,
    /// The gate, whose server is a legacy one: every call is carried over a session of the gate's own.
    Bridged,
    /// The gate with room for few requests, which sheds the others.
    Shedding,
}

impl Kind {
    /// The column's head.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Bare => "bare",
            Self::Nginx => "nginx",
            Self::Gate => "gate",
            Self::Bridged => "bridged",
            Self::Shedding => "gate, requests: 64",
        }
    }
}

/// One of them, running; killed when dropped.
pub struct Contestant {
    pub kind: Kind,
    pub address: SocketAddr,
    /// From the start of the process until it took a connection.
    pub started_in: Duration,
    child: Option<Child>,
    /// Its files; gone with it.
    directory: TempDir,
}

impl Contestant {
    /// Starts it in front of `upstream`; `None` when it isn't installed.
    pub async fn start(kind: Kind, upstream: SocketAddr, issuer: &DevelopmentIssuer) -> Result<Option<Self>, Failure> {
        let directory = tempfile::tempdir()?;
        let begun = Instant::now();
        let (address, child) = match kind {
            Kind::Direct => (upstream, None),
            Kind::Bare => {
                let mut child = many_files(&std::env::current_exe()?)
                    .args([bare::ARGUMENT, &upstream.to_string()])
                    .stdout(Stdio::piped())
                    .spawn()?;
                let mut line = String::new();
                let out = child.stdout.take().ok_or("the proxy's stdout is piped")?;
                BufReader::new(out).read_line(&mut line)?;
                (line.trim().parse()?, Some(child))
            }
            Kind::Nginx => {
                if Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_err() {
                    return Ok(None);
                }
                let address = free_address()?;
                let file = directory.path().join("nginx.conf");
                fs::write(&file, nginx_conf(directory.path(), address, upstream))?;
                let child = many_files(Path::new("nginx")).arg("-c").arg(&file).spawn()?;
                (address, Some(child))
            }
            Kind::Gate | Kind::Bridged | Kind::Shedding => {
                let (address, admin) = (free_address()?, free_address()?);
                fs::write(directory.path().join("jwks.json"), issuer.jwks().to_string())?;
                let keys = format!(r#"issuer: "{}", jwks_file: jwks.json"#, issuer.issuer());
                let era = if kind == Kind::Bridged { "legacy" } else { "auto" };
                let requests = if kind == Kind::Shedding { 64 } else { 10_000 };
                let yaml = gate_yaml(address, admin, &[upstream], &keys, requests, era);
                (address, Some(serve(directory.path(), &yaml)?))
            }
        };
        let mut contestant = Self {
            kind,
            address,
            started_in: Duration::ZERO,
            child,
            directory,
        };
        contestant.wait().await?;
        contestant.started_in = begun.elapsed();
        Ok(Some(contestant))
    }

    /// A gate in front of two servers, whose issuer is asked for its keys.
    pub async fn soaked(upstreams: &[SocketAddr], issuer: &str) -> Result<Self, Failure> {
        let directory = tempfile::tempdir()?;
        let begun = Instant::now();
        let (address, admin) = (free_address()?, free_address()?);
        let yaml = gate_yaml(
            address,
            admin,
            upstreams,
            &format!(r#"issuer: "{issuer}""#),
            10_000,
            "auto",
        );
        let child = serve(directory.path(), &yaml)?;
        let mut contestant = Self {
            kind: Kind::Gate,
            address,
            started_in: Duration::ZERO,
            child: Some(child),
            directory,
        };
        contestant.wait().await?;
        contestant.started_in = begun.elapsed();
        Ok(contestant)
    }

    /// Changes the gate's configuration, and has it read again.
    pub fn reconfigure(&self, times: usize) -> Result<(), Failure> {
        let file = self.directory.path().join(CONFIG);
        let yaml = fs::read_to_string(&file)?;
        let (kept, _) = yaml.split_once(CHANGES).ok_or("the configuration is the gate's")?;
        // Renamed into place, as whoever changes a file that is watched should.
        let next = self.directory.path().join("next.yaml");
        fs::write(&next, format!("{kept}{CHANGES}{times}KiB}}\n"))?;
        Ok(fs::rename(next, file)?)
    }

    /// How many reloads the gate says have succeeded.
    pub async fn reloads(&self) -> Result<usize, Failure> {
        let file = fs::read_to_string(self.directory.path().join(CONFIG))?;
        let admin = file
            .split("admin: {address: \"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let admin: SocketAddr = admin.ok_or("the configuration is the gate's")?.parse()?;
        let mut metrics = String::new();
        let mut stream = TcpStream::connect(admin)?;
        stream.write_all(format!("GET /metrics HTTP/1.0\r\nhost: {admin}\r\n\r\n").as_bytes())?;
        stream.read_to_string(&mut metrics)?;
        let count = metrics
            .lines()
            .find_map(|line| line.strip_prefix("portcullis_config_reloads_total{result=\"ok\"} "));
        Ok(count.map(str::parse).transpose()?.unwrap_or_default())
    }

    async fn wait(&mut self) -> Result<(), Failure> {
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(self.address).is_err() {
            if let Some(status) = self.child.as_mut().map(Child::try_wait).transpose()?.flatten() {
                return Err(format!("{} ended at once: {status}", self.kind.name()).into());
            }
            if Instant::now() > end {
                return Err(format!("{} doesn't listen on {}", self.kind.name(), self.address).into());
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// CPU time it has used so far.
    pub fn cpu(&self) -> Result<Duration, Failure> {
        // USER_HZ is 100 wherever Linux runs this (proc(5)).
        let tick = Duration::from_millis(10);
        let mut spent = Duration::ZERO;
        for pid in self.pids()? {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            // The command's name may hold anything, so fields count from its closing parenthesis.
            let fields: Vec<&str> = stat.rsplit_once(") ").ok_or("a stat line")?.1.split(' ').collect();
            let ticks = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
            spent += tick * ticks;
        }
        Ok(spent)
    }

    /// Bytes of memory it holds; `None` for the server that lives in this process.
    pub fn resident(&self) -> Result<Option<u64>, Failure> {
        self.status("VmRSS:")
    }

    /// The most it ever held.
    pub fn peak(&self) -> Result<Option<u64>, Failure> {
        self.status("VmHWM:")
    }

    fn status(&self, key: &str) -> Result<Option<u64>, Failure> {
        if self.child.is_none() {
            return Ok(None);
        }
        let mut bytes = 0;
        for pid in self.pids()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("0 kB");
            bytes += line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024;
        }
        Ok(Some(bytes))
    }

    /// Its process and that one's children: nginx works in those.
    fn pids(&self) -> Result<Vec<u32>, Failure> {
        let Some(child) = &self.child else {
            return Ok(Vec::new());
        };
        let pid = child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        Ok(std::iter::once(pid).chain(children).collect())
    }

    /// Ends it.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // SIGTERM, since nginx's workers outlive a master that is killed.
            let asked = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
            let end = Instant::now() + Duration::from_secs(5);
            while asked.is_ok() && Instant::now() < end && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A thousand streams are two thousand files, more than most shells allow by default.
fn many_files(program: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"ulimit -n "$(ulimit -Hn)"; exec "$@""#, "sh"])
        .arg(program);
    command.stdin(Stdio::null());
    command
}

/// How many files this process may open.
pub fn open_files() -> Result<usize, Failure> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line
        .and_then(|line| line.split_whitespace().next())
        .ok_or("a line of limits")?;
    Ok(soft.parse().unwrap_or(usize::MAX))
}

/// Nobody is likely to take the port before the contestant does.
fn free_address() -> Result<SocketAddr, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn nginx_conf(directory: &Path, address: SocketAddr, upstream: SocketAddr) -> String {
    let directory = directory.display();
    format!(
        "daemon off; worker_processes 2; pid {directory}/nginx.pid; error_log stderr error;\n\
         events {{ worker_connections 8192; }}\n\
         http {{\n\
         access_log off; client_body_temp_path {directory}; proxy_temp_path {directory};\n\
         fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};\n\
         keepalive_requests 1000000000; tcp_nodelay on;\n\
         upstream server {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}\n\
         server {{ listen {address}; location / {{ proxy_pass http://server; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_buffering off; proxy_read_timeout 1h; }} }}\n\
         }}\n"
    )
}

fn serve(directory: &Path, yaml: &str) -> Result<Child, Failure> {
    let file = directory.join(CONFIG);
    fs::write(&file, yaml)?;
    let mut gate = many_files(Path::new(env!("CARGO_BIN_EXE_portcullis")));
    Ok(gate.arg("serve").arg("--config").arg(file).spawn()?)
}

fn gate_yaml(
    address: SocketAddr,
    admin: SocketAddr,
    upstreams: &[SocketAddr],
    keys: &str,
    requests: usize,
    era: &str,
) -> String {
    let urls: Vec<String> = upstreams
        .iter()
        .map(|server| format!(r#""http://{server}/mcp""#))
        .collect();
    let urls = urls.join(", ");
    format!(
        r#"listen: {{address: "{address}", limits: {{requests: {requests}, connections_per_address: 10000}}}}
admin: {{address: "{admin}"}}
telemetry: {{log: {{level: warn}}, audit: {{file: audit.jsonl}}}}
identity:
  bench: {{{keys}, algorithms: [ES256], audiences: [{AUDIENCE}]}}
roles:
  caller: ["role:caller"]
routes:
  bench:
    path: /mcp
    upstream: {{urls: [{urls}], transport: streamable-http, era: {era}}}
    tools:
      rules:
        - {{allow: ["get_*", "small", "slow", "events", "big"], to: [caller]}}
        - {{deny: ["admin_*"]}}
{CHANGES}0KiB}}
"#
    )
}
