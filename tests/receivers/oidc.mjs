// A real OAuth2 server (oidc-provider) on the port given, with one client for each way to
// authenticate. Prints "ready" when it listens. A token is a JWT with the audience and the scope that
// were asked for.
import { pathToFileURL } from "node:url";

const [port, secret] = process.argv.slice(2);
const library = `${process.env.HUB_TEST_NODE_RECEIVERS}/node_modules/oidc-provider/lib/index.js`;
const { default: Provider } = await import(pathToFileURL(library));

const client = (method) => ({
  client_id: method,
  client_secret: secret,
  grant_types: ["client_credentials"],
  redirect_uris: [],
  response_types: [],
  token_endpoint_auth_method: method,
});
const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [client("client_secret_basic"), client("client_secret_post")],
  scopes: ["events:write"],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      // The parameter "audience" stands for the one of RFC 8707, "resource".
      defaultResource: (context) => context.oidc.body?.audience,
      getResourceServerInfo: (context, audience) => ({
        scope: "events:write",
        audience,
        accessTokenFormat: "jwt",
        accessTokenTTL: 60,
        jwt: { sign: { alg: "RS256" } },
      }),
    },
  },
});
provider.listen(Number(port), "127.0.0.1", () => console.log("ready"));
