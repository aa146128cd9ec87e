/**
 * JSON values, and how QEMU prints them.
 *
 * Whole numbers are numbers while those are exact and bigints beyond, all others JsonFloats: 1.0 is
 * no integer, and what is echoed must not change.
 *
 * @module
 */

/** A number that was not written as an integer. */
export class JsonFloat {
  /** As it was read. */
  constructor(readonly value: number) {}
}

/** An object: members by name, in the order of the input. Without a prototype when read by us. */
export interface JsonObject {
  /** A member. */
  [name: string]: JsonValue;
}

/** A value. */
export type JsonValue =
  | null
  | boolean
  | string
  | number
  | bigint
  | JsonFloat
  | JsonValue[]
  | JsonObject;

/** Whether a value is an object, not a list or a scalar. */
export function isJsonObject(value: JsonValue | undefined): value is JsonObject {
  return typeof value === "object" && value !== null && !Array.isArray(value) &&
    !(value instanceof JsonFloat);
}

/** How values are printed. */
export interface FormatOptions {
  /** Over several lines, indented by four spaces. */
  isPretty?: boolean;
}

/** Values as QEMU prints them, in one line unless asked for more: `{"a": 1, "b": [true]}`. */
export function formatJson(value: JsonValue, options: FormatOptions = {}): string {
  return format(value, options.isPretty ? "" : null);
}

/** `indent`: of the line that the value starts on; null for one line. */
function format(value: JsonValue, indent: string | null): string {
  if (value instanceof JsonFloat) return formatFloat(value.value);
  if (typeof value === "string") return formatString(value);
  const inner = indent === null ? null : `${indent}    `;
  if (Array.isArray(value)) {
    return enclose(value.map((item) => format(item, inner)), { brackets: "[]", indent });
  }
  if (isJsonObject(value)) {
    const members = Object.entries(value).map(([name, member]) =>
      `${formatString(name)}: ${format(member, inner)}`
    );
    return enclose(members, { brackets: "{}", indent });
  }
  return String(value);
}

function enclose(
  parts: string[],
  { brackets, indent }: { brackets: string; indent: string | null },
): string {
  if (indent === null) return `${brackets[0]}${parts.join(", ")}${brackets[1]}`;
  const lines = parts.map((part) => `\n${indent}    ${part}`).join(",");
  return `${brackets[0]}${lines}\n${indent}${brackets[1]}`;
}

/** Shortest text that is read as the same number, without a point where it is whole: as %.17g. */
function formatFloat(value: number): string {
  return Number.isFinite(value) ? String(value) : "null";
}

function formatString(text: string): string {
  return JSON.stringify(text).replaceAll(
    /[\u007f-\uffff]/g,
    (char) => `\\u${char.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`,
  );
}
