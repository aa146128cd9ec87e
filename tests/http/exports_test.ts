import { assertEquals, assertNotEquals, assertRejects } from "@std/assert";
import { limits } from "../../src/limits.ts";
import { openTestApp, outcome, type TestApp } from "./support.ts";

const SIZE = 3 * limits.exportReadBytes + 512;
const CONTENT = "/v1/exports/t1-disk0-f1/content";

async function openExport(): Promise<TestApp> {
  const test = await openTestApp();
  const disks = [{ name: "disk0", sizeBytes: SIZE }];
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo", disks });
  await test.send("POST", "/v1/vms/t1/fleecings", { name: "f1" });
  return test;
}

/** What the fake disk holds. */
function expectedBytes(offset: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => offset + index);
}

Deno.test("GET content sends the whole disk", async () => {
  await using test = await openExport();
  const response = await test.fetch(CONTENT);
  assertEquals(response.status, 200);
  assertEquals(response.headers.get("content-length"), String(SIZE));
  assertEquals(response.headers.get("accept-ranges"), "bytes");
  assertEquals(
    response.headers.get("content-disposition"),
    'attachment; filename="t1-disk0-f1.img"',
  );
  const bytes = new Uint8Array(await response.arrayBuffer());
  assertEquals(bytes.length, SIZE);
  assertEquals(bytes, expectedBytes(0, SIZE));
});

Deno.test("GET content sends a range", async () => {
  await using test = await openExport();
  const get = (range: string) => test.fetch(CONTENT, { headers: { range } });
  for (
    const [range, offset, length] of [
      ["bytes=0-0", 0, 1],
      ["bytes=1000-1999", 1000, 1000],
      ["bytes=-512", SIZE - 512, 512],
      [`bytes=${limits.exportReadBytes - 1}-${limits.exportReadBytes}`, 1048575, 2],
    ] as const
  ) {
    const response = await get(range);
    assertEquals(response.status, 206);
    assertEquals(
      response.headers.get("content-range"),
      `bytes ${offset}-${offset + length - 1}/${SIZE}`,
    );
    assertEquals(response.headers.get("content-length"), String(length));
    assertEquals(new Uint8Array(await response.arrayBuffer()), expectedBytes(offset, length));
  }
  const beyond = await get(`bytes=${SIZE}-`);
  assertEquals(beyond.headers.get("content-range"), `bytes */${SIZE}`);
  assertEquals(await outcome(beyond), "416 rangeNotSatisfiable");
  const several = await get("bytes=0-1,4-5");
  assertEquals([several.status, (await several.arrayBuffer()).byteLength], [200, SIZE]);
});

Deno.test("HEAD content says what GET would send", async () => {
  await using test = await openExport();
  const response = await test.fetch(CONTENT, { method: "HEAD", headers: { range: "bytes=0-0" } });
  assertEquals(response.status, 200);
  assertEquals(response.headers.get("content-length"), String(SIZE));
  assertEquals((await response.arrayBuffer()).byteLength, 0);
  assertEquals(test.driver().readCount, 0);
});

Deno.test("content has a strong ETag, and preconditions on it", async () => {
  await using test = await openExport();
  const get = (headers: Record<string, string>) => test.fetch(CONTENT, { headers });
  const etag = (await test.fetch(CONTENT, { method: "HEAD" })).headers.get("etag") ?? "";
  assertEquals((await get({ "if-none-match": etag })).status, 304);
  assertEquals((await get({ "if-none-match": `W/${etag}` })).status, 304);
  assertEquals(await outcome(await get({ "if-match": '"other"' })), "412 preconditionFailed");
  assertEquals(await outcome(await get({ "if-match": etag, range: "bytes=0-9" })), "206");
  assertEquals(await outcome(await get({ "if-range": etag, range: "bytes=0-9" })), "206");
  assertEquals(await outcome(await get({ "if-range": '"other"', range: "bytes=0-9" })), "200");
  await test.send("DELETE", "/v1/vms/t1/fleecings/f1");
  await test.send("POST", "/v1/vms/t1/fleecings", { name: "f1" });
  const later = (await test.fetch(CONTENT, { method: "HEAD" })).headers.get("etag");
  assertNotEquals(later, etag);
});

