import { assertEquals, assertMatch, assertNotEquals } from "@std/assert";
import { limits } from "../../src/limits.ts";
import { openTestApp, outcome, TOKEN } from "./support.ts";

const BEARER = { authorization: `Bearer ${TOKEN}` };

Deno.test("every route but the public ones needs the token", async () => {
  await using test = await openTestApp({ hasAuth: true });
  const document = await (await test.fetch("/openapi.json")).json();
  const open = new Set([
    "/",
    "/healthz",
    "/readyz",
    "/openapi.json",
    "/client/client.js",
    "/files",
  ]);
  let count = 0;
  for (const [path, methods] of Object.entries(document.paths as Record<string, object>)) {
    for (const method of Object.keys(methods)) {
      const concrete = path.replaceAll("{part}", "kernel").replaceAll(/\{\w+\}/g, "x");
      const result = await outcome(await test.fetch(concrete, { method: method.toUpperCase() }));
      assertEquals(result, open.has(path) ? "200" : "401 unauthorized", `${method} ${path}`);
      count++;
    }
  }
  assertEquals(count > 60, true);
});

Deno.test("a token is taken as bearer token only, and only the right one", async () => {
  await using test = await openTestApp({ hasAuth: true });
  const get = (authorization: string) =>
    test.fetch("/v1/info", { headers: { authorization } }).then(outcome);
  assertEquals(await get(`Bearer ${TOKEN}`), "200");
  assertEquals(await get(`bearer ${TOKEN}`), "200");
  for (
    const wrong of [
      TOKEN,
      `Basic ${btoa(`x:${TOKEN}`)}`,
      `Bearer ${TOKEN}x`,
      `Bearer ${TOKEN.slice(1)}`,
      "Bearer",
      "Bearer ",
      `Bearer ${TOKEN} ${TOKEN}`,
    ]
  ) {
    assertEquals(await get(wrong), "401 unauthorized", wrong);
  }
  const response = await test.fetch("/v1/info");
  assertMatch(response.headers.get("www-authenticate") ?? "", /^Bearer/);
  await response.body?.cancel();
  assertEquals(await outcome(await test.fetch(`/v1/info?token=${TOKEN}`)), "401 unauthorized");
});

Deno.test("Host is an address, localhost or an allowed name", async () => {
  await using test = await openTestApp();
  const get = (host: string) => test.fetch("/healthz", { headers: { host } }).then(outcome);
  for (
    const host of [
      "127.0.0.1:8080",
      "localhost",
      "localhost:1",
      "LOCALHOST",
      "demo.localhost:8080",
      "[::1]:8080",
      "192.168.1.7:8080",
      "ovis.example",
      "OVIS.example:8080",
    ]
  ) {
    assertEquals(await get(host), "200", host);
  }
  for (
    const host of [
      "evil.example",
      "127.0.0.1.evil.example",
      "ovis.example.evil.example",
      "xlocalhost",
      "localhost.evil.example",
      "a b",
      "",
    ]
  ) {
    assertEquals(await get(host), "421 hostNotAllowed", host);
  }
});

Deno.test("Origin is the service's own or an allowed one", async () => {
  await using test = await openTestApp();
  const get = (headers: Record<string, string>) => test.fetch("/v1/vms", { headers }).then(outcome);
  const host = "127.0.0.1:8080";
  assertEquals(await get({ host, origin: "http://127.0.0.1:8080" }), "200");
  assertEquals(await get({ host, origin: "https://tools.example" }), "200");
  for (
    const origin of [
      "http://127.0.0.1:9999",
      "http://localhost:8080",
      "https://evil.example",
      "https://tools.example.evil.example",
      "http://tools.example",
      "null",
      "",
    ]
  ) {
    assertEquals(await get({ host, origin }), "403 originNotAllowed", origin);
  }
  assertEquals(await get({ "sec-fetch-site": "cross-site" }), "403 originNotAllowed");
  assertEquals(
    await get({ "sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors" }),
    "403 originNotAllowed",
  );
  assertEquals(
    await get({ "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate" }),
    "200",
  );
  assertEquals(await get({ "sec-fetch-site": "same-origin" }), "200");
  assertEquals(await get({ "sec-fetch-site": "none" }), "200");
});

Deno.test("pages of an allowed origin may read answers, others get no permission", async () => {
  await using test = await openTestApp({ hasAuth: true });
  const preflight = (origin: string) =>
    test.fetch("/v1/vms", {
      method: "OPTIONS",
      headers: { origin, "access-control-request-method": "POST" },
    });
  const allowed = await preflight("https://tools.example");
  assertEquals(allowed.status, 204);
  assertEquals(allowed.headers.get("access-control-allow-origin"), "https://tools.example");
  assertMatch(allowed.headers.get("access-control-allow-headers") ?? "", /authorization/);
  const refused = await preflight("https://evil.example");
  assertEquals(refused.headers.get("access-control-allow-origin"), null);
  assertEquals(await outcome(refused), "403 originNotAllowed");
  const answer = await test.fetch("/v1/vms", {
    headers: { ...BEARER, origin: "https://tools.example" },
  });
  assertEquals(answer.headers.get("access-control-allow-origin"), "https://tools.example");
  assertEquals(answer.headers.get("vary"), "origin");
  await answer.body?.cancel();
  const own = await test.fetch("/v1/vms", { headers: BEARER });
  assertEquals(own.headers.get("access-control-allow-origin"), null);
  await own.body?.cancel();
});

