//! nginx, Envoy and Caddy with the files of `config/integrations/`, each closed and with last known
//! answers. Only addresses and the hour are changed.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Answer, PATIENCE, Place, free_port, repository, request};
use crate::{Server, installed, place, ready};

/// How long last known answers count here, in the place of an hour.
const KEPT: Duration = Duration::from_secs(5);

/// A service that answers with the workspace that it was told.
fn service() -> u16 {
    let port = free_port();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                    head.push(byte[0]);
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let told: Vec<&str> = head.lines().filter_map(|line| line.strip_prefix("x-workspace-id: ")).collect();
                let body = format!("served {}", told.join("+"));
                let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            });
        }
    });
    port
}

struct Gateway {
    name: &'static str,
    port: u16,
    keeps: bool,
}

impl Gateway {
    fn ask_as(&self, key: &str, method: &str, path: &str, more: &[(&str, &str)]) -> Option<Answer> {
        let mut headers = vec![("x-api-key", key)];
        headers.extend(more);
        request(self.port, method, path, &headers, None)
    }

    /// Status of a plain question of one workspace; 0 if there is no answer.
    fn status(&self, name: &str) -> u16 {
        self.ask_as(&format!("key-of-{name}"), "GET", "/v1/messages", &[]).map_or(0, |answer| answer.status)
    }
}

/// A shipped file with the addresses of this test.
fn shipped(name: &str, listen: u16, gate: u16, cache: u16, service: u16) -> String {
    let text = std::fs::read_to_string(repository().join("config/integrations").join(name)).unwrap();
    let mut text = text.replace("  1h;", " 1h;");
    for (was, is) in [(8000, listen), (9847, gate), (9848, cache), (8080, service)] {
        text = text
            .replace(&format!("127.0.0.1:{was}"), &format!("127.0.0.1:{is}"))
            .replace(&format!("port_value: {was}}}"), &format!("port_value: {is}}}"));
    }
    text
}

fn start(mut command: Command, log: &Path) -> Server {
    let log = std::fs::File::create(log).unwrap();
    Server(
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the gateway starts: tests/run installs it"),
    )
}

fn nginx(place: &Place, cache: u16, service: u16) -> (Vec<Gateway>, Server) {
    let (closed, kept) = (free_port(), free_port());
    let folder = place.path("nginx");
    std::fs::create_dir_all(folder.join("tmp")).unwrap();
    let here = folder.to_str().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let keeping = shipped("nginx/gate-cache.conf", 0, place.port, cache, service);
    let short =
        keeping.replace("200 403 1h;", &format!("200 403 {}s;", KEPT.as_secs())).replace("/dev/shm/cmek-gate", &format!("{here}/cache"));
    assert!(short.contains("200 403 5s;") && short.contains(here));
    write("gate-cache.conf", short);
    write("closed.conf", shipped("nginx/closed.conf", closed, place.port, cache, service));
    // Both in one process here: the maps are the same ones.
    let last = shipped("nginx/last-known.conf", kept, place.port, cache, service);
    write("last-known.conf", last[last.find("server {").unwrap()..].to_owned());
    let temporary: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {here}/tmp/{name};\n")).concat();
    write(
        "nginx.conf",
        format!(
            "daemon off;\nmaster_process off;\npid {here}/pid;\nerror_log stderr warn;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}\
             include gate-cache.conf;\ninclude closed.conf;\ninclude last-known.conf;\n}}\n"
        ),
    );
    let mut command = Command::new("/usr/sbin/nginx");
    command.args(["-p", here, "-c", &format!("{here}/nginx.conf")]);
    let server = start(command, &place.path("nginx.log"));
    let gateway = |port, keeps| Gateway { name: if keeps { "nginx, last known" } else { "nginx, closed" }, port, keeps };
    (vec![gateway(closed, false), gateway(kept, true)], server)
}

fn envoy(place: &Place, cache: u16, service: u16, keeps: bool) -> (Gateway, Server) {
    let port = free_port();
    let file = if keeps { "last-known.yaml" } else { "closed.yaml" };
    let path = place.path(&format!("envoy-{file}"));
    std::fs::write(&path, shipped(&format!("envoy/{file}"), port, place.port, cache, service)).unwrap();
    let mut command = Command::new(installed("envoy"));
    let base = if keeps { "8131" } else { "8132" };
    command.args(["--concurrency", "1", "-l", "warn", "--base-id", base, "-c"]).arg(&path);
    let server = start(command, &place.path(&format!("envoy-{file}.log")));
    (Gateway { name: if keeps { "Envoy, last known" } else { "Envoy, closed" }, port, keeps }, server)
}

