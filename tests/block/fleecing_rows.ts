/**
 * Scenarios of fleecing that hold for QEMU 10 and for Ovis alike: each runs against either, and its
 * checks are what both must answer. See fleecing_rows_test.ts and fleecing_qemu_test.ts.
 *
 * @module
 */

import { assertEquals } from "@std/assert";
import { CLUSTER, KiB, MiB, type Side } from "../support/fleecing_rig.ts";
import { Random } from "../support/simulation.ts";

/** What a scenario starts from: 4 MiB, of which the first and the third are data (0x11). */
export interface ScenarioSetup {
  onCbwError?: "break-guest-write" | "break-snapshot";
  cbwTimeoutSeconds?: number;
  bitmap?: { granularity: number; dirty: readonly (readonly [number, number])[] };
  /** The first write of data to the target fails with EIO. */
  failsOnce?: boolean;
  /** The target writes 64 KiB at once, and needs seconds for each further 64 KiB. */
  isSlow?: boolean;
}

/** A guest, a view, and the target between them. */
export interface Scene {
  guest: Side;
  view: Side;
  /** The clusters of the target that hold data, as "first+count". */
  target(): Promise<string>;
  /** What the last copy still needs has passed. */
  recovered(): Promise<void>;
}

/** One row. */
export interface Scenario {
  row: string;
  setup?: ScenarioSetup;
  run(scene: Scene): Promise<void>;
}

const OLD = "11*1048576 00*1048576 11*1048576 00*1048576";

async function viewIsOld({ view }: Scene): Promise<void> {
  assertEquals(await view.read(0, 4 * MiB), OLD);
}

function pieces(...offsets: number[]): [number, number][] {
  return offsets.map((offset) => [offset, CLUSTER]);
}

const BITMAP = { granularity: CLUSTER, dirty: pieces(0, 4 * CLUSTER, 5 * CLUSTER, 40 * CLUSTER) };

/** Which clusters of the first 3 MiB a view lets read. */
async function readable({ view }: Scene): Promise<string> {
  const found: number[] = [];
  for (let cluster = 0; cluster < 48; cluster++) {
    if (await view.read(cluster * CLUSTER, CLUSTER) !== "refused") found.push(cluster);
  }
  return found.join(" ");
}

const basic: Scenario[] = [
  {
    row: "4 KiB guest write at 0, data 0x11 before",
    async run(scene) {
      assertEquals(await scene.guest.write(0, 4 * KiB, 0x22), "ok");
      assertEquals(await scene.guest.read(0, 8 * KiB), "22*4096 11*4096");
      await viewIsOld(scene);
      assertEquals(await scene.target(), "0+1");
    },
  },
  {
    row: "1,000-byte guest write across a cluster border",
    async run(scene) {
      assertEquals(await scene.guest.write(16 * CLUSTER - 500, 1000, 0x22), "ok");
      assertEquals(await scene.guest.read(MiB - 512, 1024), "11*12 22*1000 00*12");
      await viewIsOld(scene);
      // Cluster 16 is a hole: its copy holds no data.
      assertEquals(await scene.target(), "15+1");
      assertEquals(await scene.guest.write(2 * CLUSTER - 500, 1000, 0x22), "ok");
      assertEquals(await scene.target(), "1+2 15+1");
      await viewIsOld(scene);
    },
  },
  {
    row: "guest trim of 128 KiB with 0x11",
    async run(scene) {
      assertEquals(await scene.guest.trim(0, 2 * CLUSTER), "ok");
      assertEquals(await scene.guest.read(0, 4 * CLUSTER), "00*131072 11*131072");
      await viewIsOld(scene);
      assertEquals(await scene.target(), "0+2");
    },
  },
  {
    row: "guest write-zeroes, with and without unmap",
    async run(scene) {
      assertEquals(await scene.guest.zero(0, CLUSTER, { unmap: true }), "ok");
      assertEquals(await scene.guest.zero(2 * MiB + 100, CLUSTER, { unmap: false }), "ok");
      assertEquals(await scene.guest.read(0, 2 * CLUSTER), "00*65536 11*65536");
      assertEquals(await scene.guest.read(2 * MiB, 2 * CLUSTER), "11*100 00*65536 11*65436");
      await viewIsOld(scene);
      assertEquals(await scene.target(), "0+1 32+2");
    },
  },
  {
    row: "read or discard past the end",
    async run({ guest, view }) {
      assertEquals(await view.read(4 * MiB - 512, 1024), "EINVAL");
      assertEquals(await view.trim(4 * MiB - CLUSTER, 2 * CLUSTER), "EINVAL");
      assertEquals(await guest.read(4 * MiB, 512), "EINVAL");
      assertEquals(await view.read(4 * MiB - 512, 512), "00*512");
    },
  },
  {
    row: "guest writes all over, each view read across many runs",
    async run(scene) {
      for (let i = 0; i < 24; i++) {
        assertEquals(await scene.guest.write(i * 173_056 + 512, 2_000, 0x80 + i), "ok");
        if (i % 8 === 0) await viewIsOld(scene);
      }
      await viewIsOld(scene);
    },
  },
];

