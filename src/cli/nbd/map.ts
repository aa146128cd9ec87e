/** What `ovis nbd map` does: nbdinfo --map's output, in either form. @module */

import { NbdClient } from "../../nbd/client.ts";
import type { StatusExtent } from "../../nbd/reply_parser.ts";
import { printLine } from "../output.ts";
import { connect, type ConnectOptions, locate } from "./connect.ts";

/** The command's options. */
export interface MapOptions extends ConnectOptions {
  /** The meta context. */
  context: string;
  /** For programs. */
  json: boolean;
  /** Bytes of each kind instead of areas. */
  totals: boolean;
}

interface Area extends StatusExtent {
  offset: number;
}

/** Prints a map. */
export async function showMap(uri: string, options: MapOptions): Promise<void> {
  const { context } = options;
  const connection = await locate(uri, options);
  const client = await NbdClient.connect(await connect(connection), {
    exportName: connection.exportName,
    contexts: [context],
    isTls: connection.isTls,
  });
  try {
    if (!client.contexts.includes(context)) {
      throw new MapError(`the server does not support metadata context "${context}"`);
    }
    if (options.totals) showTotals(await sumUp(client, context), client.sizeBytes, options);
    else if (options.json) await showJson(client, context);
    else for await (const area of areasOf(client, context)) printLine(textOf(area, context));
  } finally {
    await client.close();
  }
}

/** The server has no such map. */
export class MapError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "MapError";
}

/** All areas of an export; neighbours differ. */
async function* areasOf(client: NbdClient, context: string): AsyncGenerator<Area> {
  let current: Area | null = null;
  for (let offset = 0; offset < client.sizeBytes;) {
    const answer = await client.blockStatus(offset, client.sizeBytes - offset);
    for (const { length, flags } of answer.get(context) ?? []) {
      const area = { offset, flags, length: Math.min(length, client.sizeBytes - offset) };
      offset += area.length;
      if (current?.flags === flags) {
        current.length += area.length;
      } else {
        if (current !== null) yield current;
        current = area;
      }
      if (offset === client.sizeBytes) break;
    }
  }
  if (current !== null) yield current;
}

async function showJson(client: NbdClient, context: string): Promise<void> {
  let prefix = "[";
  for await (const { offset, length, flags } of areasOf(client, context)) {
    const description = meaningOf(context, flags);
    printLine(
      `${prefix}{ "offset": ${offset}, "length": ${length}, "type": ${flags}` +
        `${description === "" ? "" : `, "description": ${JSON.stringify(description)}`}}`,
    );
    prefix = ",";
  }
  printLine(prefix === "[" ? "[]" : "]");
}

async function sumUp(client: NbdClient, context: string): Promise<Map<number, number>> {
  const totals = new Map<number, number>();
  for await (const { length, flags } of areasOf(client, context)) {
    totals.set(flags, (totals.get(flags) ?? 0) + length);
  }
  return totals;
}

function showTotals(
  totals: Map<number, number>,
  sizeBytes: number,
  { context, json }: MapOptions,
): void {
  const sorted = [...totals].sort(([a], [b]) => a - b);
  if (json) {
    const rows = sorted.map(([type, size]) => ({
      size,
      percent: 100 * size / sizeBytes,
      type,
      description: meaningOf(context, type),
    }));
    printLine(JSON.stringify(rows, null, 2));
    return;
  }
  for (const [type, size] of sorted) {
    const percent = `${(100 * size / sizeBytes).toFixed(1).padStart(5)}%`;
    printLine(
      `${`${size}`.padStart(10)} ${percent} ${`${type}`.padStart(3)} ${meaningOf(context, type)}`
        .trimEnd(),
    );
  }
}

function textOf({ offset, length, flags }: Area, context: string): string {
  const columns = [`${offset}`.padStart(10), `${length}`.padStart(10), `${flags}`.padStart(3)];
  return `${columns.join("  ")}  ${meaningOf(context, flags)}`.trimEnd();
}

/** What flags mean, where the context is one that is known here. */
function meaningOf(context: string, flags: number): string {
  if (context === "base:allocation") {
    return ["data", "hole", "zero", "hole,zero"][flags] ?? "";
  }
  if (context.startsWith("qemu:dirty-bitmap:")) return ["clean", "dirty"][flags] ?? "";
  if (context === "qemu:allocation-depth") {
    return ["absent", "local"][flags] ?? `backing depth ${flags}`;
  }
  return context === "x-ovis:access" ? ["readable", "refused"][flags] ?? "" : "";
}
