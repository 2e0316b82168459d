// A receiver's side, by the documentation alone: reads a request as JSON {headers, body, secrets} from standard
// input, and tells by which of the secrets (whsec_) and public keys (whpk_) the attributes of its event verify.
import { createHmac, createPublicKey, verify } from "node:crypto";
import { readFileSync } from "node:fs";

const { headers, secrets } = JSON.parse(readFileSync(0, "utf8"));
const names = Object.keys(headers).filter((name) => name.startsWith("ce-") || name === "content-type").sort();
const lines = ["ce-attributes", headers["webhook-id"], headers["webhook-timestamp"]];
const text = [...lines, ...names.map((name) => `${name}:${headers[name]}`)].join("\n");
const signatures = (headers["webhook-attributes-signature"] ?? "").split(" ").map((one) => one.split(","));

const verified = secrets.map((secret) => {
  const key = Buffer.from(secret.slice(secret.indexOf("_") + 1), "base64");
  if (secret.startsWith("whsec_")) {
    const expected = createHmac("sha256", key).update(text).digest("base64");
    return signatures.some(([version, signature]) => version === "v1" && signature === expected);
  }
  const jwk = { kty: "OKP", crv: "Ed25519", x: key.toString("base64url") };
  const publicKey = createPublicKey({ format: "jwk", key: jwk });
  return signatures.some(
    ([version, signature]) => version === "v1a" && verify(null, Buffer.from(text), publicKey, Buffer.from(signature, "base64")),
  );
});
process.stdout.write(JSON.stringify({ verified }));