Deno.test("Host and Origin are checked also with the right token, and where nothing is", async () => {
  await using test = await openTestApp({ hasAuth: true });
  for (const path of ["/v1/vms", "/none"]) {
    assertEquals(
      await outcome(await test.fetch(path, { headers: { ...BEARER, host: "evil.example" } })),
      "421 hostNotAllowed",
    );
    assertEquals(
      await outcome(
        await test.fetch(path, { headers: { ...BEARER, origin: "https://e.example" } }),
      ),
      "403 originNotAllowed",
    );
  }
});

Deno.test("unknown paths and methods are problems", async () => {
  await using test = await openTestApp();
  assertEquals(await outcome(await test.fetch("/none")), "404 notFound");
  assertEquals(await outcome(await test.fetch("/v1/vms/a%2Fb")), "400 invalidRequest");
  assertEquals(await outcome(await test.fetch("/v1/vms/..%2f..%2fetc")), "400 invalidRequest");
  const response = await test.send("PUT", "/v1/vms");
  assertEquals(response.headers.get("allow"), "GET, POST");
  assertEquals(await outcome(response), "405 methodNotAllowed");
});

Deno.test("responses carry headers that keep browsers from guessing and storing", async () => {
  await using test = await openTestApp();
  for (const path of ["/", "/v1/vms", "/none"]) {
    const response = await test.fetch(path);
    await response.body?.cancel();
    assertEquals(response.headers.get("x-content-type-options"), "nosniff");
    assertEquals(response.headers.get("cache-control"), "no-store");
  }
});

Deno.test("a ticket opens its export once, within its life", async () => {
  let nowMs = 1_000_000;
  await using test = await openTestApp({ hasAuth: true, now: () => nowMs });
  const send = (path: string, body?: unknown) =>
    test.fetch(path, {
      method: "POST",
      headers: BEARER,
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
  await send("/v1/vms", { name: "t1", image: "demo" });
  for (const name of ["f1", "f2"]) await (await send("/v1/vms/t1/fleecings", { name })).text();
  const take = async () => await (await send("/v1/exports/t1-disk0-f1/tickets")).json();
  // Without an upgrade the answer is 426 once the ticket was taken.
  const open = (name: string, protocol: string) =>
    test.fetch(`/v1/exports/${name}/nbd`, { headers: { "sec-websocket-protocol": protocol } })
      .then(outcome);

  const first = await take();
  assertEquals(first.protocol, `base64url.bearer.authorization.${first.ticket}`);
  assertEquals(first.expiresAt, new Date(nowMs + limits.ticketLifeMs).toISOString());
  assertNotEquals(first.ticket, (await take()).ticket);
  assertEquals(await open("t1-disk0-f1", `nbd, ${first.protocol}`), "426 upgradeRequired");
  assertEquals(await open("t1-disk0-f1", `nbd, ${first.protocol}`), "401 unauthorized");

  const second = await take();
  assertEquals(await open("t1-disk0-f2", `nbd, ${second.protocol}`), "401 unauthorized");
  assertEquals(await open("t1-disk0-f1", `nbd, ${second.protocol}`), "401 unauthorized");

  const third = await take();
  nowMs += limits.ticketLifeMs;
  assertEquals(await open("t1-disk0-f1", `nbd, ${third.protocol}`), "401 unauthorized");

  assertEquals(await open("t1-disk0-f1", "nbd"), "401 unauthorized");
  assertEquals(await open("none", `nbd, ${(await take()).protocol}`), "401 unauthorized");
  assertEquals(
    await outcome(await test.fetch("/v1/exports/t1-disk0-f1/nbd", { headers: BEARER })),
    "426 upgradeRequired",
  );
  assertEquals(
    await outcome(await test.fetch("/v1/exports/none/nbd", { headers: BEARER })),
    "404 exportNotFound",
  );
});

Deno.test("a ticket is not good for a later export of the same name", async () => {
  await using test = await openTestApp({ hasAuth: true });
  const send = (method: string, path: string, body?: unknown) =>
    test.fetch(path, {
      method,
      headers: BEARER,
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
  await send("POST", "/v1/vms", { name: "t1", image: "demo" });
  await send("POST", "/v1/vms/t1/fleecings", { name: "f1" });
  const { protocol } = await (await send("POST", "/v1/exports/t1-disk0-f1/tickets")).json();
  await send("DELETE", "/v1/vms/t1/fleecings/f1");
  await send("POST", "/v1/vms/t1/fleecings", { name: "f1" });
  const response = await test.fetch("/v1/exports/t1-disk0-f1/nbd", {
    headers: { "sec-websocket-protocol": protocol },
  });
  assertEquals(await outcome(response), "401 unauthorized");
});
