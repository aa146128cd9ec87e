/**
 * Benchmarks inside a guest: the interpreter's speed, the boot of Debian's kernel, the disk, and
 * what a fleecing costs the guest. The peer is qemu-system-riscv64 with the same guest.
 *
 * @module
 */

import type { ConsoleDialogue } from "../src/cli/console_dialogue.ts";
import { debianFiles } from "../tests/support/debian.ts";
import { demoGuest, startOurs, startQemu } from "../tests/support/guests.ts";
import { Service } from "../tests/support/service.ts";
import { freeze, type QmpClient, startQmp } from "./qemu_fleecing.ts";
import { median, medianOf, type Row } from "./table.ts";

const MiB = 1024 * 1024;
const DISK_BYTES = 256 * MiB;
const RUNS = 5;
const BOOTS = 5;

const HASH_BYTES = 8 * MiB;

/** The processor by itself: a small integer loop, and long straight code (SHA-256 unrolled). */
export async function benchInterpreter(service: Service): Promise<Row[]> {
  const memory = { memoryBytes: 64 * MiB };
  const measure = async (guest: ConsoleDialogue) => {
    await guest.waitFor(/demo> /);
    await guest.demo("spin 3000000"); // until the engine has compiled the interpreter
    return {
      loop: await medianOf(RUNS, async () => figure(await guest.demo("spin"), "million a second")),
      hash: await medianOf(RUNS, async () => {
        const begin = performance.now();
        await guest.demo(`hash 0 0 ${HASH_BYTES}`);
        return HASH_BYTES / 1e3 / (performance.now() - begin);
      }),
    };
  };
  const path = await makeDisk();
  try {
    await using ours = await startOurs(service, demoGuest, {
      ...memory,
      diskBytes: DISK_BYTES,
      accel: "interpreter",
    });
    const oursSpeed = await measure(ours);
    await using qemu = startQemu(demoGuest, { ...memory, diskPath: path });
    const qemuSpeed = await measure(qemu);
    const row = (what: string, unit: string, key: "loop" | "hash", aim: string): Row => ({
      what,
      unit,
      ours: oursSpeed[key],
      peer: { name: "qemu TCG", value: qemuSpeed[key] },
      aim,
      isSmallerBetter: false,
    });
    return [
      row("integer loop in a guest", "M instr/s", "loop", "150 M instr/s or more"),
      row("SHA-256 in a guest", "MB/s", "hash", ""),
    ];
  } finally {
    await Deno.remove(path);
  }
}

/** Seconds from the start of the machine until Debian's kernel runs its init. */
export async function benchBoot(service: Service): Promise<Row[]> {
  const files = { ...await debianFiles(), cmdline: "console=ttyS0" };
  const options = { memoryBytes: 512 * MiB };
  const secondsToInit = async (guest: ConsoleDialogue, begin: number) => {
    await guest.waitFor(/Run \/init as init process/);
    return (performance.now() - begin) / 1000;
  };
  // From the POST of the machine: its image is there already, as QEMU's files are.
  const ours = await medianOf(BOOTS, async () => {
    await using guest = await startOurs(service, files, { ...options, accel: "translator" });
    return await secondsToInit(guest, guest.startedAt);
  });
  const qemu = await medianOf(BOOTS, async () => {
    const begin = performance.now();
    await using guest = startQemu(files, options);
    return await secondsToInit(guest, begin);
  });
  return [{
    what: "Debian's kernel to init",
    unit: "s",
    ours,
    peer: { name: "qemu TCG", value: qemu },
    aim: "no slower (with a translator)",
    isSmallerBetter: true,
  }];
}

/** Sequential and random disk speed as the guest sees it. */
export async function benchDisk(service: Service): Promise<Row[]> {
  const memory = { memoryBytes: 64 * MiB };
  const tests: [string, string, string][] = [
    ["sequential write, 256 KiB", "fill 0 0 256M 0x5a", "MB/s"],
    ["sequential read, 256 KiB", "scan 0", "MB/s"],
    ["random write, 4 KiB, depth 8", "stress 0 7 20000", "requests/s"],
    ["random read, 4 KiB, depth 8", "load 0 7 20000", "requests/s"],
  ];
  const measure = async (guest: ConsoleDialogue) => {
    await guest.waitFor(/demo> /);
    await guest.demo("fill 0 0 256M 1");
    const values: number[] = [];
    for (const [, command, unit] of tests) {
      values.push(await medianOf(RUNS, async () => figure(await guest.demo(command), unit)));
    }
    return values;
  };
  const path = await makeDisk();
  try {
    await using ours = await startOurs(service, demoGuest, { ...memory, diskBytes: DISK_BYTES });
    const oursValues = await measure(ours);
    await using qemu = startQemu(demoGuest, { ...memory, diskPath: path });
    const qemuValues = await measure(qemu);
    return tests.map(([what, , unit], index) => ({
      what: `guest disk: ${what}`,
      unit,
      ours: oursValues[index],
      peer: { name: "qemu TCG", value: qemuValues[index] },
      aim: "no slower",
      isSmallerBetter: false,
    }));
  } finally {
    await Deno.remove(path);
  }
}

