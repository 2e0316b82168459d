//! The verifying functions of docs/receiving.md, in each language, on a delivery of the hub.

use std::path::Path;
use std::process::Stdio;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hmac::{Hmac, Mac as _};
use serde_json::json;
use sha2::Sha256;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::blocks::blocks;
use super::support::{Hub, Receiver, TestBroker, TestClient, TestSettings, print_output, require_tool, tool};

const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const OTHER: &str = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";
const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

include!("verify.rs");

const PYTHON: &str = r#"
import base64, json, sys
asked = json.load(sys.stdin)
headers, body = asked["headers"], base64.b64decode(asked["body"])
def all_of(secret, body):
    return verifies(headers, body, secret) and attributes_verify(headers, secret)
print(json.dumps([all_of(asked["secret"], body), all_of(asked["other"], body), verifies(headers, body + b" ", asked["secret"])]))
"#;

const NODE: &str = r#"
import { readFileSync } from "node:fs";
const asked = JSON.parse(readFileSync(0, "utf8"));
const body = Buffer.from(asked.body, "base64");
const of = (secret, body) => verifies(asked.headers, body, secret);
console.log(JSON.stringify([of(asked.secret, body), of(asked.other, body), of(asked.secret, Buffer.concat([body, Buffer.from(" ")]))]));
"#;

const GO: &str = r#"
func main() {
	var asked struct {
		Headers map[string]string
		Body    []byte
		Secret  string
		Other   string
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	headers := http.Header{}
	for name, value := range asked.Headers {
		headers.Set(name, value)
	}
	fmt.Printf("[%t,%t,%t]\n", verifies(headers, asked.Body, asked.Secret), verifies(headers, asked.Body, asked.Other),
		verifies(headers, append(asked.Body, ' '), asked.Secret))
}
"#;

const GO_HEAD: &str = "package main\n\nimport (\n\t\"crypto/hmac\"\n\t\"crypto/sha256\"\n\t\"encoding/base64\"\n\
     \t\"encoding/json\"\n\t\"fmt\"\n\t\"net/http\"\n\t\"os\"\n\t\"strings\"\n)\n\n";

fn code(language: &str) -> String {
    blocks(language).iter().map(|block| block.text.as_str()).collect::<Vec<_>>().join("\n")
}

/// The program's answer: for the right secret, another secret, and another body.
async fn answer(mut command: Command, asked: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("it starts");
    child.stdin.take().expect("piped").write_all(asked.as_bytes()).await.expect("written");
    let output = child.wait_with_output().await.expect("it ends");
    assert!(output.status.success(), "{}", print_output(&output));
    String::from_utf8(output.stdout).expect("UTF-8").replace(' ', "").trim().to_owned()
}

fn script(folder: &Path, name: &str, text: &str) -> String {
    let file = folder.join(name);
    std::fs::write(&file, text).expect("written");
    file.to_str().expect("UTF-8").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_verifying_functions_verify_a_delivery_and_nothing_else() {
    let broker = TestBroker::start().await;
    let receiver = Receiver::start().await;
    let mut hub = Hub::serve(&broker.url(), &TestSettings::quick().with_key(KEY), &[]);
    hub.ready().await;
    let crm = json!({"id": "crm", "events": ["user.>"], "delivery": {
        "url": receiver.url("/crm"), "content_mode": "binary", "timeout": "2s", "signing": {"secret": SECRET}}});
    let file = script(hub.folder(), "crm.json", &crm.to_string());
    hub.cli_ok(&["subscription", "apply", "-f", &file]).await;
    TestClient::connect(&broker.url()).await.publish("user.created", "u-1").await;
    receiver.wait_for("/crm", 1, std::time::Duration::from_secs(60)).await;
    let delivered = receiver.received("/crm").remove(0);
    let header = |name: &str| delivered.header(name).to_owned();

    let (id, timestamp, signature) =
        (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"));
    let page = code("rust");
    assert!(page.contains(include_str!("verify.rs").trim()), "docs/receiving.md shows another function");
    let longer = [&delivered.body[..], b" "].concat();
    let of = |body: &[u8], secret: &str| verifies(&id, &timestamp, &signature, body, secret);
    assert_eq!(
        (of(&delivered.body, SECRET), of(&delivered.body, OTHER), of(&longer, SECRET)),
        (true, false, false)
    );

    let asked = json!({
        "headers": delivered.headers.iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.to_str().expect("text").to_owned()))
            .collect::<std::collections::BTreeMap<_, _>>(),
        "body": BASE64_STANDARD.encode(&delivered.body), "secret": SECRET, "other": OTHER,
    })
    .to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let sources = [
        ("python3", vec![], script(folder.path(), "verify.py", &format!("{}{PYTHON}", code("python")))),
        ("node", vec![], script(folder.path(), "verify.mjs", &format!("{}{NODE}", code("js")))),
        ("go", vec!["run"], script(folder.path(), "verify.go", &format!("{GO_HEAD}{}{GO}", code("go")))),
    ];
    for (name, args, file) in sources {
        let Some(program) = require_tool(name, tool(name, &format!("HUB_TEST_{}", name.to_uppercase())))
        else {
            continue;
        };
        let mut command = Command::new(program);
        command.args(args).arg(file);
        assert_eq!(answer(command, &asked).await, "[true,false,false]", "{name}");
    }
}
