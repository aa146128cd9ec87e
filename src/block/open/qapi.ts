/**
 * Descriptions of arguments in the manner of QEMU's QAPI, and the check of an input against them:
 * each argument is declared once, with its type, and what is wrong with an input is said in QEMU's
 * words (qapi/qobject-input-visitor.c, qapi/qapi-visit-core.c).
 *
 * An input is JSON (a number is a number), or came as `key=value,...` (everything is a string that
 * is converted to what is expected: see keyval.ts). Members are looked at in the order of their
 * declaration; what is left over is unexpected.
 *
 * @module
 */

import { BlockError } from "../errors.ts";
import { isJsonObject, JsonFloat, type JsonObject, type JsonValue } from "./json.ts";

/** Where in an input a value is, for messages. */
export interface Place {
  /** The value's name in its parent, null at the root and in lists. */
  readonly name: string | null;
  /** The place in full: `file.driver`, `bitmaps[0]`; "" at the root. */
  readonly path: string;
  /** The input came as `key=value,...`. */
  readonly isKeyval: boolean;
}

/** The kinds of JSON values, as QAPI's introspection names them. */
export type JsonKind = "string" | "number" | "int" | "boolean" | "null" | "object" | "array";

/** What a type looks like in query-qmp-schema. */
export type TypeShape =
  | { meta: "builtin"; name: string; kind: JsonKind | "value" }
  | { meta: "enum"; name: string; values: readonly string[] }
  | { meta: "array"; element: QapiType<unknown> }
  | { meta: "alternate"; name: string; members: readonly QapiType<unknown>[] }
  | {
    meta: "object";
    name: string;
    members: readonly QapiMember[];
    tag?: string;
    variants?: readonly { value: string; members: readonly QapiMember[] }[];
  };

/** A member of an object. */
export interface QapiMember {
  /** Its name. */
  readonly name: string;
  /** What it may be. */
  readonly type: QapiType<unknown>;
  /** It may be left out. */
  readonly isOptional: boolean;
}

/** A type: checks inputs and can describe itself. */
export interface QapiType<T> {
  /** The input as a T. Throws a BlockError (EINVAL) in QEMU's words. */
  parse(value: JsonValue, place: Place): T;
  /** What it looks like. Called late: types may refer to each other. */
  shape(): TypeShape;
}

/** A member that may be left out. */
export interface Optional<T> {
  /** What it is where it is there. */
  readonly optional: QapiType<T>;
}

/** The members of an object by name. */
// deno-lint-ignore no-explicit-any -- the members' types are inferred from it, whatever they are
export type Fields = Readonly<Record<string, QapiType<any> | Optional<any>>>;

/** The names of the members that must be there. */
export type RequiredNames<F extends Fields> = {
  [K in keyof F]: F[K] extends QapiType<unknown> ? K : never;
}[keyof F];

/** What an object with these members is, once checked. */
export type Parsed<F extends Fields> =
  & { [K in RequiredNames<F>]: F[K] extends QapiType<infer T> ? T : never }
  & {
    [K in Exclude<keyof F, RequiredNames<F>>]?: F[K] extends Optional<infer T> ? T : never;
  };

/** The root of an input. */
export function rootPlace(options: { isKeyval?: boolean } = {}): Place {
  return { name: null, path: "", isKeyval: options.isKeyval ?? false };
}

/** Marks a member that may be left out. */
export function optional<T>(type: QapiType<T>): Optional<T> {
  return { optional: type };
}

/** An error of an input. */
export function inputError(message: string): BlockError {
  return new BlockError("EINVAL", message);
}

function member(place: Place, name: string): Place {
  const path = place.path === "" ? name : `${place.path}.${name}`;
  return { name, path, isKeyval: place.isKeyval };
}

function element(place: Place, index: number): Place {
  const path = place.isKeyval ? `${place.path}.${index}` : `${place.path}[${index}]`;
  return { name: null, path, isKeyval: place.isKeyval };
}

function fullName(place: Place): string {
  return place.path === "" ? "<anonymous>" : place.path;
}

function wrongType(place: Place, expected: string): BlockError {
  return inputError(`Invalid parameter type for '${fullName(place)}', expected: ${expected}`);
}

function builtin<T>(
  name: string,
  kind: JsonKind | "value",
  parse: (value: JsonValue, place: Place) => T,
): QapiType<T> {
  return { parse, shape: () => ({ meta: "builtin", name, kind }) };
}

/** The text that `key=value` has for a scalar. */
function keyvalText(value: JsonValue, place: Place): string {
  if (typeof value === "string") return value;
  throw inputError(`Parameters '${fullName(place)}.*' are unexpected`);
}

/** A text. */
export const str: QapiType<string> = builtin("str", "string", (value, place) => {
  if (place.isKeyval) return keyvalText(value, place);
  if (typeof value !== "string") throw wrongType(place, "string");
  return value;
});

/** true or false; `on` or `off`. */
export const bool: QapiType<boolean> = builtin("bool", "boolean", (value, place) => {
  if (place.isKeyval) {
    const text = keyvalText(value, place);
    if (text === "on") return true;
    if (text === "off") return false;
    throw inputError(`Parameter '${fullName(place)}' expects 'on' or 'off'`);
  }
  if (typeof value !== "boolean") throw wrongType(place, "boolean");
  return value;
});

