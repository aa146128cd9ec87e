/**
 * What a guest that writes at full speed takes from the readers of its frozen disk, by NBD over a
 * unix socket, here and in QEMU.
 *
 * @module
 */

import type { ConsoleDialogue } from "../src/cli/console_dialogue.ts";
import { demoGuest, startOurs, startQemu } from "../tests/support/guests.ts";
import type { FleecingAnswer, Service } from "../tests/support/service.ts";
import { figure } from "./guest.ts";
import { copySpeed, fioRate } from "./nbd_servers.ts";
import { freeze, startQmp } from "./qemu_fleecing.ts";
import { median, type Row } from "./table.ts";

const MiB = 1024 * 1024;
const DISK_BYTES = 512 * MiB;
const RUNS = 3;

/** A guest that sleeps, its disk all data and frozen. */
export interface FrozenGuest extends AsyncDisposable {
  /** The machine. */
  readonly guest: ConsoleDialogue;
  /** Where the frozen disk is read. */
  readonly uri: string;
}

/** A machine of the service whose disk is frozen. */
export async function freezeOurs(
  service: Service,
): Promise<FrozenGuest & { view: FleecingAnswer["exports"][number] }> {
  const guest = await startOurs(service, demoGuest, {
    memoryBytes: 64 * MiB,
    diskBytes: DISK_BYTES,
  });
  await fillDisk(guest);
  const { exports: [view] } = await service.call<FleecingAnswer>(
    "POST",
    `/v1/vms/${guest.vm}/fleecings`,
    {},
  );
  if (view === undefined) throw new Error("no export");
  return {
    guest,
    view,
    uri: view.nbdUnix,
    [Symbol.asyncDispose]: () => guest[Symbol.asyncDispose](),
  };
}

async function freezeQemu(): Promise<FrozenGuest> {
  const folder = await Deno.makeTempDir();
  const [disk = "", temporary = ""] = ["disk", "temporary"].map((name) => `${folder}/${name}`);
  for (const path of [disk, temporary]) {
    await Deno.writeFile(path, new Uint8Array(0));
    await Deno.truncate(path, DISK_BYTES);
  }
  const guest = startQemu(demoGuest, {
    memoryBytes: 64 * MiB,
    diskPath: disk,
    args: ["-qmp", `unix:${folder}/qmp,server=on,wait=off`],
  });
  const qmp = await startQmp(`${folder}/qmp`);
  await fillDisk(guest);
  await freeze(qmp, temporary);
  const path = `${folder}/nbd`;
  await qmp.execute("nbd-server-start", { addr: { type: "unix", data: { path } } });
  await qmp.execute("block-export-add", { type: "nbd", id: "view", "node-name": "acc" });
  return {
    guest,
    uri: `nbd+unix:///acc?socket=${path}`,
    async [Symbol.asyncDispose]() {
      qmp[Symbol.dispose]();
      await guest[Symbol.asyncDispose]();
      await Deno.remove(folder, { recursive: true });
    },
  };
}

async function fillDisk(guest: ConsoleDialogue): Promise<void> {
  await guest.waitFor(/demo> /);
  await guest.demo("fill 0 0 512M 0x33");
  await guest.demo("flush 0");
}

interface Test {
  what: string;
  unit: string;
  measure: (uri: string) => Promise<number>;
}

const TESTS: readonly Test[] = [
  { what: "nbdcopy", unit: "MB/s", measure: (uri) => copySpeed(uri, DISK_BYTES, 1) },
  ...[1, 16].map((depth): Test => ({
    what: `4 KiB random read, depth ${depth}`,
    unit: "IOPS",
    measure: (uri) => fioRate(uri, { isWrite: false, depth, seconds: 1 }),
  })),
];

/** Frozen disks, read while their guests sleep, and while they write all the time. */
export async function* benchViews(service: Service): AsyncGenerator<Row> {
  await using ours = await freezeOurs(service);
  await using qemu = await freezeQemu();
  for (const test of TESTS) {
    const rates = await measureInTurn([ours, qemu], test);
    const [own, peer] = [rates.get(ours), rates.get(qemu)];
    if (own === undefined || peer === undefined) throw new Error("no rates");
    const what = `NBD unix, a view, ${test.what}`;
    const row = (name: string, unit: string, ours: number, value: number, aim: string): Row => ({
      what: `${what}${name}`,
      unit,
      ours,
      peer: { name: "qemu", value },
      aim,
      isSmallerBetter: false,
    });
    yield row(", idle guest", test.unit, own.idle, peer.idle, "");
    yield row(", guest writing", test.unit, own.busy, peer.busy, "no slower");
    const parts = [own, peer].map(({ idle, busy }) => busy / idle * 100) as [number, number];
    yield row(", guest writing, of idle", "%", ...parts, "80 %");
    yield row(": the guest's writes meanwhile", "req/s", own.writes, peer.writes, "");
  }
}

/** Medians. */
interface Rates {
  idle: number;
  busy: number;
  /** Requests a second of the guest. */
  writes: number;
}

async function measureInTurn(
  guests: readonly FrozenGuest[],
  { measure }: Test,
): Promise<Map<FrozenGuest, Rates>> {
  const values = new Map(guests.map((guest) => [guest, {
    idle: [] as number[],
    busy: [] as number[],
    writes: [] as number[],
  }]));
  for (let turn = 0; turn < RUNS; turn++) {
    for (const [{ guest, uri }, { idle, busy, writes }] of values) {
      idle.push(await measure(uri));
      const writing = { isOver: false };
      const written = writeOn(guest, writing);
      busy.push(await measure(uri));
      writing.isOver = true;
      writes.push(median(await written));
    }
  }
  return new Map([...values].map(([guest, { idle, busy, writes }]) => [guest, {
    idle: median(idle),
    busy: median(busy),
    writes: median(writes),
  }]));
}

/** Lets the guest write until it is over; its rates. */
async function writeOn(guest: ConsoleDialogue, writing: { isOver: boolean }): Promise<number[]> {
  const rates: number[] = [];
  for (let seed = 0; !writing.isOver; seed++) {
    rates.push(figure(await guest.demo(`stress 0 ${seed} 20000`), "requests/s"));
  }
  return rates;
}
