/**
 * What commands say to people.
 *
 * @module
 */

const encoder = new TextEncoder();

/** A line on standard output. */
export function printLine(text: string): void {
  writeAll(Deno.stdout, encoder.encode(`${text}\n`));
}

/** A line on standard error. */
export function printError(text: string): void {
  writeAll(Deno.stderr, encoder.encode(`${text}\n`));
}

/** Bytes on standard output, as they are. */
export function printBytes(bytes: Uint8Array): void {
  writeAll(Deno.stdout, bytes);
}

/** Rows in columns, the first being the head. */
export function printTable(rows: readonly (readonly string[])[]): void {
  const widths: number[] = [];
  for (const row of rows) {
    row.forEach((cell, index) => widths[index] = Math.max(widths[index] ?? 0, cell.length));
  }
  for (const row of rows) {
    printLine(row.map((cell, index) => cell.padEnd(widths[index] ?? 0)).join("  ").trimEnd());
  }
}

function writeAll(writer: { writeSync(bytes: Uint8Array): number }, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length;) done += writer.writeSync(bytes.subarray(done));
}
