/**
 * Log lines on standard error: time, level, where, message, and what belongs to it.
 *
 * @module
 */

import { configure, getLogger, type LogRecord } from "@logtape/logtape";
import type { Settings } from "../config.ts";
import type { Log } from "../vm/log.ts";

/** Sets logging up for the process and returns the service's logger. */
export async function setUpLogging(level: Settings["logLevel"]): Promise<Log> {
  const encoder = new TextEncoder();
  await configure({
    reset: true,
    sinks: { stderr: (record) => void Deno.stderr.writeSync(encoder.encode(formatLine(record))) },
    loggers: [
      { category: ["ovis"], lowestLevel: level, sinks: ["stderr"] },
      { category: ["logtape", "meta"], lowestLevel: "warning", sinks: ["stderr"] },
    ],
  });
  return getLogger(["ovis"]);
}

function formatLine({ timestamp, level, category, message, properties }: LogRecord): string {
  const text = message.map((part) => typeof part === "string" ? part : show(part)).join("");
  const { vm } = properties as { vm?: unknown };
  const subject = vm === undefined ? "" : ` ${String(vm)}`;
  const time = new Date(timestamp).toISOString();
  return `${time} ${level} ${category.slice(1).join(".") || "ovis"}${subject}: ${text}\n`;
}

/** One line, whatever it is: a log line can't be forged by what it quotes. */
function show(value: unknown): string {
  if (value instanceof Error) return JSON.stringify(value.stack ?? value.message);
  const text = typeof value === "string" ? value : JSON.stringify(value) ?? String(value);
  // deno-lint-ignore no-control-regex
  return /[\x00-\x1f\x7f]/.test(text) ? JSON.stringify(text) : text;
}
