/**
 * `ovis img` beside qemu-img, each as a command of its own, on the same images.
 *
 * @module
 */

import { dirname, join } from "node:path";
import { findProgram } from "../tests/support/clients.ts";
import { median, type Row } from "./table.ts";

const MAIN = new URL("../main.ts", import.meta.url).pathname;

/** A program that takes qemu-img's arguments. */
export interface ImageTool {
  /** For the table. */
  name: string;
  /** The words that start it. */
  words: readonly string[];
}

/** Ours, then those of QEMU's that there are: the one beside its storage daemon, the installed. */
export function imageTools(): [ImageTool, ...ImageTool[]] {
  const ours = { name: "ovis", words: [Deno.execPath(), "run", "-P=ovis", MAIN, "img"] };
  const daemon = Deno.env.get("OVIS_QEMU10_QSD");
  const peers: ImageTool[] = [];
  if (daemon !== undefined) {
    peers.push({ name: "qemu-img 10", words: [join(dirname(daemon), "qemu-img")] });
  }
  const installed = findProgram("qemu-img");
  if (installed !== undefined) peers.push({ name: "qemu-img", words: [installed] });
  return [ours, ...peers];
}

/** Runs a tool; its output. */
export async function runTool(tool: ImageTool, ...args: string[]): Promise<string> {
  const [program = "", ...words] = [...tool.words, ...args];
  const output = await new Deno.Command(program, {
    args: words,
    stdout: "piped",
    stderr: "piped",
  }).output();
  if (!output.success) {
    throw new Error(`${tool.name} ${args.join(" ")}: ${new TextDecoder().decode(output.stderr)}`);
  }
  return new TextDecoder().decode(output.stdout);
}

/** What is measured, once for each tool in turn, several times. */
export interface ToolBench {
  /** For the table. */
  what: string;
  /** Of the value. */
  unit: string;
  /** Of the ratio to the peer. */
  aim: string;
  /** How often. */
  runs: number;
  /** True for times. */
  isSmallerBetter: boolean;
  /** One measurement. */
  measure: (tool: ImageTool) => Promise<number>;
}

/** A row for each peer: in turns, so that all see the same machine. */
export async function compareTools(bench: ToolBench): Promise<Row[]> {
  const [ours, ...peers] = imageTools();
  const values = new Map<ImageTool, number[]>([ours, ...peers].map((tool) => [tool, []]));
  for (let run = 0; run < bench.runs; run++) {
    for (const [tool, measured] of values) measured.push(await bench.measure(tool));
  }
  const of = (tool: ImageTool): number => median(values.get(tool) ?? []);
  return peers.map((peer) => ({
    what: bench.what,
    unit: bench.unit,
    ours: of(ours),
    peer: { name: peer.name, value: of(peer) },
    aim: bench.aim,
    isSmallerBetter: bench.isSmallerBetter,
  }));
}
