/**
 * JSON as qemu-img prints it.
 *
 * @module
 */

/** A value with members and items on lines of their own, four spaces deeper. */
export function prettyJson(value: unknown): string {
  // QEMU breaks the line inside of empty lists and objects, too. That is left out here.
  return `${JSON.stringify(value, null, 4)}\n`;
}
