/**
 * Figures of a benchmark: medians of several runs, printed as a table, with the peer in the same
 * run. Rows are printed as they come, so that a run that is cut off has said what it found.
 *
 * @module
 */

/** One line of the table. `ratio` says how much better ours is: above 1 is better. */
export interface Row {
  what: string;
  unit: string;
  ours: number | undefined;
  peer: { name: string; value: number | undefined } | undefined;
  aim: string;
  /** Whether small figures are good (times) or large ones (rates). */
  isSmallerBetter: boolean;
}

/** The median of the values. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? NaN) + upper) / 2;
}

/** Runs `measure` `count` times; the median. */
export async function medianOf(count: number, measure: () => Promise<number>): Promise<number> {
  const values: number[] = [];
  for (let run = 0; run < count; run++) values.push(await measure());
  return median(values);
}

/** Rows, all at once or as they are measured. */
export type Rows = Promise<Row[]> | AsyncIterable<Row>;

const COLUMNS = ["what", "ours", "peer", "ours/peer", "aim"] as const;
const WIDTHS = [76, 14, 24, 9, 0];

/** Prints rows as a table of columns, each row as soon as it is there. */
export async function printTable(title: string, rows: Rows): Promise<void> {
  print(`\n${title}`);
  printCells(COLUMNS);
  for await (const row of await rows) printCells(cellsOf(row));
}

function cellsOf(row: Row): string[] {
  const peer = row.peer?.value;
  const ratio = row.ours === undefined || peer === undefined
    ? undefined
    : row.isSmallerBetter
    ? peer / row.ours
    : row.ours / peer;
  return [
    row.what,
    `${number(row.ours)} ${row.unit}`,
    row.peer === undefined ? "" : `${number(peer)} (${row.peer.name})`,
    ratio === undefined ? "" : `${ratio.toFixed(2)}x`,
    row.aim,
  ];
}

function printCells(cells: readonly string[]): void {
  const padded = cells.map((cell, column) => cell.padEnd(WIDTHS[column] ?? 0));
  print("  " + padded.join("  ").trimEnd());
}

function number(value: number | undefined): string {
  if (value === undefined) return "-";
  return value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(2) : value.toFixed(4);
}

/** Writes a line to the standard output. */
export function print(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${line}\n`));
}
