/**
 * Who waits for whom in fleecing, and for how long: acceptance 24 to 30, and the like. Requests are
 * held by gates, time stands still until it is moved.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { settleAll } from "../support/fake_clock.ts";
import { CLUSTER, dataClusters, gate, MiB, Rig } from "../support/fleecing_rig.ts";

const OLD = `11*${CLUSTER}`;

async function rigWithData(): Promise<Rig> {
  const rig = new Rig();
  await rig.guest.write(0, MiB, 0x11);
  return rig;
}

/** Follows an answer: its words, or "waits". */
function follow(answer: Promise<string>): () => Promise<string> {
  let words = "waits";
  answer.then((answered) => words = answered);
  return async () => {
    await settleAll();
    return words;
  };
}

for (const seconds of [1, 5, 45]) {
  Deno.test(`acceptance 24: a cbw-timeout of ${seconds} s lasts as long, both policies`, async () => {
    for (const policy of ["break-guest-write", "break-snapshot"] as const) {
      const rig = await rigWithData();
      const fleecing = await rig.fleece({ onCbwError: policy, cbwTimeoutSeconds: seconds });
      const stalled = gate(["write"]);
      fleecing.faults.addRule(stalled.rule);
      const write = follow(rig.guest.write(0, 512, 0x22));
      await rig.clock.advance(seconds * 1000 - 1);
      assertEquals(await write(), "waits");
      await rig.clock.advance(1);
      assertEquals(await write(), policy === "break-snapshot" ? "ok" : "ETIMEDOUT");
      const expected = policy === "break-snapshot" ? "refused" : OLD;
      assertEquals(await fleecing.view.read(0, CLUSTER), expected);
      const [info] = fleecing.fleecing.info();
      assertEquals(info?.guestWaitMs, seconds * 1000);
      assertEquals(info?.brokenBy !== null, policy === "break-snapshot");
      stalled.open();
      await settleAll();
      await rig.close(fleecing);
    }
  });
}

Deno.test("acceptance 25: a timed-out copy runs on behind; the write then succeeds at once", async () => {
  const rig = await rigWithData();
  const fleecing = await rig.fleece({ cbwTimeoutSeconds: 1 });
  const stalled = gate(["write"], { count: 1 });
  fleecing.faults.addRule(stalled.rule);
  const write = follow(rig.guest.write(0, 512, 0x22));
  await rig.clock.advance(1000);
  assertEquals(await write(), "ETIMEDOUT");
  // Not yet: the copy is still in flight.
  const again = follow(rig.guest.write(0, 512, 0x33));
  assertEquals(await again(), "waits");
  stalled.open();
  assertEquals(await again(), "ok");
  assertEquals(stalled.waiting(), 1);
  assertEquals(fleecing.fleecing.info()[0]?.clustersDone, 1);
  assertEquals(await fleecing.view.read(0, CLUSTER), OLD);
  await rig.close(fleecing);
});

Deno.test("a stalled copy that nobody waits for keeps no other fleecing from coming and going", async () => {
  const rig = await rigWithData();
  const stalledOne = await rig.fleece({ cbwTimeoutSeconds: 1 });
  const stalled = gate(["write"], { count: 1 });
  stalledOne.faults.addRule(stalled.rule);
  const write = follow(rig.guest.write(0, 512, 0x22));
  await rig.clock.advance(1000);
  assertEquals(await write(), "ETIMEDOUT");
  const other = await rig.fleece();
  assertEquals(await rig.guest.write(2 * CLUSTER, 512, 0x33), "ok");
  assertEquals(await other.view.read(2 * CLUSTER, CLUSTER), OLD);
  await other.fleecing.stop();
  stalled.open();
  assertEquals(await stalledOne.view.read(0, MiB), `11*${MiB}`);
  await rig.close(stalledOne);
});

Deno.test("a stop waits for a copy in flight, but guest writes no longer do", async () => {
  const rig = await rigWithData();
  const fleecing = await rig.fleece();
  const stalled = gate(["write"]);
  fleecing.faults.addRule(stalled.rule);
  const write = follow(rig.guest.write(0, 512, 0x22));
  assertEquals(await write(), "waits");
  const stop = follow(fleecing.fleecing.stop().then(() => "stopped"));
  assertEquals(await write(), "ok");
  assertEquals(await rig.guest.write(2 * CLUSTER, 512, 0x33), "ok");
  assertEquals(await stop(), "waits");
  stalled.open();
  assertEquals(await stop(), "stopped");
  await rig.close();
});

