/**
 * A program for kill_test.ts: writes to an image as fast as it can until it is killed, and says on
 * its standard output how many of its steps are on stable storage. Its steps follow from a seed, so
 * that whoever killed it knows them too.
 *
 *   deno run -A qcow2_writer.ts IMAGE SEED
 *
 * @module
 */

import { FileNode } from "../../src/block/drivers/file.ts";
import { IoVector } from "../../src/block/io_vector.ts";
import { Qcow2Node } from "../../src/block/qcow2/node.ts";
import { Random } from "./simulation.ts";

export const SECTOR = 512;
/** Sectors of the disk. */
export const SECTOR_COUNT = 16384;
/** A flush comes after so many steps. */
export const STEPS_PER_FLUSH = 25;

/** A change of some sectors: to the step's number, or to zeroes. */
export interface Step {
  sector: number;
  count: number;
  value: number;
  isDiscard: boolean;
}

/** The steps of a seed, without end. */
export function* stepsOf(seed: number): Generator<Step> {
  const random = new Random(seed);
  for (let value = 1;; value++) {
    const count = 1 + random.below(random.chance(10) ? 1500 : 30);
    const sector = random.below(SECTOR_COUNT - count + 1);
    const kind = random.below(100);
    yield { sector, count, value: kind < 75 ? value : 0, isDiscard: kind >= 90 };
  }
}

/** What a sector holds. */
export function sectors(count: number, value: number): Uint8Array {
  return new Uint8Array(new Uint32Array(count * SECTOR / 4).fill(value).buffer);
}

async function write(path: string, seed: number): Promise<void> {
  const file = FileNode.open({ nodeName: "file", path, isReadOnly: false });
  const node = await Qcow2Node.open({ nodeName: "disk", file, isReadOnly: false });
  let done = 0;
  for (const { sector, count, value, isDiscard } of stepsOf(seed)) {
    const [offset, length] = [sector * SECTOR, count * SECTOR];
    if (isDiscard) await node.discard(offset, length);
    else if (value === 0) await node.writeZeroes(offset, length);
    else await node.write(offset, IoVector.of(sectors(count, value)));
    if (++done % STEPS_PER_FLUSH !== 0) continue;
    await node.flush();
    Deno.stdout.writeSync(new TextEncoder().encode(`${done}\n`));
  }
}

if (import.meta.main) {
  const [path, seed] = Deno.args;
  if (path !== undefined) await write(path, Number(seed));
}
