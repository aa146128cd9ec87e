/**
 * The data of options that name an export: parsed whole or refused whole, every length checked
 * against what is really there. Pure.
 *
 * @module
 */

import type { MetaContext } from "../block/export.ts";
import { decodeString, viewOf } from "./codec.ts";

/** Takes numbers and strings off the front of option data; undefined once anything did not fit. */
class OptionReader {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  #position = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = viewOf(bytes);
  }

  get left(): number {
    return this.#bytes.length - this.#position;
  }

  uint16(): number | undefined {
    if (this.left < 2) return undefined;
    this.#position += 2;
    return this.#view.getUint16(this.#position - 2);
  }

  uint32(): number | undefined {
    if (this.left < 4) return undefined;
    this.#position += 4;
    return this.#view.getUint32(this.#position - 4);
  }

  /** A string behind its 32-bit length. */
  string(): string | undefined {
    const length = this.uint32();
    if (length === undefined || length > this.left) return undefined;
    this.#position += length;
    return decodeString(this.#bytes.subarray(this.#position - length, this.#position));
  }
}

/** The data of NBD_OPT_INFO and NBD_OPT_GO; undefined where it is malformed. */
export function parseExportOption(
  data: Uint8Array,
): { name: string; items: Set<number> } | undefined {
  const reader = new OptionReader(data);
  const name = reader.string();
  const count = name === undefined ? undefined : reader.uint16();
  if (name === undefined || count === undefined || reader.left !== 2 * count) return undefined;
  const items = new Set<number>();
  for (let item = reader.uint16(); item !== undefined; item = reader.uint16()) items.add(item);
  return { name, items };
}

/**
 * The data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT; undefined where malformed.
 */
export function parseMetaOption(
  data: Uint8Array,
): { name: string; queries: string[] } | undefined {
  const reader = new OptionReader(data);
  const name = reader.string();
  const count = name === undefined ? undefined : reader.uint32();
  if (name === undefined || count === undefined) return undefined;
  const queries: string[] = [];
  while (queries.length < count) {
    const query = reader.string();
    // A query must start with a namespace and a colon ("Metadata querying").
    if (query === undefined || query.indexOf(":") < 1) return undefined;
    queries.push(query);
  }
  return reader.left === 0 ? { name, queries } : undefined;
}

/**
 * The contexts that queries select, each once, in the export's order. In a list no query means all,
 * and a query that ends in a colon all that start with it; a set selects by full names only.
 */
export function selectContexts(
  contexts: readonly MetaContext[],
  queries: readonly string[],
  isSet: boolean,
): MetaContext[] {
  if (!isSet && queries.length === 0) return [...contexts];
  const names = new Set(queries);
  const prefixes = isSet ? [] : [...names].filter((query) => query.endsWith(":"));
  return contexts.filter(({ name }) =>
    (names.has(name) && !name.endsWith(":")) || prefixes.some((prefix) => name.startsWith(prefix))
  );
}
