/**
 * `deno task bench [SECTION ...]`: Ovis beside its peers, in one run, on this machine.
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
import { benchNbd } from "./nbd.ts";
import { benchPrograms } from "./programs.ts";
import { benchQcow2 } from "./qcow2.ts";
import { print, printTable, type Row } from "./table.ts";

const SECTIONS: Record<string, [string, (service: Service) => Promise<Row[]>]> = {
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
  nbd: ["Reading by NBD", benchNbd],
};

async function main(args: string[]): Promise<number> {
  const wanted = args.length === 0 ? Object.keys(SECTIONS) : args;
  const unknown = wanted.filter((name) => !(name in SECTIONS));
  if (unknown.length > 0) {
    print(`deno task bench [SECTION ...]\nsections: ${Object.keys(SECTIONS).join(", ")}`);
    return args.includes("--help") ? 0 : 2;
  }
  const folder = await Deno.makeTempDir({ prefix: "ovis-bench-" });
  try {
    await using service = await Service.start(folder, ["--allow-folder", testCache()]);
    print(`${navigator.hardwareConcurrency} processors, Deno ${Deno.version.deno}, medians`);
    for (const name of wanted) {
      const [title, bench] = SECTIONS[name] ?? [];
      if (bench) printTable(title ?? name, await bench(service));
    }
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
  return 0;
}

Deno.exit(await main(Deno.args));
