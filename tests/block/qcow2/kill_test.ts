/**
 * Programs that are killed while they write to an image: whatever they flushed is there, nothing is
 * corrupt, leaks can be repaired.
 *
 * OVIS_CRASH_SEED and OVIS_KILL_RUNS say where to start and how often.
 *
 * @module
 */

import { assert, assertEquals } from "@std/assert";
import { FileNode } from "../../../src/block/drivers/file.ts";
import { checkQcow2 } from "../../../src/block/qcow2/check.ts";
import { createQcow2, type Qcow2CreateOptions } from "../../../src/block/qcow2/create.ts";
import { Qcow2Node } from "../../../src/block/qcow2/node.ts";
import { findProgram } from "../../support/clients.ts";
import { ImageFolder } from "../../support/qcow2_images.ts";
import {
  SECTOR,
  SECTOR_COUNT,
  type Step,
  STEPS_PER_FLUSH,
  stepsOf,
} from "../../support/qcow2_writer.ts";
import { Random } from "../../support/simulation.ts";
import { contentOf } from "./support.ts";

const SEED = Number(Deno.env.get("OVIS_CRASH_SEED") ?? 1);
const RUNS = Number(Deno.env.get("OVIS_KILL_RUNS") ?? 3);
const WRITER = new URL("../../support/qcow2_writer.ts", import.meta.url).pathname;

const KINDS: Omit<Qcow2CreateOptions, "sizeBytes">[] = [
  {},
  { clusterBytes: 512 },
  { clusterBytes: 16384, hasExtendedL2: true },
  { clusterBytes: 4096, hasLazyRefcounts: true },
];

async function make(folder: ImageFolder, options: typeof KINDS[number]): Promise<void> {
  const path = folder.file("image");
  const file = FileNode.open({
    nodeName: "file",
    path,
    isReadOnly: false,
    create: true,
    sizeBytes: 0,
  });
  await createQcow2(file, { ...options, sizeBytes: SECTOR_COUNT * SECTOR });
  await file.close();
}

/** Runs the writer and kills it after so many flushes. How many steps it said were durable. */
async function writeUntilKilled(path: string, seed: number, flushes: number): Promise<number> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-q", "-A", "--no-check", WRITER, path, String(seed)],
    stdin: "null",
    stdout: "piped",
    stderr: "inherit",
  }).spawn();
  let said = "";
  for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
    said += text;
    // What it did meanwhile is read to the end.
    if (said.split("\n").length > flushes) child.kill("SIGKILL");
  }
  const { signal } = await child.status;
  assertEquals(signal, "SIGKILL");
  return Number(said.trim().split("\n").at(-1));
}

/** What each sector may hold: after the durable steps, and what may have come after them. */
function allowedValues(seed: number, durable: number): Set<number>[] {
  const allowed = Array.from({ length: SECTOR_COUNT }, () => new Set([0]));
  let index = 0;
  for (const step of stepsOf(seed)) {
    if (++index > durable + STEPS_PER_FLUSH) break;
    for (let sector = step.sector; sector < step.sector + step.count; sector++) {
      apply(allowed[sector] ?? new Set(), step, index <= durable);
    }
  }
  return allowed;
}

function apply(values: Set<number>, { value, isDiscard }: Step, isDurable: boolean): void {
  // A discard may leave a part of the range alone.
  if (isDurable && !isDiscard) values.clear();
  values.add(value);
}

for (const options of KINDS) {
  Deno.test(`nothing flushed is lost in a kill: ${JSON.stringify(options)}`, async () => {
    for (let seed = SEED; seed < SEED + RUNS; seed++) {
      using folder = new ImageFolder();
      await make(folder, options);
      const flushes = 1 + new Random(seed).below(20);
      const durable = await writeUntilKilled(folder.file("image"), seed, flushes);
      assert(durable >= flushes * STEPS_PER_FLUSH);

      if (!options.hasLazyRefcounts && findProgram("qemu-img") !== undefined) {
        assertEquals((await folder.check("image")).corruptions ?? 0, 0, `seed ${seed}`);
      }
      const file = folder.open("image");
      const before = await checkQcow2(file);
      if (!options.hasLazyRefcounts) {
        assertEquals([before.corruptions, before.checkErrors], [0, 0], `seed ${seed}`);
        const { leaks } = await checkQcow2(file, { repair: "leaks" });
        assertEquals(leaks, 0, `seed ${seed}`);
      }
      // With lazy refcounts it is repaired as it is opened.
      const node = await Qcow2Node.open({ nodeName: "disk", file, isReadOnly: false });
      const words = new Uint32Array((await contentOf(node)).buffer);
      allowedValues(seed, durable).forEach((values, sector) => {
        const value = words[sector * SECTOR / 4] ?? 0;
        assert(values.has(value), `seed ${seed}, sector ${sector}: ${value} of ${[...values]}`);
      });
      await node.close();
      await file.close();
      if (findProgram("qemu-img") !== undefined) await folder.assertClean("image");
    }
  });
}
