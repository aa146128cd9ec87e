import { assertEquals } from "@std/assert";
import { MemoryNode } from "../../src/block/drivers/memory.ts";
import { FaultInjectionNode, type FaultRule } from "../../src/block/filters/fault_injection.ts";
import { STATUS_ALLOCATED, STATUS_ZERO } from "../../src/block/types.ts";
import { FakeClock, settleAll } from "../support/fake_clock.ts";
import { assertFails, filled, now, readBytes } from "./support.ts";

function faulty(...rules: FaultRule[]) {
  const clock = new FakeClock();
  const file = new MemoryNode({ nodeName: "mem", sizeBytes: 1 << 20 });
  const node = new FaultInjectionNode({ nodeName: "f", file, rules, clock });
  return { clock, file, node };
}

Deno.test("FaultInjectionNode passes everything that no rule names", async () => {
  const { node, file } = faulty({
    operations: ["read"],
    range: { offset: 100, length: 10 },
    error: "EIO",
  });
  now(node.write(95, filled(20, 1)));
  now(node.writeZeroes(0, 96));
  now(node.discard(112, 2));
  now(node.flush());
  const zero = { length: 1 << 19, flags: STATUS_ALLOCATED | STATUS_ZERO };
  assertEquals(now(node.blockStatus(1 << 19, 1 << 19)), zero);
  assertEquals(await readBytes(node, 94, 6), await readBytes(file, 94, 6));
  now(node.resize(1 << 21));
  // Sizes travel along a graph's edges: these two are not in one.
  assertEquals(file.sizeBytes, 1 << 21);
});

Deno.test("FaultInjectionNode fails requests that touch a rule's range", async () => {
  const range = { offset: 100, length: 10 };
  const { node } = faulty({ operations: ["read", "write"], range, error: "ENOSPC" });
  for (const [offset, length] of [[99, 2], [100, 1], [105, 1], [109, 1], [109, 100], [0, 1000]]) {
    const read = () => node.read(offset ?? 0, filled(length ?? 0, 0));
    await assertFails(read, "ENOSPC", "Injected fault at node 'f': ENOSPC");
  }
  for (const [offset, length] of [[0, 100], [99, 1], [110, 1]]) {
    now(node.read(offset ?? 0, filled(length ?? 0, 0)));
  }
});

Deno.test("FaultInjectionNode fails every kind of request before it happens", async () => {
  const { node, file } = faulty({
    operations: ["read", "write", "writeZeroes", "discard", "flush", "blockStatus"],
    error: "EIO",
  });
  now(file.write(0, filled(10, 7)));
  await assertFails(() => node.read(0, filled(1, 0)), "EIO", /Injected/);
  await assertFails(() => node.write(0, filled(1, 0)), "EIO", /Injected/);
  await assertFails(() => node.writeZeroes(0, 1), "EIO", /Injected/);
  await assertFails(() => node.discard(0, 1 << 20), "EIO", /Injected/);
  await assertFails(() => node.flush(), "EIO", /Injected/);
  await assertFails(() => node.blockStatus(0, 1), "EIO", /Injected/);
  assertEquals(await readBytes(file, 0, 2), new Uint8Array([7, 7]));
});

Deno.test("FaultInjectionNode can fail a request after it happened", async () => {
  const { node, file } = faulty({ operations: ["write"], error: "EIO", when: "after" });
  await assertFails(() => node.write(0, filled(1, 9)), "EIO", /Injected/);
  assertEquals(await readBytes(file, 0, 1), new Uint8Array([9]));
});

Deno.test("FaultInjectionNode skips and counts", async () => {
  const { node } = faulty({ operations: ["read"], error: "EIO", skipCount: 2, count: 2 });
  const outcomes: string[] = [];
  for (let i = 0; i < 6; i++) {
    await Promise.resolve().then(() => node.read(0, filled(1, 0)))
      .then(() => outcomes.push("ok"), (error) => outcomes.push(error.code));
  }
  assertEquals(outcomes, ["ok", "ok", "EIO", "EIO", "ok", "ok"]);
  assertEquals(node.rules[0]?.hitCount, 2);
});

Deno.test("FaultInjectionNode goes by the first rule that is not used up", async () => {
  const { node } = faulty(
    { operations: ["read"], error: "EIO", count: 1 },
    { operations: ["read"], error: "ENOSPC", count: 1 },
  );
  await assertFails(() => node.read(0, filled(1, 0)), "EIO", /./);
  const added = node.addRule({ operations: ["read"], error: "ETIMEDOUT" });
  await assertFails(() => node.read(0, filled(1, 0)), "ENOSPC", /./);
  await assertFails(() => node.read(0, filled(1, 0)), "ETIMEDOUT", /./);
  assertEquals([added.matchCount, added.hitCount, node.details()], [1, 1, { ruleCount: 3 }]);
  node.removeRule(added);
  now(node.read(0, filled(1, 0)));
});

Deno.test("FaultInjectionNode delays a request before or after its work", async () => {
  for (const when of ["before", "after"] as const) {
    const { node, file, clock } = faulty({ operations: ["write"], delayMs: 50, when });
    let isDone = false;
    const write = Promise.resolve(node.write(0, filled(1, 5))).then(() => isDone = true);
    await clock.advance(49);
    const seen = (await readBytes(file, 0, 1))[0];
    assertEquals([isDone, seen], [false, when === "before" ? 0 : 5]);
    await clock.advance(1);
    await write;
    assertEquals((await readBytes(file, 0, 1))[0], 5);
  }
});

Deno.test("FaultInjectionNode holds requests at a gate and fails them behind it", async () => {
  const gates: PromiseWithResolvers<void>[] = [];
  const gate = () => {
    const next = Promise.withResolvers<void>();
    gates.push(next);
    return next.promise;
  };
  const { node, file } = faulty({
    operations: ["write"],
    gate,
    error: "EIO",
    skipCount: 0,
    count: 2,
  });
  const first = node.write(0, filled(1, 1));
  const second = node.write(1, filled(1, 1));
  now(node.write(2, filled(1, 1)));
  await settleAll();
  assertEquals(gates.length, 2);
  gates[1]?.resolve();
  await assertFails(() => second, "EIO", /Injected/);
  gates[0]?.reject(new Error("gate broke"));
  let message = "";
  await Promise.resolve(first).catch((error) => message = error.message);
  assertEquals(message, "gate broke");
  assertEquals(await readBytes(file, 0, 3), new Uint8Array([0, 0, 1]));
});
