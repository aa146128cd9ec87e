import { assertEquals } from "@std/assert";
import { limits } from "../../src/limits.ts";
import { openTestApp, outcome, type TestApp } from "./support.ts";

const encode = (text: string) => new TextEncoder().encode(text);

async function openMachine(): Promise<TestApp> {
  const test = await openTestApp();
  await test.send("POST", "/v1/vms", { name: "t1", image: "demo" });
  return test;
}

Deno.test("GET console/log is what the guest wrote, over stops and starts", async () => {
  await using test = await openMachine();
  test.driver().events.onConsole(encode("one\r\n"));
  await test.send("POST", "/v1/vms/t1/stop");
  await test.send("POST", "/v1/vms/t1/start");
  test.driver().events.onConsole(encode("two"));
  const response = await test.fetch("/v1/vms/t1/console/log");
  assertEquals(response.headers.get("content-type"), "text/plain; charset=utf-8");
  assertEquals(await response.text(), "one\r\ntwo");
  assertEquals(
    await outcome(await test.fetch("/v1/vms/t1/console/log?follow=maybe")),
    "400 invalidRequest",
  );
  assertEquals(await outcome(await test.fetch("/v1/vms/no/console/log")), "404 vmNotFound");
});

Deno.test("GET console/log?follow goes on until the machine is deleted", async () => {
  await using test = await openMachine();
  const { events } = test.driver();
  events.onConsole(encode("before "));
  const response = await test.fetch("/v1/vms/t1/console/log?follow");
  const text = response.text();
  for (const word of ["and ", "after"]) events.onConsole(encode(word));
  await test.send("DELETE", "/v1/vms/t1");
  assertEquals(await text, "before and after");
});

Deno.test("GET console/log?follow ends when its reader goes or the service stops", async () => {
  await using test = await openMachine();
  const gone = await test.fetch("/v1/vms/t1/console/log?follow");
  await gone.body?.cancel();
  const followed = (await test.fetch("/v1/vms/t1/console/log?follow")).text();
  test.app.stop();
  assertEquals(await followed, "");
});

Deno.test("POST console/input is typed in order, as the ring takes it", async () => {
  await using test = await openMachine();
  test.driver().consoleRoom = 3;
  const results = await Promise.all(
    ["abcdefgh", "", "ij"].map((body) =>
      test.fetch("/v1/vms/t1/console/input", { method: "POST", body }).then(outcome)
    ),
  );
  assertEquals(results, ["204", "204", "204"]);
  assertEquals(String.fromCharCode(...test.driver().typed), "abcdefghij");
});

Deno.test("POST console/input refuses what is too much, and stopped machines", async () => {
  await using test = await openMachine();
  const post = (body: BodyInit) =>
    test.fetch("/v1/vms/t1/console/input", { method: "POST", body }).then(outcome);
  assertEquals(await post(new Uint8Array(limits.requestBodyBytes + 1)), "413 tooLarge");
  assertEquals(test.driver().typed.length, 0);
  await test.send("POST", "/v1/vms/t1/stop");
  assertEquals(await post("x"), "409 wrongState");
});

Deno.test("GET console without an upgrade is refused", async () => {
  await using test = await openMachine();
  assertEquals(await outcome(await test.fetch("/v1/vms/t1/console")), "426 upgradeRequired");
});
