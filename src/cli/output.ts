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

/** Text on standard output, as it is. */
export function printText(text: string): void {
  writeAll(Deno.stdout, encoder.encode(text));
}

/** Text on standard error, as it is. */
export function printErrorText(text: string): void {
  writeAll(Deno.stderr, encoder.encode(text));
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

/** Exit status of a program whose reader went away, as shells report it. */
const BROKEN_PIPE = 141;

function writeAll(writer: { writeSync(bytes: Uint8Array): number }, bytes: Uint8Array): void {
  try {
    for (let done = 0; done < bytes.length;) done += writer.writeSync(bytes.subarray(done));
  } catch (error) {
    // Whoever reads has enough: `ovis vm log demo | head`.
    if (error instanceof Deno.errors.BrokenPipe) Deno.exit(BROKEN_PIPE);
    throw error;
  }
}
