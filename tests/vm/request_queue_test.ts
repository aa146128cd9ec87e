import { assertEquals, assertRejects } from "@std/assert";
import fc from "fast-check";
import { ServiceError } from "../../src/vm/errors.ts";
import { RequestQueue } from "../../src/vm/request_queue.ts";

Deno.test("RequestQueue runs one at a time, in order, whatever fails", async () => {
  await fc.assert(fc.asyncProperty(
    fc.array(fc.record({ turns: fc.nat(3), fails: fc.boolean() }), { maxLength: 20 }),
    async (requests) => {
      const queue = new RequestQueue(32);
      const begun: number[] = [];
      let running = 0;
      const results = await Promise.allSettled(
        requests.map(({ turns, fails }, index) =>
          queue.run(async () => {
            running++;
            assertEquals(running, 1);
            begun.push(index);
            for (let turn = 0; turn < turns; turn++) await Promise.resolve();
            running--;
            if (fails) throw new Error(`${index}`);
            return index;
          })
        ),
      );
      assertEquals(begun, requests.map((_, index) => index));
      results.forEach((result, index) => {
        assertEquals(result.status, requests[index]?.fails ? "rejected" : "fulfilled");
      });
      assertEquals(queue.length, 0);
    },
  ));
});

Deno.test("RequestQueue refuses more than it holds", async () => {
  const queue = new RequestQueue(2);
  const gate = Promise.withResolvers<void>();
  const held = [queue.run(() => gate.promise), queue.run(() => gate.promise)];
  await assertRejects(() => queue.run(() => Promise.resolve()), ServiceError, "more than 2");
  gate.resolve();
  await Promise.all(held);
  assertEquals(await queue.run(() => Promise.resolve(7)), 7);
});

Deno.test("RequestQueue.close() lets what runs end and refuses the rest", async () => {
  const queue = new RequestQueue(8);
  const gate = Promise.withResolvers<string>();
  const running = queue.run(() => gate.promise);
  // The first must have begun.
  await Promise.resolve();
  const waiting = queue.run(() => Promise.resolve("never"));
  const refused = assertRejects(() => waiting, ServiceError, "over");
  const closed = queue.close(new ServiceError("stopping", "over"));
  gate.resolve("ended");
  assertEquals(await running, "ended");
  await refused;
  await closed;
  await assertRejects(() => queue.run(() => Promise.resolve()), ServiceError, "over");
});
