/**
 * JSON as QEMU reads it (qobject/json-lexer.c, json-parser.c, json-streamer.c): RFC 8259 and strings
 * in single quotes. Bytes come in pieces; each value is there as soon as its last byte is. Whatever
 * is wrong is answered with an error in QEMU's words and skipped, so that what follows can be read
 * again.
 *
 *   start --quote--> string            error --> recovery --control, or structural--> start
 *         --digit, minus--> number
 *         --letter--> keyword
 *
 * A value's size, its number of tokens and its nesting are bounded: what is beyond is an error, and
 * nothing of it is kept.
 *
 * @module
 */

import { limits } from "../../limits.ts";
import { BlockError } from "../errors.ts";
import { JsonFloat, type JsonObject, type JsonValue } from "./json.ts";

/** What a stream gave: a value, or what was wrong. */
export type JsonMessage = { value: JsonValue } | { error: string };

type TokenType = "structural" | "string" | "integer" | "float" | "keyword";

interface Token {
  readonly type: TokenType;
  /** A string as it was written, with its quotes. */
  readonly bytes: Uint8Array;
  /** All other tokens. */
  readonly text: string;
}

type LexerState =
  | "start"
  | "string"
  | "stringEscape"
  | "minus"
  | "zero"
  | "digits"
  | "point"
  | "fraction"
  | "exponent"
  | "exponentSign"
  | "exponentDigits"
  | "keyword"
  | "recovery";

/** What a state does with a byte: go on to another, end the token before it, or fail. */
type NumberStep = LexerState | "end" | "error";

const QUOTE = 0x22;
const APOSTROPHE = 0x27;
const PLUS = 0x2b;
const MINUS = 0x2d;
const POINT = 0x2e;
const ZERO = 0x30;
const BACKSLASH = 0x5c;
const NO_BYTES = new Uint8Array(0);

/** The tokens that are one byte, by that byte. */
const STRUCTURAL: readonly (Token | undefined)[] = Array.from({ length: 256 }, (_, byte) => {
  const text = String.fromCharCode(byte);
  return "{}[]:,".includes(text) ? { type: "structural", bytes: NO_BYTES, text } : undefined;
});

function isDigit(byte: number): boolean {
  return byte >= ZERO && byte <= 0x39;
}

function isLowercase(byte: number): boolean {
  return byte >= 0x61 && byte <= 0x7a;
}

function isExponent(byte: number): boolean {
  return byte === 0x65 || byte === 0x45;
}

/** The transitions inside a number, as in QEMU: an exponent needs a digit other than 0 before. */
function numberStep(state: LexerState, byte: number): NumberStep {
  switch (state) {
    case "minus":
      return byte === ZERO ? "zero" : isDigit(byte) ? "digits" : "error";
    case "zero":
      return byte === POINT ? "point" : isDigit(byte) ? "error" : endOf(byte);
    case "digits":
      if (isDigit(byte)) return "digits";
      return byte === POINT ? "point" : isExponent(byte) ? "exponent" : endOf(byte);
    case "point":
      return isDigit(byte) ? "fraction" : "error";
    case "fraction":
      if (isDigit(byte)) return "fraction";
      return isExponent(byte) ? "exponent" : endOf(byte);
    case "exponent":
      if (isDigit(byte)) return "exponentDigits";
      return byte === PLUS || byte === MINUS ? "exponentSign" : "error";
    case "exponentSign":
      return isDigit(byte) ? "exponentDigits" : "error";
    default:
      return isDigit(byte) ? "exponentDigits" : endOf(byte);
  }
}

/** A number or a keyword ends before any byte of ASCII. */
function endOf(byte: number): "end" | "error" {
  return byte < 0x80 ? "end" : "error";
}

/** A stream of values. */
export class JsonStream {
  readonly #maxBytes: number;
  #state: LexerState = "start";
  #quote = QUOTE;
  /** The token under way. */
  #bytes = new Uint8Array(64);
  #length = 0;
  #tokens: Token[] = [];
  #tokenBytes = 0;
  #braces = 0;
  #brackets = 0;
  #out: JsonMessage[] = [];

