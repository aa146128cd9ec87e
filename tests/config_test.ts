import { assertEquals, assertThrows } from "@std/assert";
import { environmentName, resolveSettings, SettingsError } from "../src/config.ts";

function resolve(
  flags: Record<string, unknown>,
  variables: Record<string, string> = {},
  file: Record<string, unknown> = {},
) {
  return resolveSettings({ flags, environment: (name) => variables[name], file });
}

Deno.test("resolveSettings() prefers flag, environment, file, default, in this order", () => {
  assertEquals(resolve({}, { HOME: "/home/x" }).data, "/home/x/.local/share/ovis");
  assertEquals(resolve({}).port, 8080);
  assertEquals(resolve({}, {}, { port: 1 }).port, 1);
  assertEquals(resolve({}, { OVIS_PORT: "2" }, { port: 1 }).port, 2);
  assertEquals(resolve({ port: 3 }, { OVIS_PORT: "2" }, { port: 1 }).port, 3);
  assertEquals(resolve({ port: undefined }, { OVIS_PORT: "2" }).port, 2);
  assertEquals(resolve({}, { OVIS_ALLOW_HOSTS: "a, b" }).allowHosts, ["a", "b"]);
  assertEquals(resolve({}, { OVIS_AUTH: "0" }).auth, false);
  assertEquals(environmentName("nbdHost"), "OVIS_NBD_HOST");
});

Deno.test("resolveSettings() refuses what can't be, naming it", () => {
  const refuse = (flags: Record<string, unknown>, text: string) =>
    assertThrows(() => resolve(flags), SettingsError, text);
  refuse({ port: 65536 }, "port");
  refuse({ token: "short" }, "8 to 256");
  refuse({ publicUrl: "ftp://x" }, "publicUrl");
  refuse({ publicUrl: "http://x/path" }, "publicUrl");
  refuse({ logLevel: "loud" }, "logLevel");
  refuse({ bogus: 1 }, "bogus");
  assertThrows(() => resolve({}, { OVIS_PORT: "eighty" }), SettingsError, "port");
});

Deno.test("resolveSettings() goes without authentication on loopback only", () => {
  for (const host of ["127.0.0.1", "127.8.8.8", "::1", "localhost"]) {
    assertEquals(resolve({ auth: false, host }).auth, false);
  }
  for (const host of ["0.0.0.0", "::", "192.168.1.1", "example.org", "127.0.0.1.example.org"]) {
    assertThrows(() => resolve({ auth: false, host }), SettingsError, "loopback only");
    assertThrows(() => resolve({ auth: false, nbdHost: host }), SettingsError, "loopback only");
    assertEquals(resolve({ host }).host, host);
  }
});
