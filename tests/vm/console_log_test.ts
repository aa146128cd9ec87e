import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { ConsoleLog } from "../../src/vm/console_log.ts";

Deno.test("ConsoleLog keeps the last bytes and tells a reader what it missed", () => {
  fc.assert(fc.property(
    fc.integer({ min: 1, max: 20 }),
    fc.array(fc.oneof(fc.uint8Array({ maxLength: 30 }), fc.constant(null)), { maxLength: 40 }),
    (capacity, steps) => {
      const log = new ConsoleLog(capacity);
      const all: number[] = [];
      let position = 0;
      for (const step of steps) {
        if (step !== null) {
          log.append(step);
          all.push(...step);
        } else {
          const { bytes, next, lost } = log.read(position);
          const begin = Math.max(position, all.length - capacity);
          assertEquals([...bytes], all.slice(begin));
          assertEquals(lost, begin - position);
          assertEquals(next, all.length);
          position = next;
        }
      }
      assertEquals([...log.read(0).bytes], all.slice(-capacity));
    },
  ));
});

Deno.test("ConsoleLog.wait() wakes for bytes, for the end, and for its reader", async () => {
  const log = new ConsoleLog(16);
  const { signal } = new AbortController();
  const bytes = log.wait(0, signal);
  log.append(new Uint8Array(1));
  await bytes;
  await log.wait(0, signal);
  const gone = new AbortController();
  const waiting = log.wait(1, gone.signal);
  gone.abort();
  await waiting;
  const end = log.wait(1, signal);
  log.close();
  await end;
  await log.wait(1, signal);
});