  /** `maxBytes`: of one value's tokens, limits.qmpMessageBytes unless given. */
  constructor(options: { maxBytes?: number } = {}) {
    this.#maxBytes = options.maxBytes ?? limits.qmpMessageBytes;
  }

  /** Takes bytes in, gives the values that they end, in order. */
  feed(bytes: Uint8Array): JsonMessage[] {
    for (const byte of bytes) this.#feedByte(byte);
    return this.#out.splice(0);
  }

  /** The input has ended: what was under way, if anything. */
  end(): JsonMessage[] {
    if (this.#state !== "start" && this.#state !== "recovery") {
      const isWhole = this.#state === "keyword" || numberStep(this.#state, 0x20) === "end";
      if (isWhole && this.#state !== "string" && this.#state !== "stringEscape") {
        this.#tokenEnds();
      } else this.#stray();
    }
    this.#state = "start";
    if (this.#tokens.length > 0) this.#out.push(this.#parse());
    return this.#out.splice(0);
  }

  #feedByte(byte: number): void {
    switch (this.#state) {
      case "start":
        return this.#start(byte);
      case "string":
      case "stringEscape":
        this.#keep(byte);
        if (byte < 0x20 || byte > 0xfd) return this.#stray();
        if (this.#state === "stringEscape") this.#state = "string";
        else if (byte === BACKSLASH) this.#state = "stringEscape";
        else if (byte === this.#quote) return this.#token("string");
        break;
      case "keyword":
        if (isLowercase(byte)) this.#keep(byte);
        else if (byte < 0x80) return this.#endBefore(byte);
        else {
          this.#keep(byte);
          return this.#stray();
        }
        break;
      case "recovery":
        if (byte < 0x20 || byte > 0xfd || STRUCTURAL[byte] !== undefined) this.#start(byte);
        return;
      default: {
        const next = numberStep(this.#state, byte);
        if (next === "end") return this.#endBefore(byte);
        this.#keep(byte);
        if (next === "error") return this.#stray();
        this.#state = next;
      }
    }
    // A token that is too long is not kept: the limit is that of the whole value.
    if (this.#length > this.#maxBytes) this.#fail("token size limit exceeded");
  }

  #start(byte: number): void {
    this.#state = "start";
    const structural = STRUCTURAL[byte];
    if (structural !== undefined) return this.#addToken(structural);
    if (byte === 0x20 || byte === 0x09 || byte === 0x0a || byte === 0x0d) return;
    this.#keep(byte);
    if (byte === QUOTE || byte === APOSTROPHE) {
      this.#quote = byte;
      this.#state = "string";
    } else if (byte === MINUS) this.#state = "minus";
    else if (byte === ZERO) this.#state = "zero";
    else if (isDigit(byte)) this.#state = "digits";
    else if (isLowercase(byte)) this.#state = "keyword";
    else this.#stray();
  }

  #endBefore(byte: number): void {
    this.#tokenEnds();
    this.#feedByte(byte);
  }

  #tokenEnds(): void {
    const state = this.#state;
    const isInteger = state === "zero" || state === "digits";
    this.#token(state === "keyword" ? "keyword" : isInteger ? "integer" : "float");
  }

  #keep(byte: number): void {
    if (this.#length === this.#bytes.length) {
      const larger = new Uint8Array(this.#length * 2);
      larger.set(this.#bytes);
      this.#bytes = larger;
    }
    this.#bytes[this.#length++] = byte;
  }

  #token(type: TokenType): void {
    const isString = type === "string";
    const bytes = isString ? this.#bytes.slice(0, this.#length) : NO_BYTES;
    const text = isString ? "" : ascii(this.#bytes, this.#length);
    this.#tokenBytes += this.#length;
    this.#state = "start";
    this.#length = 0;
    if (this.#bytes.length > 65536) this.#bytes = new Uint8Array(64);
    this.#addToken({ type, bytes, text });
  }

  #addToken(token: Token): void {
    if (token.type === "structural") this.#count(token.text);
    this.#tokenBytes++;
    if (this.#tokenBytes > this.#maxBytes) return this.#fail("token size limit exceeded");
    if (this.#tokens.length >= limits.qmpTokens) return this.#fail("token count limit exceeded");
    if (this.#braces + this.#brackets > limits.jsonDepth) {
      return this.#fail("nesting depth limit exceeded");
    }
    this.#tokens.push(token);
    const isOpen = this.#braces > 0 || this.#brackets > 0;
    if (isOpen && this.#braces >= 0 && this.#brackets >= 0) return;
    this.#out.push(this.#parse());
  }

  #count(char: string): void {
    if (char === "{") this.#braces++;
    else if (char === "}") this.#braces--;
    else if (char === "[") this.#brackets++;
    else if (char === "]") this.#brackets--;
  }

  #parse(): JsonMessage {
    const tokens = this.#tokens;
    this.#reset();
    try {
      return { value: new Parser(tokens).parse() };
    } catch (error) {
      if (!(error instanceof JsonError)) throw error;
      return { error: error.message };
    }
  }

  /** A byte that fits nowhere; it was kept. */
  #stray(): void {
    const text = new TextDecoder().decode(this.#bytes.subarray(0, this.#length));
    this.#reset();
    this.#state = "recovery";
    this.#out.push({ error: `JSON parse error, stray '${text}'` });
  }

  #fail(what: string): void {
    this.#reset();
    this.#state = "start";
    this.#out.push({ error: `JSON ${what}` });
  }

  #reset(): void {
    this.#tokens = [];
    this.#tokenBytes = 0;
    this.#braces = 0;
    this.#brackets = 0;
    this.#length = 0;
  }
}

/** Not an Error: garbage makes thousands of them, and a stack costs more than all the rest. */
class JsonError {
  constructor(readonly message: string) {}
}

function parseError(what: string): JsonError {
  return new JsonError(`JSON parse error, ${what}`);
}

/** Makes a value of tokens. Its depth was bounded before. */
class Parser {
  readonly #tokens: readonly Token[];
  #at = 0;

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens;
  }

