/**
 * What a guest that writes at full speed takes from the readers of its frozen disk.
 *
 * @module
 */

import { demoGuest, startOurs } from "../tests/support/guests.ts";
import type { FleecingAnswer, Service } from "../tests/support/service.ts";
import { copySpeed, fioRate } from "./nbd_servers.ts";
import { benchWebSocket } from "./nbd_websocket.ts";
import { median, type Row } from "./table.ts";

const MiB = 1024 * 1024;

/** A frozen disk of a machine: read while its guest sleeps, and while it writes all the time. */
export async function benchViews(service: Service): Promise<Row[]> {
  await using guest = await startOurs(service, demoGuest, {
    memoryBytes: 64 * MiB,
    diskBytes: 512 * MiB,
  });
  await guest.waitFor(/demo> /);
  await guest.demo("fill 0 0 512M 0x33");
  const { exports: [view] } = await service.call<FleecingAnswer>(
    "POST",
    `/v1/vms/${guest.vm}/fleecings`,
    {},
  );
  if (view === undefined) throw new Error("no export");
  const tests: [string, string, () => Promise<number>][] = [
    ["nbdcopy, 1 connection", "MB/s", () => copySpeed(view.nbdUnix, view.sizeBytes, 1)],
    [
      "4 KiB random read, depth 1",
      "IOPS",
      () => fioRate(view.nbdUnix, { isWrite: false, depth: 1, seconds: 1 }),
    ],
    [
      "4 KiB random read, depth 16",
      "IOPS",
      () => fioRate(view.nbdUnix, { isWrite: false, depth: 16, seconds: 1 }),
    ],
  ];
  const rows: Row[] = [];
  for (const [what, unit, measure] of tests) {
    const idle: number[] = [];
    const busy: number[] = [];
    for (let turn = 0; turn < 3; turn++) {
      idle.push(await measure());
      const writing = { isOver: false };
      const writes = writeOn(() => guest.demo(`stress 0 ${turn} 20000`), writing);
      busy.push(await measure());
      writing.isOver = true;
      await writes;
    }
    rows.push({
      what: `NBD unix over a fleecing, guest writing at full speed: ${what}`,
      unit,
      ours: median(busy),
      peer: { name: "idle guest", value: median(idle) },
      aim: "0.8 of an idle guest's",
      isSmallerBetter: false,
    });
  }
  rows.push(...await benchWebSocket(service, view));
  return rows;
}

/** Repeats the guest's command until it is over. */
async function writeOn(command: () => Promise<string>, writing: { isOver: boolean }) {
  while (!writing.isOver) await command();
}
