/** What `ovis riscv-tests` does. @module */

import { basename, join } from "node:path";
import type { RiscvTestRequest, RiscvTestResponse } from "../machine/riscv_test_worker.ts";
import { compileHart } from "../wasm/hart.ts";
import { type Accelerator, ACCELERATORS } from "../wasm/translator.ts";
import { printLine, printTable } from "./output.ts";

const JOBS_MAX = 64;
/** The tests are a few KiB each: what is larger is something else. */
const FILE_BYTES_MAX = 16 * 1024 * 1024;

/** Runs all tests; throws if one failed or there are none. */
export async function runRiscvTests(
  options: { folder: string; jobs: string; accel: string },
): Promise<void> {
  const accel = ACCELERATORS.find((name) => name === options.accel);
  if (accel === undefined) throw new Error(`--accel takes ${ACCELERATORS.join(" or ")}`);
  const jobs = Number(options.jobs);
  if (!Number.isInteger(jobs) || jobs < 1 || jobs > JOBS_MAX) {
    throw new Error(`--jobs takes a number from 1 to ${JOBS_MAX}`);
  }
  const paths = await findElfFiles(options.folder);
  if (paths.length === 0) throw new Error(`no ELF file in ${options.folder}`);
  const results = await runAll(paths, { jobs, accel });

  printTable([
    ["TEST", "RESULT", "INSTRUCTIONS", ""],
    ...paths.map((path, index) => {
      const result = results[index];
      return [
        basename(path),
        result?.outcome ?? "",
        String(result?.instructions ?? ""),
        result?.detail ?? "",
      ];
    }),
  ]);
  const count = (outcome: string) => results.filter((result) => result.outcome === outcome).length;
  printLine(`${count("passed")} passed, ${count("failed")} failed, ${count("skipped")} skipped`);
  if (count("failed") > 0) throw new Error(`${count("failed")} tests failed`);
  if (count("passed") === 0) throw new Error(`no riscv-tests in ${options.folder}`);
}

/** ELF files of a folder and its folders, by name. Links are not followed. */
async function findElfFiles(folder: string): Promise<string[]> {
  const paths: string[] = [];
  for await (const entry of Deno.readDir(folder)) {
    const path = join(folder, entry.name);
    if (entry.isDirectory) paths.push(...await findElfFiles(path));
    else if (entry.isFile && await isElfFile(path)) paths.push(path);
  }
  return paths.sort();
}

async function isElfFile(path: string): Promise<boolean> {
  using file = await Deno.open(path);
  if ((await file.stat()).size > FILE_BYTES_MAX) return false;
  const magic = new Uint8Array(4);
  return await file.read(magic) === 4 && new TextDecoder().decode(magic) === "\x7fELF";
}

/** Results in the order of the paths; each worker takes the next test when it is done with one. */
async function runAll(
  paths: readonly string[],
  options: { jobs: number; accel: Accelerator },
): Promise<RiscvTestResponse[]> {
  const { jobs, accel } = options;
  const module = await compileHart();
  const results: RiscvTestResponse[] = [];
  let next = 0;
  const runSome = async () => {
    const worker = createWorker();
    try {
      for (let index = next++; index < paths.length; index = next++) {
        const bytes = await Deno.readFile(paths[index] ?? "");
        results[index] = await ask(worker, { module, bytes, accel });
      }
    } finally {
      worker.terminate();
    }
  };
  await Promise.all(Array.from({ length: Math.min(jobs, paths.length) }, runSome));
  return results;
}

function createWorker(): Worker {
  return new Worker(new URL("../machine/riscv_test_worker.ts", import.meta.url), {
    type: "module",
    deno: { permissions: "none" },
  });
}

/** A test is bounded by its instructions, so the answer comes. */
function ask(worker: Worker, request: RiscvTestRequest): Promise<RiscvTestResponse> {
  return new Promise((resolve, reject) => {
    worker.onmessage = (event: MessageEvent<RiscvTestResponse>) => resolve(event.data);
    worker.onerror = (event) => {
      event.preventDefault();
      reject(new Error(`the hart failed: ${event.message}`));
    };
    worker.postMessage(request, [request.bytes.buffer]);
  });
}