Deno.test("acceptance 26: a guest write waits for a slow view read there, and nowhere else", async () => {
  for (const kind of ["before", "after"] as const) {
    const rig = await rigWithData();
    const fleecing = await rig.fleece();
    const slow = gate(["read"], { count: 1, when: kind });
    rig.disk.addRule(slow.rule);
    const short = gate(["read"], { count: 1, range: { offset: 12 * CLUSTER, length: 10 } });
    rig.disk.addRule(short.rule);
    const read = follow(fleecing.view.read(0, 2 * CLUSTER));
    const shortRead = follow(fleecing.view.read(12 * CLUSTER + 5, 10));
    const beside = follow(rig.guest.write(12 * CLUSTER, 1, 0x55));
    assertEquals([await shortRead(), await beside()], ["waits", "waits"]);
    short.open();
    assertEquals([await shortRead(), await beside()], ["11*10", "ok"]);
    const writes = [
      follow(rig.guest.write(0, 512, 0x22)),
      // Finds its cluster copied by the first: waits for the reader all the same.
      follow(rig.guest.write(1024, 512, 0x33)),
      follow(rig.guest.zero(CLUSTER + 512, 512)),
      follow(rig.guest.trim(0, 4 * CLUSTER)),
    ];
    for (const write of writes) assertEquals(await write(), "waits");
    assertEquals(await rig.guest.write(8 * CLUSTER, 512, 0x44), "ok");
    assertEquals(await rig.guest.read(0, 512), "11*512");
    // Readers wait for nobody: this cluster is copied, and a write to it waits.
    assertEquals(await fleecing.view.read(0, CLUSTER), OLD);
    slow.open();
    assertEquals(await read(), `11*${2 * CLUSTER}`);
    for (const write of writes) assertEquals(await write(), "ok");
    assertEquals(await rig.guest.read(0, 512), "00*512");
    assertEquals(await fleecing.view.read(0, MiB), `11*${MiB}`);
    await rig.close(fleecing);
  }
});

Deno.test("a guest write waits for a slow view status there, so that no status is new", async () => {
  const rig = await rigWithData();
  const fleecing = await rig.fleece();
  const [allocation] = fleecing.export.contexts;
  const slow = gate(["blockStatus"], { count: 1, when: "before" });
  rig.disk.addRule(slow.rule);
  const status = Promise.resolve(allocation?.extents(0, 2 * MiB, { maxExtents: 9 }));
  const trim = follow(rig.guest.trim(0, MiB));
  assertEquals(await trim(), "waits");
  slow.open();
  assertEquals(await status, [{ length: MiB, flags: 0 }, { length: MiB, flags: 3 }]);
  assertEquals(await trim(), "ok");
  await rig.close(fleecing);
});

Deno.test("acceptance 27: two overlapping slow reads and a status at once", async () => {
  const rig = await rigWithData();
  const fleecing = await rig.fleece();
  const slow = gate(["read", "blockStatus"]);
  rig.disk.addRule(slow.rule);
  const reads = [
    follow(fleecing.view.read(0, 2 * CLUSTER)),
    follow(fleecing.view.read(CLUSTER, 2 * CLUSTER)),
    follow(fleecing.view.read(0, 2 * CLUSTER)),
  ];
  const status = Promise.resolve(fleecing.export.contexts[0]?.extents(0, MiB, { maxExtents: 9 }));
  for (const read of reads) assertEquals(await read(), "waits");
  slow.open();
  for (const read of reads) assertEquals(await read(), `11*${2 * CLUSTER}`);
  assertEquals(await status, [{ length: MiB, flags: 0 }]);
  await rig.close(fleecing);
});

Deno.test("acceptance 28: two guest writes to one cluster make one copy", async () => {
  const rig = await rigWithData();
  const fleecing = await rig.fleece();
  const slow = gate(["write"], { count: 1 });
  const rule = fleecing.faults.addRule(slow.rule);
  const first = follow(rig.guest.write(0, 512, 0x22));
  const second = follow(rig.guest.write(1024, 512, 0x33));
  assertEquals([await first(), await second()], ["waits", "waits"]);
  slow.open();
  assertEquals([await first(), await second()], ["ok", "ok"]);
  assertEquals(rule.matchCount, 1);
  assertEquals(await fleecing.view.read(0, CLUSTER), OLD);
  await rig.close(fleecing);
});

Deno.test("acceptance 28: where the first copy fails, the second write copies itself", async () => {
  const rig = await rigWithData();
  const fleecing = await rig.fleece();
  const failing = gate(["write"], { count: 1, error: "EIO" });
  fleecing.faults.addRule(failing.rule);
  const first = follow(rig.guest.write(0, 512, 0x22));
  const second = follow(rig.guest.write(1024, 512, 0x33));
  assertEquals([await first(), await second()], ["waits", "waits"]);
  failing.open();
  assertEquals([await first(), await second()], ["EIO", "ok"]);
  assertEquals(await rig.guest.read(0, 2048), "11*1024 33*512 11*512");
  assertEquals(await fleecing.view.read(0, CLUSTER), OLD);
  await rig.close(fleecing);
});

