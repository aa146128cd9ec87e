/**
 * Scripts of monitor commands against a QEMU 10 storage daemon, where one is at hand, and against
 * our monitor: every answer and every event must be the same.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { findQemu10 } from "../support/qemu_storage_daemon.ts";
import { runOnOurs, runOnQemu } from "../support/qmp_sides.ts";
import { scripts } from "./scripts.ts";

const program = await findQemu10();
if (program === undefined) {
  // deno-lint-ignore no-console
  console.log("client not installed: skipped (qemu-storage-daemon 10: see OVIS_QEMU10_QSD)");
}

for (const [name, script] of Object.entries(scripts)) {
  Deno.test({
    name: `monitor, as QEMU 10: ${name}`,
    ignore: program === undefined,
    fn: async () => {
      if (program === undefined) throw new Error("no qemu-storage-daemon of version 10 or later");
      const expected = await runOnQemu(program, script);
      const ours = await runOnOurs(script);
      for (const [index, answer] of expected.answers.entries()) {
        assertEquals(ours.answers[index], answer, `answer ${index} of ${name}`);
      }
      assertEquals(ours, expected);
    },
  });
}