Deno.test("content that may not be read is refused as a whole, naming the first such range", async () => {
  await using test = await openExport();
  test.driver().forbiddenFrom = 65536;
  const response = await test.fetch(CONTENT);
  const problem = await response.clone().json();
  assertEquals(problem.range, { offset: 65536, length: SIZE - 65536 });
  assertEquals(await outcome(response), "403 rangeForbidden");
  const get = (range: string) => test.fetch(CONTENT, { headers: { range } }).then(outcome);
  assertEquals(await get("bytes=0-65535"), "206");
  assertEquals(await get("bytes=0-65536"), "403 rangeForbidden");
  assertEquals((await test.fetch(CONTENT, { method: "HEAD" })).status, 403);
});

Deno.test("a transfer breaks off when the view does, and is not completed quietly", async () => {
  await using test = await openExport();
  const response = await test.fetch(CONTENT);
  test.driver().forbiddenFrom = 2 * limits.exportReadBytes;
  await assertRejects(() => response.arrayBuffer());
});

Deno.test("content is read no faster than its reader takes it", async () => {
  await using test = await openExport();
  const response = await test.fetch(CONTENT);
  const reader = response.body?.getReader();
  await reader?.read();
  // Let everything run that is ready to run.
  await new Promise((resolve) => setTimeout(resolve, 0));
  assertEquals(test.driver().readCount <= 3, true, `${test.driver().readCount} pieces were read`);
  await reader?.cancel();
});

Deno.test("GET extents shows the maps", async () => {
  await using test = await openExport();
  const get = async (query: string) =>
    await (await test.fetch(`/v1/exports/t1-disk0-f1/extents${query}`)).json();
  assertEquals(await get(""), {
    extents: [{ offset: 0, length: SIZE, hole: true, zero: true }],
    nextOffset: null,
  });
  test.driver().forbiddenFrom = 65536;
  assertEquals(await get("?context=access&offset=512&length=131072"), {
    extents: [
      { offset: 512, length: 65024, readable: true },
      { offset: 65536, length: 66048, readable: false },
    ],
    nextOffset: null,
  });
  const refused = (query: string) =>
    test.fetch(`/v1/exports/t1-disk0-f1/extents${query}`).then(outcome);
  assertEquals(await refused("?context=dirt"), "400 invalidRequest");
  assertEquals(await refused("?offset=-1"), "400 invalidRequest");
  assertEquals(await refused(`?offset=${SIZE}`), "422 outOfRange");
  assertEquals(await refused("?length=0"), "400 invalidRequest");
  assertEquals(await refused(`?limit=${limits.extentsPerAnswer + 1}`), "400 invalidRequest");
});

Deno.test("GET exports lists and shows", async () => {
  await using test = await openExport();
  const { items } = await (await test.fetch("/v1/exports")).json();
  assertEquals(items.length, 1);
  const shown = await (await test.fetch("/v1/exports/t1-disk0-f1")).json();
  assertEquals(shown, items[0]);
  assertEquals([shown.vm, shown.disk, shown.fleecing], ["t1", "disk0", "f1"]);
  for (const path of ["", "/content", "/extents", "/nbd"]) {
    assertEquals(
      await outcome(await test.fetch(`/v1/exports/none${path}`)),
      "404 exportNotFound",
    );
  }
  assertEquals(
    await outcome(await test.send("POST", "/v1/exports/none/tickets")),
    "404 exportNotFound",
  );
  assertEquals(await outcome(await test.fetch("/v1/exports/A%2Fb")), "400 invalidRequest");
});
