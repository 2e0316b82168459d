// A receiver's side, by public libraries: reads a request as JSON {headers, body, secrets} from
// standard input, and tells by which of the secrets it verifies. The package standardwebhooks knows
// the symmetric ones; with a public key (whpk_) node's own crypto verifies.
import { createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.HUB_TEST_NODE_RECEIVERS}/package.json`);
const { Webhook } = require("standardwebhooks");

const { headers, body, secrets } = JSON.parse(readFileSync(0, "utf8"));

function symmetric(secret) {
  try {
    new Webhook(secret).verify(body, headers);
    return true;
  } catch {
    return false;
  }
}

function asymmetric(key) {
  const x = Buffer.from(key.slice("whpk_".length), "base64").toString("base64url");
  const publicKey = createPublicKey({ format: "jwk", key: { kty: "OKP", crv: "Ed25519", x } });
  const signed = Buffer.from(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${body}`);
  return headers["webhook-signature"]
    .split(" ")
    .map((one) => one.split(","))
    .some(([version, text]) => version === "v1a" && verify(null, signed, publicKey, Buffer.from(text, "base64")));
}

const verified = secrets.map((one) => (one.startsWith("whpk_") ? asymmetric(one) : symmetric(one)));
process.stdout.write(JSON.stringify({ verified }));