/** Null. */
export const nothing: QapiType<null> = builtin("null", "null", (value, place) => {
  if (value !== null) throw wrongType(place, "null");
  return null;
});

/** Whatever it is. */
export const any: QapiType<JsonValue> = builtin("any", "value", (value) => value);

const INT64_MAX = 2n ** 63n - 1n;
const UINT64_MAX = 2n ** 64n - 1n;

/** A whole number of an input; undefined where it is none. */
function wholeNumber(value: JsonValue): bigint | undefined {
  if (typeof value === "bigint") return value;
  return typeof value === "number" && Number.isInteger(value) ? BigInt(value) : undefined;
}

/** As strtoll(3) with base 0: decimal, 0x, 0 for octal. */
function numberOfText(text: string): bigint | undefined {
  const match = /^\s*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)$/.exec(text);
  if (match === null) return undefined;
  const digits = match[2] ?? "";
  const isOctal = /^0[0-7]+$/.test(digits);
  if (/^0[0-9]+$/.test(digits) && !isOctal) return undefined;
  const value = BigInt(isOctal ? `0o${digits.slice(1)}` : digits);
  return match[1] === "-" ? -value : value;
}

function signed(value: JsonValue, place: Place): bigint {
  const isIn = (number: bigint | undefined): number is bigint =>
    number !== undefined && number <= INT64_MAX && number >= -INT64_MAX - 1n;
  if (place.isKeyval) {
    const number = numberOfText(keyvalText(value, place));
    if (!isIn(number)) throw inputError(`Parameter '${fullName(place)}' expects integer`);
    return number;
  }
  const number = wholeNumber(value);
  if (!isIn(number)) throw wrongType(place, "integer");
  return number;
}

/** Negative numbers are taken for large ones, as QEMU does. */
function unsigned(value: JsonValue, place: Place): bigint {
  const isKeyval = place.isKeyval;
  const number = isKeyval ? numberOfText(keyvalText(value, place)) : wholeNumber(value);
  if (number === undefined || number > UINT64_MAX || number < -INT64_MAX - 1n) {
    throw isKeyval
      ? inputError(`Parameter '${fullName(place)}' expects integer`)
      : inputError(`Parameter '${fullName(place)}' expects uint64`);
  }
  return BigInt.asUintN(64, number);
}

function integer(name: string, cName: string, min: bigint, max: bigint): QapiType<number> {
  const parse = min < 0n ? signed : unsigned;
  return builtin(name, "int", (value, place) => {
    const number = parse(value, place);
    if (number < min || number > max) {
      throw inputError(`Parameter '${place.name ?? "null"}' expects ${cName}`);
    }
    return Number(number);
  });
}

/** A signed number of 64 bits; beyond 2^53 not exact: users compare it with limits of theirs. */
export const int: QapiType<number> = integer("int", "int64_t", -INT64_MAX - 1n, INT64_MAX);
/** A signed number of 32 bits. */
export const int32: QapiType<number> = integer("int32", "int32_t", -(2n ** 31n), 2n ** 31n - 1n);
/** 0 to 255. */
export const uint8: QapiType<number> = integer("uint8", "uint8_t", 0n, 255n);
/** 0 to 65535. */
export const uint16: QapiType<number> = integer("uint16", "uint16_t", 0n, 65535n);
/** 0 to 2^32 - 1. */
export const uint32: QapiType<number> = integer("uint32", "uint32_t", 0n, 2n ** 32n - 1n);
/** 0 to 2^64 - 1; beyond 2^53 not exact. */
export const uint64: QapiType<number> = integer("uint64", "uint64_t", 0n, UINT64_MAX);

const SIZE_UNITS = "bkmgtpe";

/** A number of bytes; in `key=value` with a unit: `64k`, `1.5G`. Beyond 2^53 not exact. */
export const size: QapiType<number> = builtin("size", "int", (value, place) => {
  if (!place.isKeyval) return Number(unsigned(value, place));
  const bytes = parseSize(keyvalText(value, place));
  if (bytes === undefined) throw inputError(`Parameter '${fullName(place)}' expects size`);
  return bytes;
});

/** Bytes of a text as `64k`, `0x10000`, `1.5G`; undefined where it is none. */
export function parseSize(text: string): number | undefined {
  const match = /^(0[xX][0-9a-fA-F]+|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)([bBkKmMgGtTpPeE]?)$/.exec(text);
  if (match === null) return undefined;
  const number = Number(match[1]);
  const power = SIZE_UNITS.indexOf((match[2] ?? "").toLowerCase());
  const bytes = Math.round(number * 1024 ** Math.max(power, 0));
  return bytes < 2 ** 64 ? bytes : undefined;
}

