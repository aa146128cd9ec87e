/**
 * `deno task bench [SECTION ...]`: Ovis beside its peers, in one run, on this machine. The name of
 * a group, what stands before a hyphen, stands for all its sections.
 *
 * @module
 */

import { testCache } from "../tests/support/debian.ts";
import { Service } from "../tests/support/service.ts";
import { benchBlock } from "./block.ts";
import { benchConvert } from "./convert.ts";
import { benchCpu } from "./cpu.ts";
import { benchBoot, benchDisk, benchFleecing, benchInterpreter } from "./guest.ts";
import { benchJobs } from "./jobs.ts";
import { benchNbdIdle, benchNbdServers } from "./nbd.ts";
import { benchNbdLoad } from "./nbd_load.ts";
import { benchViews } from "./nbd_views.ts";
import { benchWebSocket } from "./nbd_websocket.ts";
import { benchPrograms } from "./programs.ts";
import { benchQcow2 } from "./qcow2.ts";
import { print, printTable, type Rows } from "./table.ts";

const SECTIONS: Record<string, [string, (service: Service) => Rows]> = {
  interpreter: ["The interpreter", benchInterpreter],
  cpu: ["The processor, with the translator", benchCpu],
  boot: ["Booting", benchBoot],
  programs: ["Programs", benchPrograms],
  disk: ["The guest's disk", benchDisk],
  block: ["The block layer by itself", benchBlock],
  fleecing: ["What a fleecing costs the guest", benchFleecing],
  qcow2: ["qcow2 images", benchQcow2],
  convert: ["Copies of images", benchConvert],
  jobs: ["Block jobs", benchJobs],
  "nbd-copy": ["NBD: sequential reads", () => benchNbdServers("copy")],
  "nbd-read": ["NBD: random reads", () => benchNbdServers("read")],
  "nbd-write": ["NBD: random writes", () => benchNbdServers("write")],
  "nbd-map": ["NBD: the map of a large image", () => benchNbdServers("map")],
  "nbd-idle": ["NBD: idle connections", benchNbdIdle],
  "nbd-load": ["NBD: many clients, some cut off", benchNbdLoad],
  "nbd-views": ["NBD: a frozen disk while its guest writes", benchViews],
  "nbd-websocket": ["NBD in a WebSocket", benchWebSocket],
};

async function main(args: string[]): Promise<number> {
  const all = Object.keys(SECTIONS);
  const found = args.map((arg) => all.filter((name) => name === arg || name.startsWith(`${arg}-`)));
  const wanted = args.length === 0 ? all : found.flat();
  if (found.some((names) => names.length === 0)) {
    print(`deno task bench [SECTION ...]\nsections: ${all.join(", ")}`);
    return args.includes("--help") ? 0 : 2;
  }
  const folder = await Deno.makeTempDir({ prefix: "ovis-bench-" });
  try {
    await using service = await Service.start(folder, ["--allow-folder", testCache()]);
    print(`${navigator.hardwareConcurrency} processors, Deno ${Deno.version.deno}, medians`);
    for (const name of wanted) {
      const [title, bench] = SECTIONS[name] ?? [];
      if (bench) await printTable(title ?? name, bench(service));
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
  return 0;
}

Deno.exit(await main(Deno.args));