const bitmaps: Scenario[] = [
  {
    row:
      "bitmap {0, 4, 5, 40}: read cluster 0; read 64 KiB at cluster 1; read 128 KiB at 0; read 128 KiB + 1 at cluster 4",
    setup: { bitmap: BITMAP },
    async run({ view }) {
      assertEquals(await view.read(0, CLUSTER), "11*65536");
      assertEquals(await view.read(4 * CLUSTER, 2 * CLUSTER), "11*131072");
      assertEquals(await view.read(CLUSTER, CLUSTER), "refused");
      assertEquals(await view.read(0, 2 * CLUSTER), "refused");
      assertEquals(await view.read(4 * CLUSTER, 2 * CLUSTER + 1), "refused");
      assertEquals(await view.read(4 * CLUSTER - 1, 2), "refused");
    },
  },
  {
    row: "guest write outside the bitmap",
    setup: { bitmap: BITMAP },
    async run({ guest, view, target }) {
      assertEquals(await guest.write(CLUSTER, 2 * CLUSTER, 0x22), "ok");
      assertEquals(await target(), "");
      assertEquals(await view.read(CLUSTER, CLUSTER), "refused");
      // In and out of it at once: what is in it is copied.
      assertEquals(await guest.write(3 * CLUSTER, 2 * CLUSTER, 0x33), "ok");
      assertEquals(await target(), "4+1");
      assertEquals(await view.read(4 * CLUSTER, 2 * CLUSTER), "11*131072");
      assertEquals(await view.read(3 * CLUSTER, CLUSTER), "refused");
    },
  },
  ...[512, 4 * KiB, 128 * KiB, MiB].map((granularity): Scenario => ({
    row: `a bitmap with granularity ${granularity}: projected outwards to 64 KiB clusters`,
    setup: {
      bitmap: {
        granularity,
        dirty: [[100, 1], [5 * CLUSTER - 1, 2], [20 * CLUSTER, 1]],
      },
    },
    async run(scene) {
      const expected = {
        [512]: "0 4 5 20",
        [4 * KiB]: "0 4 5 20",
        [128 * KiB]: "0 1 4 5 20 21",
        [MiB]: Array.from({ length: 32 }, (_, i) => i).join(" "),
      };
      assertEquals(await readable(scene), expected[granularity]);
    },
  })),
  {
    row: "an empty bitmap: every read is refused",
    setup: { bitmap: { granularity: CLUSTER, dirty: [] } },
    async run(scene) {
      assertEquals(await readable(scene), "");
      assertEquals(await scene.guest.write(0, 4 * MiB, 0x22), "ok");
      assertEquals(await scene.target(), "");
      assertEquals(await readable(scene), "");
    },
  },
];

