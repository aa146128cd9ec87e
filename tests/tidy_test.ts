/**
 * The rules of the house that no compiler checks: which folder may import which, how long lines,
 * files and functions may be, words that have no place here.
 */
import { assertEquals } from "@std/assert";

const ROOT = new URL("..", import.meta.url).pathname;

/** A folder or file of src, and what it may import from the rest of src. */
const MAY_IMPORT: Record<string, string[]> = {
  "limits.ts": [],
  "version.ts": [],
  "config.ts": ["limits.ts"],
  "wasm": ["limits.ts"],
  "block": ["limits.ts", "wasm"],
  "nbd": ["limits.ts", "block"],
  "qmp": ["limits.ts", "version.ts", "block", "nbd", "wasm"],
  "machine": ["limits.ts", "block", "nbd", "qmp", "wasm"],
  "vm": ["limits.ts", "config.ts", "machine", "wasm", "block/errors.ts"],
  "image": ["limits.ts"],
  "http": [
    "limits.ts",
    "config.ts",
    "vm",
    "image",
    "machine/messages.ts",
    "block/errors.ts",
    "nbd/transports",
    "client",
  ],
  "client": ["nbd"],
  "cli": [
    "limits.ts",
    "version.ts",
    "config.ts",
    "http",
    "vm",
    "image",
    "machine",
    "block",
    "qmp",
    "nbd",
    "client",
    "wasm",
  ],
};

const FILE_LINES_MAX = 600;
const HART_FILE_LINES_MAX = 800;
const FUNCTION_LINES_MAX = 70;
const LINE_LENGTH_MAX = 100;

/** The dispatch loop of the interpreter is one function by its nature. */
const LONG_FUNCTIONS = new Set<string>(["src/wasm/assembly/hart/interpreter.ts"]);

interface SourceFile {
  path: string;
  text: string;
  lines: string[];
}

function* walk(directory: string): Generator<string> {
  const entries = [...Deno.readDirSync(`${ROOT}${directory}`)].sort((a, b) =>
    a.name < b.name ? -1 : 1
  );
  for (const entry of entries) {
    const path = `${directory}/${entry.name}`;
    if (entry.isDirectory) {
      if (entry.name !== "build" && entry.name !== "node_modules") yield* walk(path);
    } else yield path;
  }
}

function sources(...directories: string[]): SourceFile[] {
  const files: SourceFile[] = [];
  for (const directory of directories) {
    for (const path of walk(directory)) {
      if (!path.endsWith(".ts")) continue;
      const text = Deno.readTextFileSync(ROOT + path);
      files.push({ path, text, lines: text.split("\n") });
    }
  }
  return files;
}

/** The part of a path that MAY_IMPORT speaks of: `src/block/drivers/file.ts` is of `block`. */
function partOf(path: string): string {
  return path.split("/")[1] ?? "";
}

function resolve(from: string, specifier: string): string {
  return new URL(specifier, `file:///${from}`).pathname.slice(1);
}

Deno.test("src imports only downwards", () => {
  const wrong: string[] = [];
  for (const { path, text } of sources("src")) {
    if (path.startsWith("src/wasm/assembly/")) continue;
    const part = partOf(path);
    const allowed = MAY_IMPORT[part];
    if (allowed === undefined) {
      wrong.push(`${path}: no rule for src/${part}`);
      continue;
    }
    for (const match of text.matchAll(/(?:from|import\()\s*"(\.[^"]+)"/g)) {
      const target = resolve(path, match[1] ?? "").replace(/^src\//, "");
      const isFine = target.split("/")[0] === part ||
        allowed.some((prefix) => target === prefix || target.startsWith(`${prefix}/`));
      if (!isFine) wrong.push(`${path} imports ${target}`);
    }
  }
  assertEquals(wrong, []);
});

Deno.test("lines, files and functions have a bounded length", () => {
  const wrong: string[] = [];
  for (const { path, lines } of sources("src", "tests", "bench")) {
    const max = path.startsWith("src/wasm/assembly/hart/") ? HART_FILE_LINES_MAX : FILE_LINES_MAX;
    if (path.startsWith("src/") && lines.length > max) wrong.push(`${path}: ${lines.length} lines`);
    lines.forEach((line, index) => {
      if (line.length > LINE_LENGTH_MAX && !/https?:|[`"'/].{60,}/.test(line)) {
        wrong.push(`${path}:${index + 1}: ${line.length} characters`);
      }
    });
    if (!path.startsWith("src/") || LONG_FUNCTIONS.has(path)) continue;
    for (const { line, length } of functionsOf(lines)) {
      if (length > FUNCTION_LINES_MAX) wrong.push(`${path}:${line}: a function of ${length} lines`);
    }
  }
  assertEquals(wrong, []);
});

/**
 * Functions and methods of formatted code: from a head that opens a block to the brace below it.
 */
function* functionsOf(lines: string[]): Generator<{ line: number; length: number }> {
  const head =
    /^(\s*)(?:export |default |async |static |override |private |protected |get |set )*(?:function\b|\*?[#\w]+(?:<.*>)?\(.*\).*\{$)/;
  for (let index = 0; index < lines.length; index++) {
    const match = head.exec(lines[index] ?? "");
    if (
      !match || /^\s*(?:if|for|while|switch|return|await|else|catch)\b/.test(lines[index] ?? "")
    ) continue;
    const end = lines.indexOf(`${match[1]}}`, index);
    if (end > 0) yield { line: index + 1, length: end - index + 1 };
  }
}

Deno.test("nothing speaks of what has no place here", () => {
  const banned = /\b(TODO|FIXME|XXX|HACK)\b|\/work\/|registry\.npmjs|debugger;/;
  const wrong: string[] = [];
  for (const { path, lines } of sources("src", "tests", "bench")) {
    if (path === "tests/tidy_test.ts") continue;
    lines.forEach((line, index) => {
      if (banned.test(line)) wrong.push(`${path}:${index + 1}: ${line.trim()}`);
    });
  }
  assertEquals(wrong, []);
});

Deno.test("every source file says what it is, and is used", () => {
  const files = sources("src", "tests", "bench");
  files.push({ path: "main.ts", text: Deno.readTextFileSync(`${ROOT}main.ts`), lines: [] });
  const used = new Set<string>();
  for (const { path, text } of files) {
    for (const match of text.matchAll(/"(\.{1,2}\/[^"]+)"/g)) {
      const target = resolve(path, match[1] ?? "");
      used.add(target).add(`${target}.ts`).add(`${target}/index.ts`);
    }
  }
  const config = Deno.readTextFileSync(`${ROOT}deno.json`);
  const wrong: string[] = [];
  for (const { path, text } of files) {
    if (!path.startsWith("src/")) continue;
    if (!/^\/\*\*/.test(text)) wrong.push(`${path}: no module head`);
    const isEntry = /assembly\/.*exports\.ts$/.test(path) || config.includes(path);
    if (!isEntry && !used.has(path)) wrong.push(`${path}: imported by nobody`);
  }
  assertEquals(wrong, []);
});
