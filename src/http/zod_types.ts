/**
 * Names of our own for what is used of zod's types.
 *
 * @module
 */

import type { z } from "@hono/zod-openapi";

/** A schema of any kind. */
export type Schema = z.ZodType;

/** What a schema gives for a value that it accepts. */
export type Parsed<S extends Schema> = S["_zod"]["output"];

/** A schema that gives values of a type. */
export type SchemaOf<Output> = Schema & { readonly _zod: { readonly output: Output } };