const discards: Scenario[] = [
  {
    row: "discard 256 KiB (aligned) on the view",
    async run({ guest, view, target }) {
      assertEquals(await guest.write(0, MiB, 0x22), "ok");
      assertEquals(await target(), "0+16");
      assertEquals(await view.trim(2 * CLUSTER, 4 * CLUSTER), "ok");
      assertEquals(await view.read(2 * CLUSTER, CLUSTER), "refused");
      assertEquals(await view.read(5 * CLUSTER + 512, 512), "refused");
      assertEquals(await view.read(CLUSTER, 2 * CLUSTER), "refused");
      assertEquals(await view.read(0, 2 * CLUSTER), "11*131072");
      assertEquals(await view.read(6 * CLUSTER, 2 * CLUSTER), "11*131072");
      assertEquals(await target(), "0+2 6+10");
      assertEquals(await view.trim(2 * CLUSTER, 4 * CLUSTER), "ok");
    },
  },
  {
    row: "discard 1,000 bytes on the view",
    async run(scene) {
      assertEquals(await scene.guest.write(0, CLUSTER, 0x22), "ok");
      assertEquals(await scene.view.trim(1000, 1000), "ok");
      await viewIsOld(scene);
      assertEquals(await scene.target(), "0+1");
    },
  },
  {
    row: "discard 192 KiB at cluster + 100",
    async run({ view }) {
      assertEquals(await view.trim(3 * CLUSTER + 100, 3 * CLUSTER), "ok");
      assertEquals(await view.read(3 * CLUSTER, CLUSTER), "11*65536");
      assertEquals(await view.read(4 * CLUSTER, 512), "refused");
      assertEquals(await view.read(5 * CLUSTER, 512), "refused");
      assertEquals(await view.read(6 * CLUSTER, CLUSTER), "11*65536");
    },
  },
  {
    row: "discard an area not copied, then guest write there",
    async run({ guest, view, target }) {
      assertEquals(await view.trim(0, MiB), "ok");
      assertEquals(await guest.write(0, MiB, 0x22), "ok");
      assertEquals(await target(), "");
      assertEquals(await view.read(0, 512), "refused");
      assertEquals(await guest.write(MiB - 512, 1024, 0x33), "ok");
      assertEquals(await view.read(MiB, MiB), "00*1048576");
    },
  },
];

const failures: Scenario[] = [
  {
    row: "target fails once, break-snapshot, guest writes 1 MiB",
    setup: { onCbwError: "break-snapshot", failsOnce: true },
    async run({ guest, view }) {
      assertEquals(await view.read(0, 512), "11*512");
      assertEquals(await guest.write(0, MiB, 0x22), "ok");
      assertEquals(await guest.read(0, MiB), "22*1048576");
      for (const offset of [0, MiB, 3 * MiB]) {
        assertEquals(await view.read(offset, 512), "refused");
      }
      assertEquals(await guest.write(2 * MiB, MiB, 0x33), "ok");
      assertEquals(await view.read(2 * MiB, 512), "refused");
    },
  },
  {
    row: "target fails once, break-guest-write, guest writes 1 MiB",
    setup: { onCbwError: "break-guest-write", failsOnce: true },
    async run(scene) {
      assertEquals(await scene.guest.write(0, MiB, 0x22), "EIO");
      assertEquals(await scene.guest.read(0, MiB), "11*1048576");
      await viewIsOld(scene);
      assertEquals(await scene.guest.write(0, MiB, 0x22), "ok");
      assertEquals(await scene.guest.read(0, MiB), "22*1048576");
      await viewIsOld(scene);
    },
  },
  {
    row: "target throttled, cbw-timeout 1 s, break-guest-write",
    setup: { onCbwError: "break-guest-write", cbwTimeoutSeconds: 1, isSlow: true },
    async run(scene) {
      assertEquals(await scene.guest.write(0, CLUSTER, 0x22), "ok");
      assertEquals(await scene.guest.write(4 * CLUSTER, CLUSTER, 0x33), "ETIMEDOUT");
      assertEquals(await scene.guest.read(4 * CLUSTER, CLUSTER), "11*65536");
      await scene.recovered();
      await viewIsOld(scene);
      assertEquals(await scene.guest.write(4 * CLUSTER, CLUSTER, 0x33), "ok");
      await viewIsOld(scene);
    },
  },
  {
    row: "target throttled, cbw-timeout 1 s, break-snapshot",
    setup: { onCbwError: "break-snapshot", cbwTimeoutSeconds: 1, isSlow: true },
    async run(scene) {
      assertEquals(await scene.guest.write(0, CLUSTER, 0x22), "ok");
      assertEquals(await scene.guest.write(4 * CLUSTER, CLUSTER, 0x33), "ok");
      assertEquals(await scene.guest.read(4 * CLUSTER, CLUSTER), "33*65536");
      await scene.recovered();
      assertEquals(await scene.view.read(0, 512), "refused");
      assertEquals(await scene.view.read(2 * MiB, 512), "refused");
    },
  },
];

