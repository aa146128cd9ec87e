/**
 * What requests leave in the tables, beside QEMU: the same requests by qemu-io and by us, then the
 * same map of the two images.
 */
import { assertEquals } from "@std/assert";
import { FileNode } from "../../../src/block/drivers/file.ts";
import { RawNode } from "../../../src/block/drivers/raw.ts";
import { REQ_MAY_UNMAP } from "../../../src/block/types.ts";
import { needs } from "../../support/clients.ts";
import { filled } from "../support.ts";
import { openImage, qemuImg, Random, run, withFolder } from "./support.ts";

const KiB = 1024;
const MiB = 1024 * KiB;

interface Step {
  what: "write" | "zero" | "unmap" | "discard";
  at: number;
  length: number;
}

const KINDS: readonly { name: string; options: string; hasBacking: boolean }[] = [
  { name: "default", options: "compat=1.1", hasBacking: false },
  { name: "backing", options: "compat=1.1", hasBacking: true },
  { name: "subclusters", options: "extended_l2=on", hasBacking: false },
  { name: "subclusters, backing", options: "extended_l2=on", hasBacking: true },
  { name: "version 2", options: "compat=0.10", hasBacking: false },
  { name: "version 2, backing", options: "compat=0.10", hasBacking: true },
  { name: "512 B clusters", options: "cluster_size=512", hasBacking: true },
];

/**
 * The runs of qemu-img map without the place, which allocators choose differently, and without
 * holes of the file in data: what we don't write of new clusters is one.
 */
function simplified(map: string): unknown[] {
  const runs: { key: string; length: number }[] = [];
  for (const { start: _, length, offset, ...rest } of JSON.parse(map)) {
    if (rest.data) rest.zero = false;
    const key = JSON.stringify({ ...rest, hasOffset: offset !== undefined });
    const last = runs.at(-1);
    if (last?.key === key) last.length += length;
    else runs.push({ key, length });
  }
  return runs;
}

for (const { name, options, hasBacking } of KINDS) {
  Deno.test({
    name: `Qcow2Node leaves the tables as QEMU does: ${name}`,
    ...needs("qemu-img", "qemu-io"),
    fn: () =>
      withFolder(async (folder) => {
        const size = 4 * MiB;
        Deno.writeFileSync(`${folder}/base`, new Uint8Array(3 * MiB).fill(0x55));
        const backing = hasBacking ? ["-b", `${folder}/base`, "-F", "raw"] : [];
        for (const image of ["ours", "theirs"]) {
          const path = `${folder}/${image}`;
          await qemuImg(
            ...["create", "-q", "-f", "qcow2", "-o", options],
            ...[...backing, path, String(size)],
          );
        }
        for (let seed = 1; seed <= 3; seed++) {
          const steps = randomSteps(new Random(seed), size);
          await applyTheirs(`${folder}/theirs`, steps);
          await applyOurs(`${folder}/ours`, hasBacking ? `${folder}/base` : null, steps);
          const expected = await qemuImg("map", "--output=json", `${folder}/theirs`);
          const map = await qemuImg("map", "--output=json", `${folder}/ours`);
          assertEquals(simplified(map), simplified(expected), `seed ${seed}`);
          await qemuImg("compare", "-q", `${folder}/ours`, `${folder}/theirs`);
          await qemuImg("check", "-q", `${folder}/ours`);
        }
      }),
  });
}

function randomSteps(random: Random, size: number): Step[] {
  return Array.from({ length: 25 }, () => {
    const unit = random.pick([512, 2 * KiB, 64 * KiB]);
    const at = random.below(size / unit) * unit;
    const most = random.pick([4 * KiB, 64 * KiB, 256 * KiB]);
    const length = Math.min((1 + random.below(most / 512)) * 512, size - at);
    return { what: random.pick(["write", "write", "zero", "unmap", "discard"]), at, length };
  });
}

/** qemu-io's own defaults: discards and zeroes reach the format (-d unmap). */
async function applyTheirs(path: string, steps: readonly Step[]): Promise<void> {
  const commands = {
    write: "write -P 7",
    zero: "write -z",
    unmap: "write -z -u",
    discard: "discard",
  };
  const args = steps.flatMap(({ what, at, length }) => ["-c", `${commands[what]} ${at} ${length}`]);
  const { code, output } = await run("qemu-io", "-d", "unmap", ...args, path);
  assertEquals(code, 0, output);
}

async function applyOurs(
  path: string,
  backingPath: string | null,
  steps: readonly Step[],
): Promise<void> {
  const file = FileNode.open({ nodeName: "f", path, isReadOnly: false });
  const base = backingPath === null
    ? null
    : FileNode.open({ nodeName: "b", path: backingPath, isReadOnly: true });
  const backing = base === null ? null : new RawNode({ nodeName: "raw", file: base });
  const node = await openImage(file, { backing });
  for (const { what, at, length } of steps) {
    if (what === "write") await node.write(at, filled(length, 7));
    else if (what === "discard") await node.discard(at, length);
    else await node.writeZeroes(at, length, what === "unmap" ? REQ_MAY_UNMAP : 0);
  }
  await node.close();
  await backing?.close();
  await base?.close();
  await file.close();
}