/** ConsoleDialogue write speed without a fleecing, with one, and once its clusters are copied. */
export async function benchFleecing(service: Service): Promise<Row[]> {
  const path = await makeDisk();
  const temporary = await makeDisk();
  const socket = await Deno.makeTempFile({ suffix: ".qmp" });
  await Deno.remove(socket);
  try {
    await using ours = await startOurs(service, demoGuest, {
      memoryBytes: 64 * MiB,
      diskBytes: DISK_BYTES,
    });
    const oursSpeed = await fleecingSpeeds(ours, async () => {
      const { name } = await service.call<{ name: string }>(
        "POST",
        `/v1/vms/${ours.vm}/fleecings`,
        {},
      );
      return () => service.call("DELETE", `/v1/vms/${ours.vm}/fleecings/${name}`);
    });
    await using qemu = startQemu(demoGuest, {
      memoryBytes: 64 * MiB,
      diskPath: path,
      args: ["-qmp", `unix:${socket},server=on,wait=off`],
    });
    using qmp: QmpClient = await startQmp(socket);
    const qemuSpeed = await fleecingSpeeds(qemu, () => freeze(qmp, temporary));
    return [
      ["guest write 4 KiB random, no fleecing", "none", "no slower"],
      ["the same, first write of its cluster under a fleecing", "first", "no slower"],
      ["the same, cluster copied already", "copied", "0.95 of no fleecing"],
    ].map(([what, key, aim]) => ({
      what: what ?? "",
      unit: "requests/s",
      ours: oursSpeed[key as keyof Speeds],
      peer: { name: "qemu", value: qemuSpeed[key as keyof Speeds] },
      aim: aim ?? "",
      isSmallerBetter: false,
    }));
  } finally {
    for (const file of [path, temporary, socket]) await Deno.remove(file).catch(() => {});
  }
}

interface Speeds {
  none: number;
  first: number;
  copied: number;
}

/** 4,000 random writes touch nearly two thirds of the 4,096 clusters: most are first writes. */
async function fleecingSpeeds(
  guest: ConsoleDialogue,
  start: () => Promise<() => Promise<unknown>>,
): Promise<Speeds> {
  await guest.waitFor(/demo> /);
  // Each measurement begins with a disk all written and flushed, else the host's writeback decides.
  const settle = async () => {
    await guest.demo("fill 0 0 256M 1");
    await guest.demo("flush 0");
  };
  const speeds: Record<keyof Speeds, number[]> = { none: [], first: [], copied: [] };
  for (let run = 0; run < RUNS; run++) {
    await settle();
    speeds.none.push(figure(await guest.demo(`stress 0 ${run} 20000`), "requests/s"));
    await settle();
    const stop = await start();
    speeds.first.push(figure(await guest.demo(`stress 0 ${run} 4000`), "requests/s"));
    await settle();
    speeds.copied.push(figure(await guest.demo(`stress 0 ${run} 20000`), "requests/s"));
    await stop();
  }
  return {
    none: median(speeds.none),
    first: median(speeds.first),
    copied: median(speeds.copied),
  };
}

/** A sparse disk image of DISK_BYTES. */
async function makeDisk(): Promise<string> {
  const path = await Deno.makeTempFile({ suffix: ".img" });
  await Deno.truncate(path, DISK_BYTES);
  return path;
}

/** The figure before `unit` in a line of the demo guest's: `... 123 MB/s, ...`. */
export function figure(output: string, unit: string): number {
  const match = new RegExp(`(\\d+) ${unit}`).exec(output);
  if (match === null) throw new Error(`no figure in ${unit}: ${output}`);
  return Number(match[1]);
}
