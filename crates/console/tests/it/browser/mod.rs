//! The viewer in a real browser: Debian's Chromium, driven by chromedriver.

mod rows;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::support::{Process, Served};

const DEADLINE: Duration = Duration::from_secs(30);

/// One browser at a time, because a browser needs much memory.
static TURN: Mutex<()> = Mutex::const_new(());

struct Browser {
    page: Client,
    driver: Child,
    _profile: TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Browser {
    async fn open(url: &str) -> Self {
        let turn = TURN.lock().await;
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .spawn()
            .expect("chromedriver is missing: apt-get install -y chromium chromium-driver");
        let stdout = BufReader::new(driver.stdout.take().expect("its output is piped"));
        let said = stdout.lines().map_while(Result::ok).find_map(|line| {
            let port = line.split_once("started successfully on port ")?.1.trim_end_matches('.').to_owned();
            Some(port)
        });
        let port = said.expect("the driver prints its port");
        let profile = tempfile::tempdir().expect("a directory");
        let data = format!("--user-data-dir={}", profile.path().display());
        let mut capabilities = serde_json::Map::new();
        let args = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--window-size=1280,800",
            &data,
        ];
        capabilities.insert("goog:chromeOptions".into(), json!({ "args": args }));
        let page = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities)
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .expect("chromium starts; if it is missing: apt-get install -y chromium chromium-driver");
        page.goto(url).await.expect("the page opens");
        Self { page, driver, _profile: profile, _turn: turn }
    }

    async fn ask(&self, script: &str) -> Value {
        self.page.execute(&format!("return {script}"), vec![]).await.expect("the script runs")
    }

    /// Waits until an expression has a value; on timeout, reports the value that it has.
    async fn sees(&self, script: &str, expected: impl Into<Value>) {
        let (expected, since) = (expected.into(), Instant::now());
        loop {
            let found = self.ask(script).await;
            if found == expected {
                return;
            }
            assert!(since.elapsed() < DEADLINE, "{script}: {found}, expected {expected}");
        }
    }

    async fn messages(&self, expected: &[&str]) {
        self.sees(
            "[...document.querySelectorAll('.row .message')].map((m) => m.textContent)",
            json!(expected),
        )
        .await;
    }

    async fn live(&self) {
        self.sees("document.querySelector('#status').textContent", "Live").await;
    }

    async fn click(&self, selector: &str) {
        let element =
            self.page.find(Locator::Css(selector)).await.unwrap_or_else(|e| panic!("{selector}: {e}"));
        element.click().await.unwrap_or_else(|e| panic!("{selector}: {e}"));
    }

    async fn close(self) {
        self.page.clone().close().await.expect("the browser closes");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_teaches_and_the_first_record_appears() {
    let served = Served::new().await;
    let browser = Browser::open(&served.at.url("/")).await;
    let line = format!(
        "document.querySelector('#empty pre')?.textContent.includes('curl {}')",
        served.at.url("/logs")
    );
    browser.sees(&line, true).await;
    browser.live().await;
    served.at.log("hello", "INFO", "my first log").await;
    browser.messages(&["my first log"]).await;
    browser.sees("document.querySelector('#empty').hidden", true).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_appear_live_and_open_as_a_table() {
    let served = Served::new().await;
    served.at.log("custom-client", "WARN", "before").await;
    let browser = Browser::open(&served.at.url("/")).await;
    browser.messages(&["before"]).await;
    browser.live().await;
    let body = json!({"service": "b", "level": "WARNING", "message": "after", "metadata": {"k": {"n": 1}}, "trace_id": "t-1"});
    served.at.post(body.to_string()).await;
    browser.messages(&["before", "after"]).await;
    browser
        .sees("[...document.querySelectorAll('.row')].map((r) => r.dataset.level)", json!(["warn", "warn"]))
        .await;
    browser
        .sees(
            "[...document.querySelectorAll('.row .level')].map((l) => l.textContent)",
            json!(["WARN", "WARNING"]),
        )
        .await;
    let bar = browser.ask("getComputedStyle(document.querySelector('.row')).borderLeftWidth").await;
    assert_eq!(bar, "3px", "a level is a word and a bar");
    let dot = browser.ask("getComputedStyle(document.querySelector('.row .dot')).backgroundColor").await;
    assert_eq!(dot, "rgb(0, 255, 0)", "Logthon's colour");
    browser.click(".row:last-of-type").await;
    let fields = "Object.fromEntries([...document.querySelectorAll('.detail tr')].map((r) => [r.cells[0].textContent, r.querySelector('.value').textContent]))";
    let fields = browser.ask(fields).await;
    assert_eq!(
        (&fields["message"], &fields["trace_id"], &fields["k"]),
        (&json!("after"), &json!("t-1"), &json!("{\n \"n\": 1\n}"))
    );
    browser.click(".detail td .quiet").await;
    browser.messages(&["after"]).await;
    browser.sees("location.search", "?trace_id=t-1").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_hold_for_what_is_there_and_what_comes() {
    let served = Served::new().await;
    for (service, level, message) in
        [("a", "INFO", "calm"), ("a", "ERROR", "burst pipe"), ("b", "WARN", "drip")]
    {
        served.at.log(service, level, message).await;
    }
    let browser = Browser::open(&served.at.url("/")).await;
    browser.messages(&["calm", "burst pipe", "drip"]).await;
    browser.click("#levels [data-level=warn]").await;
    browser.messages(&["burst pipe", "drip"]).await;
    browser.live().await;
    served.at.log("a", "INFO", "not shown").await;
    served.at.log("a", "CRITICAL", "shown").await;
    browser.messages(&["burst pipe", "drip", "shown"]).await;
    browser.click("#services .chip.service[title]:nth-of-type(2)").await;
    browser.messages(&["burst pipe", "shown"]).await;
    browser.sees("location.search", "?level=warn&service=a").await;
    let search = browser.page.find(Locator::Id("text")).await.expect("the search box");
    search.send_keys("PIPE").await.expect("typed");
    browser.messages(&["burst pipe"]).await;
    browser.sees("document.querySelector('.row mark').textContent", "pipe").await;
    // The address contains the state: a reload shows the same records.
    browser.page.refresh().await.expect("reloaded");
    browser.messages(&["burst pipe"]).await;
    let search = browser.page.find(Locator::Id("text")).await.expect("the search box");
    search.send_keys(" nowhere").await.expect("typed");
    browser.sees("document.querySelector('#empty h2')?.textContent", "Nothing matches").await;
    browser.click("#empty button").await;
    browser.messages(&["calm", "burst pipe", "drip", "not shown", "shown"]).await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_it_counts_and_shows_nothing_until_asked() {
    let served = Served::new().await;
    served.at.log("a", "INFO", "0").await;
    let browser = Browser::open(&served.at.url("/")).await;
    browser.messages(&["0"]).await;
    browser.live().await;
    browser.click("#pause").await;
    for n in 1..4 {
        served.at.log("a", "INFO", &n.to_string()).await;
    }
    browser.sees("document.querySelector('#waiting').textContent", "3 new ↓").await;
    browser.messages(&["0"]).await;
    browser.click("#waiting").await;
    browser.messages(&["0", "1", "2", "3"]).await;
    served.at.log("a", "INFO", "4").await;
    browser.messages(&["0", "1", "2", "3", "4"]).await;
    // Scrolling away from the end also pauses.
    let bulk =
        (0..300).map(|n| event_client::log::LogRecord::new("a", "INFO", format!("bulk {n}"))).collect();
    served.aggregator.store(bulk).await.expect("stored");
    browser.sees("document.querySelectorAll('.row').length", 305).await;
    browser.ask("document.querySelector('#view').scrollTo(0, 100)").await;
    browser.sees("document.querySelector('#waiting').hidden", false).await;
    served.at.log("a", "INFO", "unseen").await;
    browser.sees("document.querySelector('#waiting').textContent", "1 new ↓").await;
    assert_eq!(
        browser.ask("document.querySelector('#view').scrollTop").await,
        100,
        "what is read stays where it is"
    );
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_stays_bounded_and_older_records_are_a_click_away() {
    let served = Served::new().await;
    let bulk = |from: usize, to: usize| {
        (from..to).map(|n| event_client::log::LogRecord::new("a", "INFO", n.to_string())).collect()
    };
    served.aggregator.store(bulk(0, 400)).await.expect("stored");
    let browser = Browser::open(&served.at.url("/")).await;
    browser.sees("document.querySelectorAll('.row').length", 300).await;
    browser.ask("document.querySelector('#older').click()").await;
    browser.sees("document.querySelectorAll('.row').length", 400).await;
    browser.sees("document.querySelector('.row .message').textContent", "0").await;
    browser.sees("document.querySelector('#older').hidden", true).await;
    browser.click("#pause").await;
    browser.live().await;
    for n in 4..30 {
        served.aggregator.store(bulk(n * 100, n * 100 + 100)).await.expect("stored");
    }
    browser.sees("document.querySelector('.row:last-of-type .message').textContent", "2999").await;
    let rows = browser.ask("document.querySelectorAll('.row').length").await;
    assert!(rows.as_u64().is_some_and(|rows| rows <= 2000), "{rows}");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn markup_in_any_field_is_only_text() {
    let served = Served::new().await;
    let probes = [
        "<script>window.pwned=1</script>",
        "<img src=x onerror=\"window.pwned=1\">",
        "\"><svg onload=window.pwned=1>",
        "</title><body onload=window.pwned=1>",
        "javascript:window.pwned=1",
        "{{constructor.constructor('window.pwned=1')()}}",
    ];
    for probe in probes {
        let body = json!({
            "service": probe, "level": probe, "message": probe, "timestamp": probe, "trace_id": probe, "request_id": probe,
            "metadata": { probe: probe, "container_name": probe, "timestamp": probe },
        });
        assert_eq!(served.at.post(body.to_string()).await.status(), 200);
    }
    let broken = format!(
        r#"{{"service":"x","level":"{0}","message":"a "{0}" b","metadata":{{"k":"v"}}}}"#,
        "<img src=x onerror=window.pwned=1>"
    );
    assert_eq!(served.at.post(broken).await.status(), 200);
    let url = format!(
        "/?text={0}&service={0}&trace_id={0}&level={0}",
        "%3Cimg%20src%3Dx%20onerror%3Dwindow.pwned%3D1%3E"
    );
    let browser = Browser::open(&served.at.url(&url)).await;
    browser.sees("document.querySelector('#empty h2')?.textContent", "The records cannot be read").await;
    browser.page.goto(&served.at.url("/")).await.expect("the page opens");
    browser.live().await;
    browser.sees("document.querySelectorAll('.row').length", 7).await;
    browser.ask("document.querySelectorAll('.row').forEach((row) => row.click())").await;
    browser.sees("document.querySelectorAll('.detail').length", 7).await;
    for probe in probes {
        served.at.log(probe, probe, probe).await;
    }
    browser.ask("document.querySelector('#pause').click()").await;
    browser.sees("document.querySelectorAll('.row').length", 13).await;
    for probe in probes {
        let shown = format!(
            "[...document.querySelectorAll('.row .message')].filter((m) => m.textContent === {}).length",
            json!(probe)
        );
        browser.sees(&shown, 2).await;
    }
    assert_eq!(browser.ask("typeof window.pwned").await, "undefined");
    let foreign = "document.querySelectorAll('main :is(script, img, svg, iframe, a, object), header :is(script, img, iframe, a), title ~ script:not([src])').length";
    assert_eq!(browser.ask(foreign).await, 0);
    // Even if the page contained such a script, the content security policy would block it.
    browser.ask("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned=1\"><b id=in></b>')").await;
    browser.sees("document.querySelector('#in') !== null", true).await;
    assert_eq!(browser.ask("typeof window.pwned").await, "undefined");
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_under_any_prefix() {
    let served = Served::new().await;
    // As a gateway does: it removes the prefix from the path.
    let strip = |mut request: axum::extract::Request| {
        let path = request.uri().to_string();
        *request.uri_mut() = path.strip_prefix("/some/deep").unwrap_or("/none").parse().expect("a path");
        request
    };
    let inner = tower::ServiceBuilder::new().map_request(strip).service(served.router.clone());
    let router = axum::Router::new().fallback_service(inner);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let proxy = tokio::spawn(async move { axum::serve(listener, router).await });
    served.at.log("a", "INFO", "0").await;
    let browser = Browser::open(&served.at.url("/api/logs/")).await;
    let mut shown = vec!["0".to_owned()];
    let prefixed = format!("http://{address}/some/deep/");
    for (n, url) in
        [served.at.url("/api/logs/"), served.at.url("/api/logs"), served.at.url("/api/logthon/"), prefixed]
            .iter()
            .enumerate()
    {
        browser.page.goto(url).await.expect("the page opens");
        browser.live().await;
        served.at.log("a", "INFO", &(n + 1).to_string()).await;
        shown.push((n + 1).to_string());
        browser.messages(&shown.iter().map(String::as_str).collect::<Vec<_>>()).await;
    }
    browser.close().await;
    proxy.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn light_and_dark_are_a_choice_that_stays() {
    let served = Served::new().await;
    let browser = Browser::open(&served.at.url("/")).await;
    let background = "getComputedStyle(document.body).backgroundColor";
    browser.live().await;
    for (label, colour) in [("○ Light", "rgb(255, 255, 255)"), ("● Dark", "rgb(17, 22, 29)")] {
        browser.click("#theme").await;
        browser.sees("document.querySelector('#theme').textContent", label).await;
        browser.sees(background, colour).await;
    }
    browser.page.refresh().await.expect("reloaded");
    browser.sees(background, "rgb(17, 22, 29)").await;
    browser.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_comes_back_after_the_connection_was_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let process = Process::start(dir.path());
    process.at.log("a", "INFO", "before").await;
    let browser = Browser::open(&process.at.url("/?service=a")).await;
    browser.messages(&["before"]).await;
    browser.live().await;
    let port = process.at.address.port();
    process.kill();
    browser.sees("document.querySelector('#status').textContent", "Disconnected").await;
    let process = Process::start_on(dir.path(), port);
    process.at.log("a", "INFO", "meanwhile").await;
    browser.messages(&["before", "meanwhile"]).await;
    browser.live().await;
    browser.close().await;
}
