//! Tests that text from others cannot control the reader's terminal, in any command.

use backbone_tests::Cli;

/// Clears the screen, sets the title, reverses the following text, and ends the line.
const HOSTILE: &str = "a\u{1b}[2Jb\u{1b}]0;title\u{7}c\u{202e}d\u{9b}e\nf\rg";

#[tokio::test]
async fn names_and_data_of_others_are_shown_harmlessly() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let json = serde_json::to_string(HOSTILE).unwrap();
    assert!(cli.run(&["pub", "n.a.v1", &json, "--id", HOSTILE]).await.ok);
    let array = format!("[{json}]");
    let called = cli.run(&["task", "call", HOSTILE, "-a", &array, "--queue", HOSTILE]).await;
    assert!(called.ok, "{called:?}");
    let schedule = ["task", "schedule", "add", HOSTILE, "--task", HOSTILE, "--every", "1h", "-a", &array];
    let scheduled = cli.run(&schedule).await;
    assert!(scheduled.ok, "{scheduled:?}");
    let mut said = vec![called, scheduled];
    for command in [
        &["replay", "n.>"][..],
        &["task", "inspect", "reserved"],
        &["task", "inspect", "stats"],
        &["task", "schedule", "ls"],
        &["task", "pause", HOSTILE],
        &["lag"],
    ] {
        for format in [&[][..], &["--json"]] {
            let shown = cli.run(&[command, format].concat()).await;
            assert!(shown.ok, "{command:?}: {shown:?}");
            said.push(shown);
        }
    }
    for shown in said {
        for text in [&shown.out, &shown.err] {
            let raw = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
            assert_eq!(raw, None, "{text:?}");
            assert!(
                !text.lines().any(|line| line.starts_with('f')),
                "a line break of others is one of ours: {text:?}"
            );
        }
    }
}
