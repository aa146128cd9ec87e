import { assertEquals, assertMatch } from "@std/assert";
import { openTestApp } from "./support.ts";

const SNAPSHOT = new URL("./openapi.json", import.meta.url);

Deno.test("GET /openapi.json is the committed document", async () => {
  await using test = await openTestApp();
  const document = await (await test.fetch("/openapi.json")).json();
  const text = `${JSON.stringify(document, null, 2)}\n`;
  if (Deno.env.get("OVIS_UPDATE_SNAPSHOTS") === "1") await Deno.writeTextFile(SNAPSHOT, text);
  assertEquals(
    text,
    await Deno.readTextFile(SNAPSHOT),
    "the API changed: look at the difference, then run with OVIS_UPDATE_SNAPSHOTS=1",
  );
});

Deno.test("/openapi.json describes every route with its answers and problems", async () => {
  await using test = await openTestApp();
  const { paths } = await (await test.fetch("/openapi.json")).json();
  for (const [path, methods] of Object.entries<Record<string, Record<string, unknown>>>(paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const { summary, tags, responses } = operation as {
        summary: string;
        tags: string[];
        responses: Record<string, unknown>;
      };
      const statuses = Object.keys(responses);
      assertEquals(summary.length > 0 && tags.length === 1, true, `${method} ${path}`);
      assertEquals(statuses.some((status) => status < "4"), true, `${method} ${path}`);
      assertEquals(statuses.includes("421"), true, `${method} ${path}`);
    }
  }
});

Deno.test("/healthz and /readyz tell a live service from one that takes work", async () => {
  await using test = await openTestApp();
  const status = async (path: string) => {
    const response = await test.fetch(path);
    return [response.status, (await response.json()).status];
  };
  assertEquals(await status("/healthz"), [200, "ok"]);
  assertEquals(await status("/readyz"), [200, "ready"]);
  test.service.beginStop();
  assertEquals(await status("/healthz"), [200, "ok"]);
  assertEquals(await status("/readyz"), [503, "stopping"]);
  const response = await test.send("POST", "/v1/vms", { name: "t1", image: "demo" });
  assertEquals((await response.json()).code, "stopping");
});

Deno.test("/metrics counts machines and requests", async () => {
  await using test = await openTestApp();
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo" });
  await test.send("POST", "/v1/vms", { name: "t2", image: "demo", start: false });
  await test.send("POST", "/v1/vms", { name: "t2", image: "demo" });
  const response = await test.fetch("/metrics");
  assertMatch(response.headers.get("content-type") ?? "", /^text\/plain/);
  const text = await response.text();
  assertMatch(text, /^ovis_machines\{state="running"\} 1$/m);
  assertMatch(text, /^ovis_machines\{state="stopped"\} 1$/m);
  assertMatch(
    text,
    /^ovis_http_requests_total\{method="post",route="\/v1\/vms",status="201"\} 2$/m,
  );
  assertMatch(
    text,
    /^ovis_http_requests_total\{method="post",route="\/v1\/vms",status="409"\} 1$/m,
  );
  assertMatch(text, /^ovis_nbd_connections\{machine="t1"\} 0$/m);
  assertMatch(text, /^ovis_nbd_requests_total\{machine="t1",command="read"\} 0$/m);
  assertMatch(text, /^ovis_nbd_connections_total\{machine="t1",outcome="cutOff"\} 0$/m);
  assertMatch(text, /^ovis_nbd_limit\{limit="connections"\} 256$/m);
  assertEquals(/ovis_nbd_connections\{machine="t2"\}/.test(text), false);
});

Deno.test("/ is a page for people and /v1/info tells versions and limits", async () => {
  await using test = await openTestApp();
  const page = await test.fetch("/");
  assertMatch(page.headers.get("content-type") ?? "", /^text\/html/);
  assertMatch(await page.text(), /openapi\.json/);
  const info = await (await test.fetch("/v1/info")).json();
  assertEquals([info.name, info.version, info.limits.vmCount], ["ovis", "0.0.0", 64]);
});