/** Random requests of both sides; which clusters may be read, and that they are old, is known. */
function randomScenario(seed: number): Scenario {
  return {
    row: `random guest requests and view discards, seed ${seed}`,
    async run({ guest, view, target }) {
      const random = new Random(seed);
      const old = (cluster: number): string => Math.floor(cluster / 16) % 2 === 0 ? "11" : "00";
      const discarded = new Set<number>();
      const copied = new Set<number>();
      for (let step = 0; step < 150; step++) {
        const offset = random.below(4 * MiB - 1);
        const length = 1 + random.below(Math.min(4 * MiB - offset, 5 * CLUSTER));
        const first = Math.floor(offset / CLUSTER);
        const last = Math.floor((offset + length - 1) / CLUSTER);
        const kind = random.below(6);
        if (kind === 0) {
          assertEquals(await guest.write(offset, length, 1 + random.below(255)), "ok");
        }
        if (kind === 1) assertEquals(await guest.zero(offset, length, { unmap: true }), "ok");
        if (kind === 2) assertEquals(await guest.trim(offset, length), "ok");
        for (let cluster = first; cluster <= last; cluster++) {
          if (kind <= 2 && !discarded.has(cluster) && old(cluster) !== "00") copied.add(cluster);
        }
        if (kind === 3) {
          assertEquals(await view.trim(offset, length), "ok");
          for (let cluster = first; cluster <= last; cluster++) {
            if (cluster * CLUSTER < offset || (cluster + 1) * CLUSTER > offset + length) continue;
            discarded.add(cluster);
            copied.delete(cluster);
          }
        }
        if (kind > 3) {
          const parts: string[] = [];
          for (let at = offset; at < offset + length;) {
            const cluster = Math.floor(at / CLUSTER);
            const end = Math.min((Math.floor(at / MiB) + 1) * MiB, offset + length);
            parts.push(`${old(cluster)}*${end - at}`);
            at = end;
          }
          const isForbidden = [...discarded].some((cluster) => cluster >= first && cluster <= last);
          assertEquals(
            await view.read(offset, length),
            isForbidden ? "refused" : parts.join(" "),
            `seed ${seed}, step ${step}: ${length} at ${offset}`,
          );
        }
      }
      assertEquals(await target(), describeRuns(copied));
    },
  };
}

/** Clusters as "first+count" runs. */
function describeRuns(clusters: Set<number>): string {
  const runs: { first: number; count: number }[] = [];
  for (const cluster of [...clusters].sort((a, b) => a - b)) {
    const last = runs.at(-1);
    if (last !== undefined && last.first + last.count === cluster) last.count++;
    else runs.push({ first: cluster, count: 1 });
  }
  return runs.map(({ first, count }) => `${first}+${count}`).join(" ");
}

export const scenarios: readonly Scenario[] = [
  ...basic,
  ...bitmaps,
  ...discards,
  ...failures,
  ...[1, 2, 3].map(randomScenario),
];