/** Any number. */
export const number: QapiType<number> = builtin("number", "number", (value, place) => {
  if (place.isKeyval) {
    const parsed = Number(keyvalText(value, place));
    if (!Number.isFinite(parsed)) {
      throw inputError(`Parameter '${fullName(place)}' expects number`);
    }
    return parsed;
  }
  if (value instanceof JsonFloat) return value.value;
  if (typeof value !== "number" && typeof value !== "bigint") throw wrongType(place, "number");
  return Number(value);
});

/** One of some words. */
export function oneOf<const V extends string>(name: string, values: readonly V[]): QapiType<V> {
  return {
    parse: (value, place) => {
      const text = str.parse(value, place);
      const found = values.find((candidate) => candidate === text);
      if (found === undefined) {
        throw inputError(
          `Parameter '${place.name ?? "null"}' does not accept value '${text}'`,
        );
      }
      return found;
    },
    shape: () => ({ meta: "enum", name, values }),
  };
}

/** Several of a type. */
export function list<T>(type: QapiType<T>): QapiType<T[]> {
  return {
    parse: (value, place) => {
      if (!Array.isArray(value)) throw wrongType(place, "array");
      return value.map((item, index) => type.parse(item, element(place, index)));
    },
    shape: () => ({ meta: "array", element: type }),
  };
}

/** Of several types the one that the kind of JSON value chooses. */
export function alternate<T>(
  name: string,
  members: Partial<Record<"string" | "object" | "null" | "array", () => QapiType<T>>>,
): QapiType<T> {
  return {
    parse: (value, place) => {
      const kind = value === null
        ? "null"
        : typeof value === "string"
        ? "string"
        : Array.isArray(value)
        ? "array"
        : isJsonObject(value)
        ? "object"
        : undefined;
      const chosen = kind === undefined ? undefined : members[kind];
      if (chosen === undefined) {
        throw inputError(`Invalid parameter type for '${place.name ?? "null"}', expected: ${name}`);
      }
      return chosen().parse(value, place);
    },
    shape: () => ({
      meta: "alternate",
      name,
      members: Object.values(members).map((get) => get()),
    }),
  };
}

/** The members that a description declares. */
export function membersOf(fields: Fields): QapiMember[] {
  return Object.entries(fields).map(([name, field]) => {
    const isOptional = "optional" in field;
    return { name, type: isOptional ? field.optional : field, isOptional };
  });
}

/** Reads members of an object, and ticks them off. */
function readMembers(
  members: readonly QapiMember[],
  input: { object: JsonObject; place: Place; left: Set<string> },
): Record<string, unknown> {
  const { object, place, left } = input;
  const result: Record<string, unknown> = {};
  for (const { name, type, isOptional } of members) {
    const value = Object.hasOwn(object, name) ? object[name] : undefined;
    if (value === undefined) {
      if (isOptional) continue;
      throw inputError(`Parameter '${member(place, name).path}' is missing`);
    }
    left.delete(name);
    result[name] = type.parse(value, member(place, name));
  }
  return result;
}

function openObject(value: JsonValue, place: Place): { object: JsonObject; left: Set<string> } {
  if (!isJsonObject(value)) throw wrongType(place, "object");
  return { object: value, left: new Set(Object.keys(value)) };
}

function checkNothingLeft(left: Set<string>, place: Place): void {
  for (const name of left) {
    throw inputError(`Parameter '${member(place, name).path}' is unexpected`);
  }
}

/** An object with these members and no others. */
export function struct<F extends Fields>(name: string, fields: F): QapiType<Parsed<F>> {
  const members = membersOf(fields);
  return {
    parse: (value, place) => {
      const { object, left } = openObject(value, place);
      const result = readMembers(members, { object, place, left });
      checkNothingLeft(left, place);
      return result as Parsed<F>;
    },
    shape: () => ({ meta: "object", name, members }),
  };
}

/** A variant of a union, as `union` gives it back. */
export interface UnionValue<B> {
  /** The members that all variants have, the tag too. */
  readonly base: B;
  /** The tag's value. */
  readonly tag: string;
  /** The members of the variant. */
  readonly variant: Record<string, unknown>;
}

/** What a union is made of. */
export interface UnionOptions<B extends Fields> {
  /** Members that all variants have; one of them is the tag, an enumeration. */
  base: B;
  /** The name of the member that chooses the variant. */
  tag: keyof B & string;
  /** The members of each variant, asked for late; a tag without any has no members of its own. */
  variants: () => ReadonlyMap<string, Fields>;
}

/** An object some of whose members depend on the value of one. */
export function union<B extends Fields>(
  name: string,
  options: UnionOptions<B>,
): QapiType<UnionValue<Parsed<B>>> {
  const members = membersOf(options.base);
  return {
    parse: (value, place) => {
      const { object, left } = openObject(value, place);
      const base = readMembers(members, { object, place, left });
      const tag = String(base[options.tag]);
      const fields = options.variants().get(tag) ?? {};
      const variant = readMembers(membersOf(fields), { object, place, left });
      checkNothingLeft(left, place);
      return { base: base as Parsed<B>, tag, variant };
    },
    shape: () => ({
      meta: "object",
      name,
      members,
      tag: options.tag,
      variants: [...options.variants()].map(([value, fields]) => ({
        value,
        members: membersOf(fields),
      })),
    }),
  };
}