  parse(): JsonValue {
    return this.#value();
  }

  #next(): Token {
    const token = this.#tokens[this.#at++];
    if (token === undefined) throw parseError("premature EOI");
    return token;
  }

  #peek(): string {
    const token = this.#tokens[this.#at];
    if (token === undefined) throw parseError("premature EOI");
    return structuralChar(token);
  }

  #value(): JsonValue {
    const token = this.#next();
    switch (token.type) {
      case "string":
        return unescapeString(token.bytes);
      case "integer":
        return parseInteger(token.text);
      case "float":
        return new JsonFloat(Number(token.text));
      case "keyword": {
        const word = token.text;
        if (word === "true") return true;
        if (word === "false") return false;
        if (word === "null") return null;
        throw parseError(`invalid keyword '${word}'`);
      }
      case "structural":
        if (structuralChar(token) === "{") return this.#object();
        if (structuralChar(token) === "[") return this.#array();
        throw parseError("expecting value");
    }
  }

  #object(): JsonObject {
    const object: JsonObject = Object.create(null);
    if (this.#peek() === "}") {
      this.#at++;
      return object;
    }
    for (;;) {
      this.#pair(object);
      const char = structuralChar(this.#next());
      if (char === "}") return object;
      if (char !== ",") throw parseError("expected separator in dict");
    }
  }

  #pair(object: JsonObject): void {
    this.#peek();
    const key = this.#value();
    if (typeof key !== "string") throw parseError("key is not a string in object");
    if (structuralChar(this.#next()) !== ":") throw parseError("missing : in object pair");
    const value = this.#value();
    if (Object.hasOwn(object, key)) throw parseError("duplicate key");
    object[key] = value;
  }

  #array(): JsonValue[] {
    const items: JsonValue[] = [];
    if (this.#peek() === "]") {
      this.#at++;
      return items;
    }
    for (;;) {
      items.push(this.#value());
      const char = structuralChar(this.#next());
      if (char === "]") return items;
      if (char !== ",") throw parseError("expected separator in list");
    }
  }
}

/** A number or a keyword: nobody needs more of one than this. */
function ascii(bytes: Uint8Array, length: number): string {
  let text = "";
  for (let at = 0; at < Math.min(length, 1024); at++) {
    text += String.fromCharCode(bytes[at] ?? 0);
  }
  return text;
}

function structuralChar(token: Token): string {
  return token.type === "structural" ? token.text : "";
}

/** As QEMU: up to 64 bits exact, beyond a float. */
function parseInteger(text: string): number | bigint | JsonFloat {
  const number = Number(text);
  if (Number.isSafeInteger(number)) return Object.is(number, -0) ? 0 : number;
  const big = text.length <= 20 ? BigInt(text) : 2n ** 64n;
  if (big >= -(2n ** 63n) && big < 2n ** 64n) return big;
  return new JsonFloat(number);
}

const ESCAPES: Record<string, string> = {
  '"': '"',
  "'": "'",
  "\\": "\\",
  "/": "/",
  b: "\b",
  f: "\f",
  n: "\n",
  r: "\r",
  t: "\t",
};

function unescapeString(bytes: Uint8Array): string {
  let raw: string;
  try {
    raw = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw parseError("invalid UTF-8 sequence in string");
  }
  const end = raw.length - 1;
  let text = "";
  for (let at = 1; at < end;) {
    const escape = raw.indexOf("\\", at);
    if (escape < 0 || escape >= end) return text + raw.slice(at, end);
    text += raw.slice(at, escape);
    if (raw[escape + 1] === "u") {
      const { char, length } = unescapeUnit(raw, escape);
      text += char;
      at = escape + length;
    } else {
      const plain = ESCAPES[raw[escape + 1] ?? ""];
      if (plain === undefined) throw parseError("invalid escape sequence in string");
      text += plain;
      at = escape + 2;
    }
  }
  return text;
}

/** The character of `\uXXXX`, or of two of them that are a surrogate pair. */
function unescapeUnit(raw: string, at: number): { char: string; length: number } {
  const first = hexUnit(raw, at);
  if (first !== null && (first & 0xfc00) === 0xd800 && raw.startsWith("\\u", at + 6)) {
    const second = hexUnit(raw, at + 6);
    if (second !== null && (second & 0xfc00) === 0xdc00) {
      return { char: String.fromCharCode(first, second), length: 12 };
    }
  }
  const isSurrogate = first !== null && (first & 0xf800) === 0xd800;
  const isNoncharacter = first !== null &&
    ((first & 0xfffe) === 0xfffe || (first >= 0xfdd0 && first <= 0xfdef));
  if (first === null || isSurrogate || isNoncharacter) {
    throw parseError(`${raw.slice(at, at + 6)} is not a valid Unicode character`);
  }
  return { char: String.fromCharCode(first), length: 6 };
}

/** The four digits behind `\u`, null where there are not four. */
function hexUnit(raw: string, at: number): number | null {
  const digits = raw.slice(at + 2, at + 6);
  return /^[0-9a-fA-F]{4}$/.test(digits) ? parseInt(digits, 16) : null;
}

/** The one value of a text. Throws a BlockError (EINVAL) in QEMU's words. */
export function parseJson(text: string): JsonValue {
  const stream = new JsonStream();
  const bytes = new TextEncoder().encode(text);
  const [first, second] = [...stream.feed(bytes), ...stream.end()];
  if (first === undefined) throw new BlockError("EINVAL", "JSON parse error, expecting value");
  if ("error" in first) throw new BlockError("EINVAL", first.error);
  if (second !== undefined) {
    throw new BlockError("EINVAL", "JSON parse error, expecting end of input");
  }
  return first.value;
}