fn caddy(place: &Place, cache: u16, service: u16, keeps: bool) -> (Gateway, Server) {
    let port = free_port();
    let file = if keeps { "last-known.Caddyfile" } else { "closed.Caddyfile" };
    let path = place.path(&format!("caddy-{file}"));
    std::fs::write(&path, shipped(&format!("caddy/{file}"), port, place.port, cache, service)).unwrap();
    let mut command = Command::new("/usr/bin/caddy");
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&path).env("HOME", place.dir.path());
    let server = start(command, &place.path(&format!("caddy-{file}.log")));
    (Gateway { name: if keeps { "Caddy, last known" } else { "Caddy, closed" }, port, keeps }, server)
}

fn wait_all(gateways: &[Gateway], place: &Place, name: &str, wanted: u16) {
    for gateway in gateways {
        let until = Instant::now() + PATIENCE;
        while gateway.status(name) != wanted {
            let logs = ["nginx.log", "envoy-closed.yaml.log", "envoy-last-known.yaml.log", "caddy-closed.Caddyfile.log"]
                .map(|log| std::fs::read_to_string(place.path(log)).unwrap_or_default().chars().take(2000).collect::<String>());
            assert!(Instant::now() < until, "{}: {} for {name}\n{}", gateway.name, gateway.status(name), logs.join("\n"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Asks through all at once until each refuses; when each did, counted from `act`.
fn refused_after(gateways: &[Gateway], name: &str, act: impl FnOnce() + Send) -> Vec<Duration> {
    let barrier = Barrier::new(gateways.len() + 1);
    std::thread::scope(|scope| {
        let asking: Vec<_> = gateways
            .iter()
            .map(|gateway| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let since = Instant::now();
                    while gateway.status(name) != 403 {
                        assert!(since.elapsed() < PATIENCE, "{} does not refuse", gateway.name);
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    since.elapsed()
                })
            })
            .collect();
        barrier.wait();
        act();
        asking.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn print(what: &str, gateways: &[Gateway], times: &[Duration]) {
    for (gateway, time) in gateways.iter().zip(times) {
        println!("{what}: {:18} {:6.1} ms", gateway.name, time.as_secs_f64() * 1000.0);
    }
}

/// The workspace is what the gateway knows of its caller; nothing that the client writes changes it.
fn the_client_says_nothing(gateways: &[Gateway]) {
    for gateway in gateways {
        let name = gateway.name;
        let liar = [("x-workspace-id", "wrkspc_globex"), ("X-Feature", "models"), ("x-access", "read")];
        let told = gateway.ask_as("key-of-acme", "GET", "/v1/messages", &liar).unwrap();
        assert_eq!(told.status, 403, "{name}: {told:?}");
        assert_eq!(told.header("x-lockout-code"), Some("cmek_key_disabled"), "{name}: {told:?}");
        let twice = [("x-workspace-id", "wrkspc_globex"), ("x-workspace-id", "wrkspc_globex")];
        assert_eq!(gateway.ask_as("key-of-acme", "POST", "/v1/messages", &twice).unwrap().status, 403, "{name}");
        let served = gateway.ask_as("key-of-globex", "GET", "/v1/messages", &[("x-workspace-id", "wrkspc_acme")]).unwrap();
        assert_eq!((served.status, served.text()), (200, "served wrkspc_globex".to_owned()), "{name}");
        assert_eq!(gateway.ask_as("nobody", "GET", "/v1/messages", &liar).unwrap().status, 401, "{name}");
        assert_eq!(request(gateway.port, "GET", "/v1/messages", &liar, None).unwrap().status, 401, "{name}");
        // What is never locked passes, and nothing passes in its name.
        assert_eq!(gateway.ask_as("key-of-acme", "GET", "/v1/models", &[]).unwrap().status, 200, "{name}");
        assert_eq!(gateway.ask_as("key-of-acme", "GET", "/v1/models/claude-x?a=1", &[]).unwrap().status, 200, "{name}");
        for path in [
            "/v1/models/../messages",
            "/v1/models/..%2fmessages",
            "/v1/models%2f..%2fmessages",
            "/v1/models_/x",
            "/v1/models/x/../../messages",
        ] {
            let told = gateway.ask_as("key-of-acme", "GET", path, &[]).unwrap();
            assert!(told.status != 200, "{name} {path}: {told:?}");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            assert_eq!(gateway.ask_as("key-of-acme", method, "/v1/files/x", &[]).unwrap().status, 403, "{name} {method}");
            assert_eq!(gateway.ask_as("key-of-globex", method, "/v1/files/x", &[]).unwrap().status, 200, "{name} {method}");
        }
    }
}

/// From the moment the daemon is dead: closed ones refuse, the others keep what they knew and then
/// close; the locked workspace stays locked through each, in every sample.
fn after_the_end(gateways: &[Gateway], dead: Instant) {
    for gateway in gateways.iter().filter(|gateway| !gateway.keeps) {
        let told = gateway.ask_as("key-of-globex", "GET", "/v1/messages", &[]).unwrap();
        assert_eq!(told.status, 503, "{}: {told:?}", gateway.name);
    }
    println!("dead to refused, closed ones: at once ({:.0} ms for all)", dead.elapsed().as_secs_f64() * 1000.0);
    for gateway in gateways.iter().filter(|gateway| gateway.keeps) {
        assert_eq!(gateway.status("globex"), 200, "{}", gateway.name);
        let never = gateway.ask_as("key-of-globex", "GET", "/v1/skills", &[]).unwrap();
        assert_eq!(never.status, 503, "{}: what was never asked is not known: {never:?}", gateway.name);
    }
    let mut closed: Vec<Option<Duration>> = vec![None; gateways.len()];
    let mut samples = 0;
    while dead.elapsed() < KEPT + Duration::from_secs(3) {
        for (gateway, closed) in gateways.iter().zip(&mut closed) {
            let locked = gateway.status("acme");
            assert!(locked == 403 || locked == 503, "{}: {locked} of a locked workspace", gateway.name);
            let status = gateway.status("globex");
            match (status, *closed) {
                (200, None) => assert!(gateway.keeps, "{} opens", gateway.name),
                (503, None) => *closed = Some(dead.elapsed()),
                (503, Some(_)) => {}
                (status, closed) => panic!("{}: {status} after {closed:?}", gateway.name),
            }
            samples += 1;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for (gateway, closed) in gateways.iter().zip(closed) {
        let closed = closed.unwrap_or_else(|| panic!("{} never closes", gateway.name));
        println!("dead to closed: {:18} {:6.1} s", gateway.name, closed.as_secs_f64());
        if gateway.keeps {
            assert!(closed > KEPT - Duration::from_secs(2) && closed < KEPT + Duration::from_secs(2), "{}: {closed:?}", gateway.name);
        }
    }
    assert!(samples > 100);
}

#[test]
fn a_lock_is_refused_through_each_gateway_and_a_dead_daemon_opens_none() {
    let place = place();
    let daemon = place.start();
    ready(&daemon);
    let (cache, service) = (free_port(), service());
    let (mut gateways, nginx) = nginx(&place, cache, service);
    let mut servers = vec![nginx];
    for keeps in [false, true] {
        for (gateway, server) in [envoy(&place, cache, service, keeps), caddy(&place, cache, service, keeps)] {
            gateways.push(gateway);
            servers.push(server);
        }
    }
    for name in ["globex", "acme", "initech"] {
        wait_all(&gateways, &place, name, 200);
    }

    let ordered = refused_after(&gateways, "initech", || {
        let answer = daemon.post("/v1/workspaces/wrkspc_initech/lock", Some(&json!({ "reason": "drill" })));
        assert_eq!(answer.status, 200);
    });
    print("lock ordered to refused", &gateways, &ordered);
    let revoked = refused_after(&gateways, "acme", || {
        place.good(&["local-kms", "disable", "acme"]);
    });
    print("key disabled to refused", &gateways, &revoked);

    the_client_says_nothing(&gateways);
    for gateway in &gateways {
        assert_eq!((gateway.status("acme"), gateway.status("globex")), (403, 200), "{}", gateway.name);
    }
    daemon.kill();
    after_the_end(&gateways, Instant::now());

    // The daemon comes back: what is open opens, what is locked stays locked.
    let daemon = place.start();
    wait_all(&gateways, &place, "globex", 200);
    wait_all(&gateways, &place, "acme", 403);
    drop((servers, daemon));
}
