//! Thousands of readers on real connections: everybody hears of everything, and how long it takes.
//! `SUBSCRIBERS` sets how many (2,000; 10,000 with `SUBSCRIBERS=10000`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cmek_watchdog::clock;
use cmek_watchdog::http::Limits;
use cmek_watchdog::http::hub::Hub;
use cmek_watchdog::http::serve::serve_tcp;
use cmek_watchdog::words::Access;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::doors::{House, config};
use crate::reads::change;

const EVENTS: u64 = 8;

/// Reads one stream and tells when each event came.
async fn follow(address: std::net::SocketAddr, ready: Arc<AtomicUsize>, came: mpsc::UnboundedSender<(u64, Instant)>) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /v1/stream HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut text = String::new();
    let mut bytes = [0; 2048];
    let (mut at, mut is_ready) = (0, false);
    loop {
        let count = stream.read(&mut bytes).await.unwrap();
        assert!(count > 0, "the stream ended early");
        let now = Instant::now();
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        if !is_ready && text.contains("event: reset") {
            is_ready = true;
            ready.fetch_add(1, Ordering::SeqCst);
        }
        while let Some(found) = text[at..].find("\"sequence\":") {
            at += found + 11;
            let number: String = text[at..].chars().take_while(char::is_ascii_digit).collect();
            if text.len() < at + number.len() + 1 {
                at -= 11;
                break;
            }
            let number: u64 = number.parse().unwrap();
            came.send((number, now)).unwrap();
            if number == EVENTS {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_hear_of_every_change_in_order() {
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let wanted = rustix::process::Rlimit { current: limits.maximum, maximum: limits.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, wanted).unwrap();
    let most = limits.maximum.map_or(usize::MAX, |most| usize::try_from(most).unwrap()) / 2 - 200;
    let subscribers = std::env::var("SUBSCRIBERS").map_or(2_000, |n| n.parse().unwrap());
    assert!(subscribers <= most, "the limit of open files allows {most} connections with both ends here");
    let mut house = House::new(config());
    house.app.hub = Arc::new(Hub::new(0, subscribers, clock::now()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(serve_tcp(listener, None, house.app.clone(), Limits::default(), std::future::pending()));
    let (ready, (came, mut heard)) = (Arc::new(AtomicUsize::new(0)), mpsc::unbounded_channel());
    let began = Instant::now();
    for _ in 0..subscribers {
        tokio::spawn(follow(address, Arc::clone(&ready), came.clone()));
    }
    drop(came);
    while ready.load(Ordering::SeqCst) < subscribers {
        assert!(began.elapsed() < Duration::from_secs(60), "{} of {subscribers} came", ready.load(Ordering::SeqCst));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let joined = began.elapsed();
    let feed = house.app.hub.start(Arc::clone(&house.app.metrics), Arc::clone(&house.app.acks));
    let (mut told, mut handed) = (vec![Instant::now()], Duration::ZERO);
    for n in 1..=EVENTS {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = Instant::now();
        feed.hand(clock::now().mono, vec![change(Some(n), "wrkspc_open", Access::Open, n)], None);
        handed = handed.max(now.elapsed());
        told.push(now);
    }
    let mut delays = Vec::new();
    let mut counts = vec![0usize; usize::try_from(EVENTS).unwrap() + 1];
    while let Some((number, at)) = heard.recv().await {
        let number = usize::try_from(number).unwrap();
        counts[number] += 1;
        delays.push(at.duration_since(told[number]));
    }
    assert!(counts[1..].iter().all(|count| *count == subscribers), "{counts:?}");
    delays.sort();
    let at = |permille: usize| delays[(delays.len() - 1) * permille / 1000];
    println!(
        "{subscribers} readers joined in {joined:?}; event to reader p50 {:?} p99 {:?} max {:?}; the loop was held up for {handed:?} at most",
        at(500),
        at(990),
        at(1000)
    );
    assert!(handed < Duration::from_millis(50), "the loop waits for nobody: {handed:?}");
    assert_eq!(house.metric("cmek_stream_cut_offs_total"), Some(0.0));
    serving.abort();
}