Deno.test("acceptance 29: a view read in flight when the snapshot breaks fails, without data", async () => {
  const rig = await rigWithData();
  const fleecing = await rig.fleece({ onCbwError: "break-snapshot" });
  const slow = gate(["read"], { count: 1, range: { offset: 0, length: 512 } });
  rig.disk.addRule(slow.rule);
  const buffer = new Uint8Array(CLUSTER);
  const read = Promise.resolve(fleecing.export.read(0, buffer)).then(() => "ok", (e) => e.code);
  fleecing.faults.addRule({ operations: ["write"], error: "EIO", count: 1 });
  assertEquals(await rig.guest.write(8 * CLUSTER, 512, 0x22), "ok");
  // Nobody waits for a reader of what is broken.
  assertEquals(await rig.guest.write(0, CLUSTER, 0xee), "ok");
  slow.open();
  assertEquals(await read, "EACCES");
  assert(buffer.every((byte) => byte === 0));
  await rig.close(fleecing);
});

Deno.test("a view read from the target fails where the area is discarded meanwhile", async () => {
  const rig = await rigWithData();
  const fleecing = await rig.fleece();
  await rig.guest.write(0, CLUSTER, 0x22);
  const slow = gate(["read"], { count: 1 });
  fleecing.faults.addRule(slow.rule);
  const read = follow(fleecing.view.read(0, CLUSTER));
  assertEquals(await read(), "waits");
  assertEquals(await fleecing.view.trim(0, CLUSTER), "ok");
  slow.open();
  assertEquals(await read(), "refused");
  await rig.close(fleecing);
});

for (const fails of [false, true]) {
  Deno.test(
    `acceptance 30: a discard during a copy${fails ? " that fails" : ""} leaves nothing`,
    async () => {
      const rig = await rigWithData();
      const fleecing = await rig.fleece({ scratchMaxBytes: CLUSTER });
      const slow = gate(["write"], { count: 1, ...(fails ? { error: "EIO" } : {}) });
      const rule = fleecing.faults.addRule(slow.rule);
      const write = follow(rig.guest.write(0, 512, 0x22));
      assertEquals(await write(), "waits");
      const discard = follow(fleecing.view.trim(0, CLUSTER));
      assertEquals(await discard(), "waits");
      assertEquals(await fleecing.view.read(0, 512), "refused");
      slow.open();
      assertEquals(await write(), fails ? "EIO" : "ok");
      assertEquals(await discard(), "ok");
      assertEquals(dataClusters(fleecing.target), "");
      assertEquals(fleecing.fleecing.info()[0]?.scratchUsedBytes, 0);
      // It is not copied again, also where the copy had failed.
      assertEquals(await rig.guest.write(0, 512, 0x33), "ok");
      assertEquals(rule.matchCount, 1);
      // And its room may be used again.
      assertEquals(await rig.guest.write(CLUSTER, 512, 0x33), "ok");
      assertEquals(dataClusters(fleecing.target), "1+1");
      await rig.close(fleecing);
    },
  );
}

Deno.test("a guest read and a guest flush don't wait for a copy", async () => {
  const rig = await rigWithData();
  const fleecing = await rig.fleece();
  const slow = gate(["write"]);
  fleecing.faults.addRule(slow.rule);
  const write = follow(rig.guest.write(0, 512, 0x22));
  assertEquals(await rig.guest.read(0, 512), "11*512");
  assertEquals(await rig.guest.flush(), "ok");
  assertEquals(await fleecing.view.read(0, CLUSTER), OLD);
  assertEquals(await write(), "waits");
  slow.open();
  assertEquals(await write(), "ok");
  await rig.close(fleecing);
});

Deno.test("copies of one request run side by side, within the limit", async () => {
  const rig = new Rig({ sizeBytes: 80 * MiB });
  // Every second cluster, so that no copy is longer than one.
  for (let i = 0; i < 200; i += 2) await rig.guest.write(i * CLUSTER, 512, 0x11);
  const fleecing = await rig.fleece();
  const slow = gate(["write"]);
  fleecing.faults.addRule(slow.rule);
  const write = follow(rig.guest.zero(0, 200 * CLUSTER));
  assertEquals(await write(), "waits");
  assertEquals(slow.waiting(), 64);
  slow.open();
  // Some MiB at a time, with turns of the event loop in between.
  for (let i = 0; await write() === "waits"; i++) assert(i < 10);
  assertEquals(await write(), "ok");
  assertEquals(slow.waiting(), 100);
  assertEquals(await fleecing.view.read(198 * CLUSTER, 1024), "11*512 00*512");
  await rig.close(fleecing);
});

Deno.test("a stop under a reader, and a start while another stops", async () => {
  const rig = await rigWithData();
  const first = await rig.fleece();
  const second = await rig.fleece();
  const slow = gate(["read"], { count: 1 });
  rig.disk.addRule(slow.rule);
  const read = follow(first.view.read(0, 512));
  const stops = [first.fleecing.stop(), second.fleecing.stop()];
  const starting = rig.fleece();
  await settleAll();
  slow.open();
  assertEquals(await read(), "refused");
  await Promise.all(stops);
  const third = await starting;
  assertEquals(await first.view.read(0, 512), "ESHUTDOWN");
  assertEquals(await rig.guest.write(0, 512, 0x22), "ok");
  assertEquals(await third.view.read(0, CLUSTER), OLD);
  await rig.close(third);
});
